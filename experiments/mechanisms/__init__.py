"""Claims of the papers, re-run: one module a claim, its rows in `experiments/results/mechanisms`."""

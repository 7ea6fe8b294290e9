"""Claims of the papers, re-run: a module a claim, its rows in `experiments/results/mechanisms`."""

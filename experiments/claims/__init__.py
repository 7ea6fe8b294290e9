"""Claims of the papers, run again: a file a claim, its rows in `experiments/results/claims`.

    python -m experiments.claims --list
    python -m experiments.claims e13 --seeds 0 1 2

What belongs here: the declaration of a claim (settings, nets, arms, measures, statements, plot,
remarks), named after its rows; what all of them share (`claim.py`, `statements.py`, `plots.py`,
`pages.py`); and beside a claim what it computes at length (`monk.py` of e02, `merging.py` of e05,
`curved.py` of e28, `damages.py` of fidelity, `gal.py` of p30 and p30b, `layers.py` of e19 and e20,
`thresholds.py` of e04 and e07, nets that the zoo does not have in `nets.py`). What does not:
methods, which are `jprune`'s, and comparisons of methods (`experiments.configs`). Read `claim.py`
first, then `e20.py`, a short one, or `e09.py`.
"""

"""Claims of the papers, run again: a file a claim, its rows in `experiments/results/claims`.

    python -m experiments.claims --list
    python -m experiments.claims e13 --seeds 0 1 2

What belongs here: the declaration of a claim, 110 lines at most, named after its rows: what the
paper claims, settings, nets, arms, measures, statements, plot, remarks. The vocabulary that claims
are declared in: `claim.py` (what a claim is, and its run), `settings.py` (the words of settings),
`statements.py` (values by seed, and what is said of them), `plots.py` (curves, bars, traces),
`pages.py`. And what a claim computes at length, by what it is about: nets that the zoo does not
have (`nets.py`, `popped.py` of e10); trainings that are looked at on their way (`watched.py`:
e07, e09, p33); pruning by scores made before (`scored.py`: e01, e28), by thresholds
(`thresholds.py`: e04, e07), in rounds (`tickets.py`: e09), layer by layer (`layers.py`: e19, e20),
by curvature (`monk.py`: e02, `curved.py`: e28, `damages.py`: fidelity), by a penalty (`lasso.py`:
e13, `gal.py`: p30, p30b, `admm.py`: p33), by merging (`merging.py`: e05, `clusters.py`: p41), by
images (`boosted.py`: p32) and by search (`hypernets.py`: p39, `dimensions.py`: x9). What does not:
methods, which are `jprune`'s, and comparisons of methods (`experiments.configs`). Read `claim.py`
first, then `e20.py`, a short one, or `e09.py`.
"""

"""Claims of the papers, run again: a file a claim, its rows in `experiments/results/claims`.

    python -m experiments.claims --list
    python -m experiments.claims e13 --seeds 0 1 2

What belongs here: the declaration of a claim (settings, nets, arms, measures, statements, plot,
remarks), named after its rows, and what several of them share (`SHARED`). What does not: methods,
which are `jprune`'s, and comparisons of methods (`experiments.configs`). Read `claim.py` first,
then any claim: `p32.py` has a net of its own, `e09.py` the plainest statements.
"""

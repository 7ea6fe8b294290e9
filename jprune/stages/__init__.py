"""The steps that recipes are made of.

A stage is a frozen dataclass of settings, called as `stage(pruned, task, key) -> (pruned, records)`
(`jprune.base.Stage`). Called so, it runs in memory and to the end. A long stage can also be taken
apart: `learner(pruned, task, key)` hands out its steps, and `jprune.runs` drives them with
checkpoints and a progress bar. A stage may have `check(task)`, which is asked before anything is
trained. A stage has a `name`: of its records and of its folder in a run directory.

Read `prune.py` first, then `train.py`; `frame.py` runs stages one after another.
"""

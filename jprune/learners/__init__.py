"""Learners: training as a value, so that one loop runs them all.

A learner (`jprune.base.Learner`) is four functions over a state; plain training under masks is
one, and gates, hypernetworks or adversaries are others. Read `plain.py` first, then `drive.py`
(the loop: epochs, resuming, a loss that is not finite). Files and checkpoints do not belong here
but to `jprune.train`.
"""

from jprune.learners.drive import Progress, drive
from jprune.learners.evaluate import evaluate, evaluator
from jprune.learners.optimizer import Optimizer
from jprune.learners.plain import PlainState, plain

__all__ = ["Optimizer", "PlainState", "Progress", "drive", "evaluate", "evaluator", "plain"]

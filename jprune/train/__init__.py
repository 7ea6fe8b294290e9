"""A task becomes steps: training, evaluation, and what a net's groups and costs are.

Here belongs how a task is made (`task.py`: of a net and data, at another resolution, with a
teacher), what a training step computes (`step.py`), with what (`optimizers.py`), and how a net is
evaluated. Runs on disk are in `jprune.runs`. Read `task.py` first (a net and data put together),
then `net.py`.
"""

from jprune.train.evaluate import evaluate
from jprune.train.net import Net
from jprune.train.task import task

__all__ = ["Net", "evaluate", "task"]

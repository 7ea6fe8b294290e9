"""Running: a net, data and a recipe become a run directory that survives.

Here belongs whatever touches files while nets are trained: checkpoints, records, stages that are
skipped when done, progress bars. Training itself is in `jprune.learners`, methods are in
`jprune.recipes`. Read `job.py` first (the main job, stage by stage), then `directory.py` (what a run
leaves, and how it goes on) and `checkpoint.py`.

This file imports nothing heavy: `from jprune.train.job import prune` runs the main job.
"""

from jprune.train.config import Config
from jprune.train.files import atomic_write
from jprune.train.task import task

__all__ = ["Config", "atomic_write", "task"]

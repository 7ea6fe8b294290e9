"""Training and running: recipes with checkpoints, progress and records on disk.

Here belongs whatever a recipe needs to survive the real world: files that are whole or not there
(`files.py`), checkpoints (`checkpoint.py`), the loop around a learner's steps (`loop.py`), the run
directory with its stages (`run.py`), arrays on many devices and hosts (`devices.py`), what the user
sees meanwhile (`progress.py`), and the main job (`job.py`, with the stages that only it has in
`finish.py`; not imported here, since it needs all the other leaves). What a training step computes
is in `jprune.recipes`.

Read `task.py` first (a net and data put together), then `run.py`.
"""

from jprune.recipes import evaluate
from jprune.train.checkpoint import Checkpoint
from jprune.train.files import append_line, atomic_write, read_lines
from jprune.train.run import RunDirectory, execute, open_directory
from jprune.train.task import task

__all__ = [
    "Checkpoint",
    "RunDirectory",
    "append_line",
    "atomic_write",
    "evaluate",
    "execute",
    "open_directory",
    "read_lines",
    "task",
]

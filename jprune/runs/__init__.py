"""Running recipes: run directories, checkpoints, progress, many devices.

Here belongs what a run needs to survive being killed: files that are whole or absent (`files.py`),
what of its folder it may touch (`inside.py`), digests of what it wrote (`digests.py`), checkpoints
(`checkpoint.py`), the loop around a learner's steps (`loop.py`), the folder of a run
(`directory.py`), what of it still stands (`resuming.py`, `whole.py`) and its stages one after
another (`execution.py`), arrays on many devices and hosts (`devices.py`), what the user sees
meanwhile (`progress.py`). Stages are known as a protocol; no method is known here. Read
`directory.py` first.
"""

from jprune.runs.checkpoint import Checkpoint
from jprune.runs.directory import RunDirectory, open_directory
from jprune.runs.execution import execute
from jprune.runs.files import append_line, atomic_write, read_lines
from jprune.runs.progress import Bars, Lines

__all__ = [
    "Bars",
    "Checkpoint",
    "Lines",
    "RunDirectory",
    "append_line",
    "atomic_write",
    "execute",
    "open_directory",
    "read_lines",
]

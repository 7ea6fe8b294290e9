"""Data sets: fixed splits of small images, fed in batches that a seed and an epoch determine.

Here belongs everything between files and batches; nothing here knows a net. Read `table.py` first
(what the sets are), then `batches.py` (how batches are made). `access.py` has `load` and `prepare`;
`sources.py` reads data of the user's own (files, folders, whatever TFDS has prepared), `own.py`
makes a set of arrays, `images.py` decodes and resizes. `store.py` reads and writes TFDS
directories, `fetch.py` gets and verifies the source files, `formats.py` decodes them, `splits.py`
divides sets into splits.
"""

from jprune.data.access import load, prepare
from jprune.data.batches import Split, feed
from jprune.data.own import from_arrays
from jprune.data.table import Spec, names

__all__ = ["Spec", "Split", "feed", "from_arrays", "load", "names", "prepare"]

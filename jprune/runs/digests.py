"""Digests of files: what was written is what is read.

Memory, cables and disks turn bits over, and neither Orbax nor JSON notices. A checkpoint's folder
has a file `DIGESTS` with the SHA-256 of each of its files; a stage's `DONE` has those of the files
that it left in the run's folder; JSON objects have their own (`files.write_json`). Digests are
compared before anything is parsed. They are no signatures: who changes a file on purpose can change
its digest too.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping

from jprune import errors, foreign
from jprune.runs import inside
from jprune.runs.files import atomic_write

FILE = "DIGESTS"
"""Name of the file of digests in the folder of a checkpoint."""


def of_file(path: pathlib.Path) -> str:
    """The SHA-256 of a regular file, as hexadecimal digits."""
    with os.fdopen(inside.opened(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_files(root: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    """{path below `root`: digest} of files, and of all files of folders, that are there."""
    files = [file for name in names for file in inside.files_under(root / name)]
    return {file.relative_to(root).as_posix(): of_file(file) for file in files}


def top(name: str) -> str:
    """The first part of a path below a folder.

    Example:
        >>> top("params/d/a1"), top("model.tflite")
        ('params', 'model.tflite')
    """
    return (*pathlib.PurePosixPath(name).parts, "")[0]


def damaged(root: pathlib.Path, expected: Mapping[str, str]) -> list[str]:
    """Names of the files that are missing, or not as their digests say.

    Args:
        root: folder that the names are below.
        expected: from `of_files`.
    """
    names = []
    for name, digest in expected.items():
        # A name from a file of digests is a foreign one: it must not lead out of the folder.
        parts = pathlib.PurePosixPath(name).parts
        actual = None
        if parts and not name.startswith("/") and ".." not in parts:
            with contextlib.suppress(OSError, errors.CheckpointError):
                actual = of_file(root / name)
        if actual != digest:
            names.append(name)
    return names


def write(folder: pathlib.Path) -> None:
    """Writes the digests of all files of a folder into it."""
    names = sorted({*os.listdir(folder)} - {FILE})
    atomic_write(folder / FILE, json.dumps(of_files(folder, names), indent=1))


def damage_of(folder: pathlib.Path) -> list[str]:
    """Names of the files of a folder that are not as `write` saw them; `DIGESTS` if that is gone.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        expected = foreign.parse(inside.read(folder / FILE, foreign.BYTES))
        foreign.check(expected, dict[str, str], str(folder / FILE))
        names = damaged(folder, expected)
    # A CheckpointError is a ValueError too.
    except (FileNotFoundError, ValueError):
        return [FILE]
    # A file that nobody wrote down might be read instead of the one that was.
    present = {file.relative_to(folder).as_posix() for file in inside.files_under(folder)}
    return names + sorted(present - {*expected, FILE})

"""Measurements as JSON lines: where they came from, how they are kept and shown.

A file of rows only grows: `append` adds whole lines, whatever else writes to the file meanwhile,
and no row is ever changed or taken out. Of several rows of one thing the newest counts (`newest`).
"""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jprune import errors, measure
from jprune.runs.files import append_line, atomic_write, explained, make_folder, read_lines

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
SCHEMA = 1
"""Of the rows of runs (`jprune.compare.rows`); rows of other measurements have none."""

_log = logging.getLogger(__name__)


def provenance(*packages: str) -> Row:
    """Device, versions (with those of more packages), commit and command of this process."""
    versions = {
        **measure.versions(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
    # Relative to the repository: a row tells nothing about the machine's folders.
    script = os.path.relpath(sys.argv[0]) if sys.argv[0] else "-"
    if script.startswith("experiments"):
        module = script.removesuffix(".py").replace(os.sep, ".")
        script = f"-m {module.removesuffix('.__main__')}"
    return {
        "versions": versions,
        "device": measure.device(),
        "commit": measure.commit(),
        "command": " ".join(["python", script, *sys.argv[1:]]),
    }


def read(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file.

    A last line that a kill tore is left out, and a warning says so; `append` puts it apart.

    Raises:
        CheckpointError: another line is damaged, or a row is of a newer schema.
    """
    found = read_lines(path)
    if found.dropped:
        _log.warning("The last line of %s is torn and was left out.", path)
    for number, row in enumerate(found.records, start=1):
        schema = row.get("schema", SCHEMA)
        if not (isinstance(schema, int) and schema <= SCHEMA):
            raise errors.CheckpointError(
                f"{path}, line {number}, has schema {schema!r}; this version reads up to {SCHEMA}. "
                "Update the code, or write --results DIR with another folder."
            )
    return found.records


def append(path: Path, *rows: Row) -> None:
    """Adds rows to a file, each in one write; processes that share the file take turns.

    What a kill left of a last line goes to a file beside it that ends in `.torn`; a row that only
    lacks its newline gets one.

    Args:
        path: the file; made with its folder if it is not there.
        *rows: what to add. Numbers that JSON does not know become null.

    Raises:
        CheckpointError: the file cannot be written to.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows.jsonl"
        >>> append(path, {"net": "a"}), append(path, {"net": "b"})
        (None, None)
        >>> read(path)
        [{'net': 'a'}, {'net': 'b'}]
    """
    make_folder(path.parent)
    with _alone(path):
        for row in rows:
            append_line(path, row)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds a file's lock; its last line is whole then."""
    with explained(path), path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _mend(path, file)
        yield


def _mend(path: Path, file: Any) -> None:
    file.seek(0)
    content = file.read()
    torn = content[content.rfind(b"\n") + 1 :]
    if not torn:
        return
    try:
        json.loads(torn)
    except ValueError:
        apart = path.with_name(f"{path.name}.torn")
        with apart.open("ab") as kept:
            kept.write(torn + b"\n")
        file.truncate(len(content) - len(torn))
        _log.warning("The last line of %s is torn and was put into %s.", path, apart.name)
    else:  # a beginning of an object is no JSON: this one is whole
        file.write(b"\n")
        file.flush()


def newest(rows: Iterable[Row], key: str) -> list[Row]:
    """Of all rows with the same value at `key`, the last.

    Example:
        >>> newest([{"net": "a", "ms": 2}, {"net": "b", "ms": 3}, {"net": "a", "ms": 1}], "net")
        [{'net': 'a', 'ms': 1}, {'net': 'b', 'ms': 3}]
    """
    return list({row[key]: row for row in rows}.values())


def keep(path: Path, rows: Iterable[Row], key: str) -> list[Row]:
    """Adds rows to a file, which keeps the older ones too; returns the newest of every `key`.

    Whoever reads the file takes `newest(read(path), key)`.
    """
    append(path, *rows)
    return newest(read(path), key)


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    make_folder(path.parent)
    atomic_write(path, text)


def markdown(titles: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers are aligned to the right by their titles' ending `:`."""
    ruler = ["---:" if title.endswith(":") else "---" for title in titles]
    rows = [[title.removesuffix(":") for title in titles], ruler, *lines]
    return "".join("| " + " | ".join(str(cell) for cell in row) + " |\n" for row in rows)

"""Measurements as JSON lines: where they came from, how they are kept and shown."""

import importlib.metadata
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jprune import measure
from jprune.train.files import atomic_write, make_folder

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"


def provenance(*packages: str) -> Row:
    """Device, versions (with those of more packages), commit and command of this process."""
    versions = {
        **measure.versions(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
    # Relative to the repository: a row tells nothing about the machine's folders.
    script = os.path.relpath(sys.argv[0]) if sys.argv[0] else "python"
    return {
        "versions": versions,
        "device": measure.device(),
        "commit": measure.commit(),
        "command": " ".join(["python", script, *sys.argv[1:]]),
    }


def read(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(path: Path, rows: Iterable[Row], key: str) -> list[Row]:
    """Adds rows to a file, in place of those with the same `key`; returns all of them."""
    merged = {row[key]: row for row in (*read(path), *rows)}
    write(path, "".join(json.dumps(row) + "\n" for row in merged.values()))
    return list(merged.values())


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    make_folder(path.parent)
    atomic_write(path, text)


def markdown(titles: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers are aligned to the right by their titles' ending `:`."""
    ruler = ["---:" if title.endswith(":") else "---" for title in titles]
    rows = [[title.removesuffix(":") for title in titles], ruler, *lines]
    return "".join("| " + " | ".join(str(cell) for cell in row) + " |\n" for row in rows)

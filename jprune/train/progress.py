"""Progress bars with an honest time left; plain lines where there is no terminal."""

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter:
    """Says on standard error what a run is doing.

    On a terminal a bar per stage, whose time left is that of the last steps; else one line when a
    stage ends; with `quiet` nothing.
    """

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=quiet or not sys.stderr.isatty(),
        )
        self.current: TaskID | None = None
        self.began = time.monotonic()

    def __enter__(self) -> "Reporter":
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def begin(self, name: str, total: int = 1, done: int = 0) -> None:
        """A stage begins (or goes on at `done` of `total`)."""
        self.began = time.monotonic()
        self.current = self.bars.add_task(name, total=total, completed=done, note="")

    def advance(self, done: int, note: str = "") -> None:
        """So much is done; the note stands beside the bar."""
        if self.current is not None:
            fields = {"note": note} if note else {}
            self.bars.update(self.current, completed=done, **fields)

    def end(self, name: str, note: str = "") -> None:
        """A stage has ended."""
        if self.current is not None:
            total = self.bars.tasks[self.current].total
            self.bars.update(self.current, completed=total, note=note)
        if self.bars.disable:
            seconds = time.monotonic() - self.began
            self.console.print(f"{name:<10} {seconds:7.1f} s  {note}".rstrip())

    def say(self, text: str) -> None:
        """A line above the bars."""
        self.console.print(text)

"""What a run shows while it works, on the error stream: bars, lines, or nothing."""

import sys
import time
from typing import TextIO

from rich import progress as bars
from rich.console import Console

from jprune.base import Progress
from jprune.foreign import line

LONGEST = 1000
"""Characters of a note; names in it may be from a file, so it is escaped."""

__all__ = ["Bars", "Lines", "Progress", "Silent", "briefly", "described"]


class Silent:
    """Shows nothing."""

    def begin(self, stage: str, number: int, of: int, steps: int, done: int) -> None:
        """Nothing."""

    def advance(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing."""

    def epoch(self, epoch: int, of: int, metrics: dict[str, float]) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines:
    """A line per epoch and per stage: for logs.

    Args:
        stream: where to; None is the error stream.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._stage = ""
        self._since = 0.0

    def begin(self, stage: str, number: int, of: int, steps: int, done: int) -> None:
        """Remembers the stage; prints a line if it goes on after a stop."""
        self._stage, self._since = f"[{number}/{of}] {stage}", time.perf_counter()
        if done:
            self.note(f"{self._stage}: goes on after step {done} of {steps}")

    def advance(self, step: int, metrics: dict[str, float]) -> None:
        """Shows nothing: there are too many steps to print a line for each."""

    def epoch(self, epoch: int, of: int, metrics: dict[str, float]) -> None:
        """A line."""
        self.note(f"{self._stage}: epoch {epoch} of {of}, {described(metrics)}")

    def end(self) -> None:
        """A line with the time that it took."""
        self.note(f"{self._stage}: done in {time.perf_counter() - self._since:.1f} s")

    def note(self, text: str) -> None:
        """The line."""
        # Logs are read while the run goes on.
        print(line(text, LONGEST), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing: lines leave nothing behind."""


class Bars:
    """A bar per stage with the time left: for terminals.

    The time left is that of the stage, from the speed of its latest steps. The first step, which
    compiles, does not count, so at the beginning there is none.

    Args:
        console: where to; None is the error stream.
    """

    def __init__(self, console: Console | None = None):
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=12),
            bars.TaskProgressColumn(),
            bars.TimeRemainingColumn(elapsed_when_finished=True),
            bars.TextColumn("{task.fields[metrics]}"),
            console=Console(stderr=True) if console is None else console,
            # Seconds: the mean over a minute is steady, and still follows a machine that slows
            # down.
            speed_estimate_period=60,
        )
        self._bars.start()
        self._task = bars.TaskID(0)
        self._ticking = False

    def begin(self, stage: str, number: int, of: int, steps: int, done: int) -> None:
        """A new bar; for a stage without steps one that only shows that something runs."""
        self._ticking = not steps
        self._task = self._bars.add_task(
            f"{number}/{of} {stage}",
            total=steps or None,
            completed=done,
            start=self._ticking,
            metrics="",
        )

    def advance(self, step: int, metrics: dict[str, float]) -> None:
        """Moves the bar."""
        # A bar whose clock runs while XLA compiles would promise hours.
        if not self._ticking:  # the clock starts when the first step is through
            self._ticking = True
            self._bars.start_task(self._task)
        self._bars.update(self._task, completed=step)
        if metrics:
            self._bars.update(self._task, metrics=briefly(metrics))

    def epoch(self, epoch: int, of: int, metrics: dict[str, float]) -> None:
        """Shows its metrics beside the bar."""
        del epoch, of
        self._bars.update(self._task, metrics=briefly(metrics))

    def end(self) -> None:
        """Fills the bar."""
        # Also of a stage that had no steps and so no total.
        self._bars.update(self._task, total=1, completed=1)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(line(text, LONGEST), highlight=False, markup=False)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self._bars.stop()


def briefly(metrics: dict[str, float]) -> str:
    """The loss and one accuracy (on the validation split if there is one), for 80 columns.

    Example:
        >>> briefly({"loss": 0.25, "accuracy": 0.5, "validation_accuracy": 0.4})
        'loss 0.25, validation 0.4'
        >>> briefly({"loss": 0.25, "accuracy": 0.5})
        'loss 0.25, accuracy 0.5'
    """
    shown = {"loss": metrics.get("loss"), "validation": metrics.get("validation_accuracy")}
    if shown["validation"] is None:
        shown = {"loss": metrics.get("loss"), "accuracy": metrics.get("accuracy")}
    return described({name: value for name, value in shown.items() if value is not None})


def described(metrics: dict[str, float]) -> str:
    """Metrics in a few words.

    Example:
        >>> described({"loss": 0.25, "validation_accuracy": 0.5})
        'loss 0.25, validation accuracy 0.5'
    """
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items())

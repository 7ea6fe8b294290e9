"""What a sweep shows: one bar over all runs with the time left, and what every worker is at."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from rich import progress as bars
from rich.console import Console, RenderableType
from rich.text import Text

import jprune
from experiments.sweep import Run
from jprune.compare.rows import Row
from jprune.data.table import find
from jprune.job import main as jobs
from jprune.job.nets import net_for
from jprune.report import text
from jprune.runs.progress import Silent

OFTEN = 0.5
"""Seconds between two reports of steps."""


class Reports(Silent):
    """Turns what a worker tells into messages.

    Args:
        send: takes a message: a word, then plain values.
    """

    def __init__(self, send: Callable[[tuple[Any, ...]], None]):
        self._send = send
        self._stage, self._sent = "", 0.0

    def started(self, run: Run) -> None:
        self._send(("started", run.id))

    def finished(self, run: Run, seconds: float) -> None:
        self._send(("finished", run.id, seconds))

    def failed(self, run: Run, why: str) -> None:
        self._send(("failed", run.id, why))

    def note(self, text: str) -> None:
        self._send(("note", text))

    def begin(self, stage: str, number: int, of: int, steps: int, done: int) -> None:
        self._stage = f"{number}/{of} {stage}"
        self._send(("stage", self._stage))
        self._steps = steps

    def advance(self, step: int, metrics: dict[str, float]) -> None:
        if time.monotonic() - self._sent > OFTEN:
            self._sent = time.monotonic()
            self._send(("stage", f"{self._stage} {step}/{self._steps}"))


class Forecast:
    """How long runs will take, from those that are over.

    A run takes as long as others of its net, method and budget; where there are none, of its net
    and method, or of its net and kind; else as long as all others for the same work.
    """

    def __init__(self, work: Callable[[Run], float]):
        self._work = work
        self._seconds: dict[tuple[Any, ...], list[float]] = {}
        self._rates: list[float] = []

    def add(self, run: Run, seconds: float) -> None:
        """A run that is over."""
        for key in self._keys(run):
            self._seconds.setdefault(key, []).append(seconds)
        self._rates.append(seconds / self._work(run))

    def of(self, run: Run) -> float | None:
        """Seconds that a run will take; None while nothing is known.

        Example:
            >>> from experiments.sweep import Net, Sweep, runs
            >>> nets = (Net("lenet5", "mnist"), Net("resnet8", "cifar10"))
            >>> planned = runs(Sweep(nets, ("l1", "l2"), macs=(0.5,), seeds=(0,)))
            >>> forecast = Forecast(lambda run: 3.0 if run.job.model == "resnet8" else 1.0)
            >>> _, l1, l2, dense, _, _ = planned
            >>> forecast.of(l2) is None
            True
            >>> forecast.add(l1, 20.0)
            >>> forecast.of(l2), forecast.of(dense)
            (20.0, 60.0)
        """
        for key in self._keys(run):
            if key in self._seconds:
                return sum(self._seconds[key]) / len(self._seconds[key])
        if not self._rates:
            return None
        return self._work(run) * sum(self._rates) / len(self._rates)

    @staticmethod
    def _keys(run: Run) -> list[tuple[Any, ...]]:
        job = run.job
        net = job.model, job.data, job.train_images
        return [(*net, job.method, str(run.budget)), (*net, job.method), (*net, run.kind)]


def work_of(runs: Sequence[Run]) -> Callable[[Run], float]:
    """Multiply-accumulates of the training of runs, roughly; each net is looked at once."""
    macs: dict[tuple[str, str], float] = {}
    for job in (run.job for run in runs):
        if (job.model, job.data) not in macs:
            net = net_for(job.model, job.data)
            shapes = jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)))
            macs[job.model, job.data] = float(jprune.cost(net.fn, shapes, net.example).macs)

    def work(run: Run) -> float:
        job = run.job
        usual = jobs.USUAL.get(job.data, jobs.USUAL["cifar10"])
        epochs = job.epochs or usual.epochs
        if run.kind in ("rate", "method"):
            epochs = job.finetune_epochs or usual.finetune_epochs
        images = job.train_images or find(job.data).sizes["train"]
        if job.max_steps is not None:
            images = min(images, job.max_steps * (job.batch_size or usual.batch_size) / epochs)
        return macs[job.model, job.data] * epochs * images * max(1, len(run.seeds))

    return work


class Show:
    """Shows a sweep on the error stream: a bar in a terminal, else a line a run.

    Args:
        planned: all runs.
        todo: those that are to be done.
        done: rows that there are, by id: they tell how long runs take.
        workers: how many work at a time.
        quiet: show nothing.
    """

    def __init__(
        self,
        planned: Sequence[Run],
        todo: Sequence[Run],
        done: Mapping[str, Row],
        workers: int,
        quiet: bool = False,
    ):
        self._runs = {run.id: run for run in planned}
        self._todo = {run.id: run for run in todo}
        self._total = len(todo)
        self._workers = workers
        self._current: dict[str, float] = {}
        self._forecast = Forecast(work_of(planned) if todo else lambda run: 1.0)
        for run in planned if todo else ():
            if run.id in done:
                self._forecast.add(run, seconds_of(done[run.id]))
        self.failures: dict[str, str] = {}
        self._console = None if quiet else Console(stderr=True, soft_wrap=True)
        self._bars = None
        if todo and self._console is not None and sys.stderr.isatty():
            self._bars, self._bar, self._lines = _bars(self._console, self._total, workers)

    def teller(self, worker: int) -> Reports:
        """For a worker of this process."""
        return Reports(lambda message: self.receive(worker, message))

    def receive(self, worker: int, message: tuple[Any, ...]) -> None:
        """A message of `Reports`."""
        getattr(self, f"_{message[0]}")(worker, *message[1:])
        if self._bars is not None:
            done = self._total - len(self._todo)
            self._bars.update(self._bar, completed=done, left=self.left())

    def left(self) -> str:
        """The time that all runs together will still take, in words; "" while it is not known.

        A run that has taken longer than was thought is thought to end now.
        """
        now, seconds = time.monotonic(), 0.0
        for run in self._todo.values():
            expected = self._forecast.of(run)
            if expected is None:
                return ""
            seconds += max(0.0, expected - (now - self._current.get(run.id, now)))
        return f"about {text.seconds(seconds / min(self._workers, max(1, len(self._todo))))} left"

    def say(self, words: str) -> None:
        """A line."""
        if self._console is not None:
            self._console.print(words, highlight=False, markup=False)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _started(self, worker: int, id: str) -> None:
        self._current[id] = time.monotonic()
        self._line(worker, self._runs[id].title)

    def _finished(self, worker: int, id: str, seconds: float) -> None:
        run = self._todo.pop(id, self._runs[id])
        self._forecast.add(run, seconds)
        self._line(worker, "")
        if self._bars is None:
            count, soon = f"{self._total - len(self._todo)} of {self._total}", self.left()
            self.say(f"{count}: {run.title}: {text.seconds(seconds)}" + (soon and f"; {soon}"))

    def _failed(self, worker: int, id: str, why: str) -> None:
        self._todo.pop(id, None)
        self._line(worker, "")
        if id not in self.failures:
            self.failures[id] = why
            self.say(f"{self._runs[id].title} failed: {why}")

    def _note(self, worker: int, words: str) -> None:
        self.say(words)

    def _stage(self, worker: int, words: str) -> None:
        if self._bars is not None:
            self._bars.update(self._lines[worker], stage=words)

    def _line(self, worker: int, title: str) -> None:
        if self._bars is not None:
            self._bars.update(self._lines[worker], description=f"  {title}", stage="")


class _Bars(bars.Progress):
    """The first task with its bar, the others as lines of text."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks[:1])
        for line in self.tasks[1:]:
            yield Text(f"{line.description}  {line.fields['stage']}")


def _bars(
    console: Console, total: int, workers: int
) -> tuple[bars.Progress, bars.TaskID, list[bars.TaskID]]:
    """A bar for all, and a line a worker."""
    made = _Bars(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=20),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[left]}"),
        console=console,
    )
    bar = made.add_task("runs", total=total, left="")
    lines = [made.add_task("", stage="") for _ in range(workers)]
    made.start()
    return made, bar, lines


def seconds_of(row: Row) -> float:
    """Seconds of a finished run, without the training of the dense net that it shares.

    Example:
        >>> seconds_of({"method": "l1", "wall_s": {"train": 30.0, "prune": 1.0, "finetune": 9.0}})
        10.0
    """
    shared = 0.0 if row["method"] == "dense" else row["wall_s"].get("train", 0.0)
    return sum(row["wall_s"].values()) - shared

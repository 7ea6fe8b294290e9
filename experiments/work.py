"""Doing the runs of a sweep: whoever is free takes one that nobody has, until none is left.

A process claims a run by a lock that dies with it, goes on with the run's directory where the last
one stopped, and appends a row. So any number of processes may work on one sweep, and each may be
killed at any moment: the same command then does what is not done.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from experiments import rows
from experiments.perform import Place, perform
from experiments.sweep import Run
from jprune import errors
from jprune.compare.rows import Row
from jprune.runs.files import locked_name, make_folder
from jprune.runs.progress import Progress

PATIENCE = 0.2
"""Seconds between two looks at what other processes have done."""


class Teller(Progress, Protocol):
    """Told what a worker does, and the stages of its runs."""

    def started(self, run: Run) -> None:
        """A run begins, or goes on."""
        ...

    def finished(self, run: Run, seconds: float) -> None:
        """A run is over."""
        ...

    def failed(self, run: Run, why: str) -> None:
        """A run ended as it should not."""
        ...


class Kept:
    """The rows of all results; files that have not changed are not read again."""

    def __init__(self, results: Path):
        self._results = results
        self._files: dict[Path, tuple[tuple[int, int], dict[str, Row]]] = {}

    def rows(self) -> dict[str, Row]:
        """{id: row}, of rows that have one.

        Raises:
            CheckpointError: a row is damaged, or of a newer schema.
        """
        for file in sorted(self._results.rglob("*.jsonl")):
            status = file.stat()
            stamp = status.st_mtime_ns, status.st_size
            if file not in self._files or self._files[file][0] != stamp:
                found = {row["id"]: row for row in rows.read(file) if "id" in row}
                self._files[file] = stamp, found
        return {id: row for _, found in self._files.values() for id, row in found.items()}


def left(runs: Sequence[Run], place: Place, done: dict[str, Row]) -> list[Run]:
    """Runs that are to be done: those that lack their row, and what they need.

    Args:
        runs: of the sweep, each behind those that it needs.
        place: where they are.
        done: rows by id.

    Raises:
        CheckpointError: a row has the id of a run, and other settings.
    """
    found: list[Run] = []
    needed: set[str] = set()
    for run in reversed(runs):
        if run.id in done:
            _check_same(run, done[run.id])
        lacks_row = run.kept and run.id not in done
        if lacks_row or (run.id in needed and not place.is_over(run)):
            found.append(run)
            needed |= set(run.needs)
    return found[::-1]


def share_rows(runs: Sequence[Run], place: Place, done: dict[str, Row]) -> None:
    """Copies the rows that other sweeps have of these runs, so that this one's file is whole.

    Args:
        runs: of the sweep.
        place: where its rows go.
        done: all rows by id.
    """
    for run in runs:
        if run.kept and run.id in done:
            with contextlib.suppress(errors.InUseError), claimed(run, place):
                mine = rows.read(place.rows) if place.rows.exists() else []
                if all(row.get("id") != run.id for row in mine):
                    rows.append(place.rows, done[run.id])


def _check_same(run: Run, row: Row) -> None:
    differing = [
        f"{name} is {row.get(name)!r} there and {value!r} here"
        for name, value in run.identity.items()
        if row.get(name) != value
    ]
    if differing:
        raise errors.CheckpointError(
            f"a row has the id {run.id} and other settings: {'; '.join(differing)}. No two runs "
            "have one id: mend that line, or write --results DIR with another folder."
        )


class Worker:
    """A process that does runs.

    Args:
        runs: of the sweep.
        place: where everything goes.
        tell: is told what happens.
    """

    def __init__(self, runs: Sequence[Run], place: Place, tell: Teller):
        self._runs, self._place, self._tell = runs, place, tell
        self._by_id = {run.id: run for run in runs}
        self._kept = Kept(place.results)
        self._waits_for = ""
        self.failed: dict[str, errors.JpruneError] = {}
        """Runs that failed, by id."""

    def work(self) -> None:
        """Does runs until none is left that nobody has."""
        while True:
            todo = left(self._runs, self._place, self._kept.rows())
            todo = [run for run in todo if not self._is_hopeless(run)]
            ready = [run for run in todo if not any(map(self._lacks, run.needs))]
            if any(map(self._take, ready)):  # one, then look again at what there is
                continue
            behind = [run for run in todo if run not in ready]
            if not behind:
                return
            # What they need is in other hands; if those die, we take it.
            self._wait(behind[0])

    def _lacks(self, need: str) -> bool:
        return not self._place.is_over(self._by_id[need]) and need not in self.failed

    def _is_hopeless(self, run: Run) -> bool:
        """Whether it failed, or what it needs did; of rates, some may diverge."""
        lost = [
            need
            for need in run.needs
            if need in self.failed
            and not (
                self._by_id[need].kind == "rate"
                and isinstance(self.failed[need], errors.DivergenceError)
            )
        ]
        if lost and run.id not in self.failed:
            self._fail(run, errors.JpruneError(f"it needs {lost[0]}, which failed"))
        return run.id in self.failed

    def _fail(self, run: Run, error: errors.JpruneError) -> None:
        self.failed[run.id] = error
        self._tell.failed(run, str(error))

    def _wait(self, run: Run) -> None:
        need = next(filter(self._lacks, run.needs))
        if need != self._waits_for:
            self._waits_for = need
            self._tell.note(f"waiting for {self._by_id[need].title}, which another process does")
        time.sleep(PATIENCE)

    def _take(self, run: Run) -> bool:
        """Does a run, unless another process has it."""
        try:
            with claimed(run, self._place):
                done = self._kept.rows()
                if run in left(self._runs, self._place, done):  # else somebody was quicker
                    self._do(run, done)
        except errors.InUseError:
            return False
        return True

    def _do(self, run: Run, done: dict[str, Row]) -> None:
        began = time.perf_counter()
        self._tell.started(run)
        try:
            needs = {need: self._by_id[need] for need in run.needs}
            row = perform(run, needs, self._place, self._tell)
            if run.kept and run.id not in done:
                rows.append(self._place.rows, row)
        except errors.InUseError:
            raise
        except errors.JpruneError as error:
            self._fail(run, error)
        else:
            self._tell.finished(run, time.perf_counter() - began)


@contextlib.contextmanager
def claimed(run: Run, place: Place) -> Iterator[None]:
    """Keeps a run to this process until it is over, or the process dies.

    Both its directory and its row: processes may share one of the two folders, or both.

    Raises:
        InUseError: another process has it; the message says which.
    """
    with contextlib.ExitStack() as stack:
        for folder in dict.fromkeys((place.runs, place.rows.parent)):
            name = make_folder(folder / ".claims") / run.id
            stack.enter_context(locked_name(name, run.title))
        yield

"""The runner: a configuration in, rows out.

    python -m experiments.run CONFIG [--workers 2] [--seeds 0 1] [--nets.0.epochs 2] ...

CONFIG is a file of `experiments/configs`; every one of its settings can be written over. Runs that
have a row are not run again, and one that was stopped goes on from its last checkpoint, so the same
command can be stopped and started at any moment, and several processes may work on it.
"""

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import pkgutil
import shlex
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Annotated

import tyro

from experiments import configs, rows
from experiments.perform import Place
from experiments.show import Reports, Show
from experiments.sweep import Run, Sweep, beside, code_version, runs
from experiments.work import Kept, Worker, claimed, left, share_rows
from jprune import errors
from jprune.compare.rows import Row
from jprune.measure.provenance import usable_cores


@dataclasses.dataclass(frozen=True)
class Given:
    """How a sweep is run, apart from what it is."""

    sweep: Annotated[Sweep, tyro.conf.arg(name="")]
    """What is run."""
    workers: int = 1
    """Processes, each with its share of the cores: 2 for small nets on two cores."""
    only: tuple[str, ...] = ()
    """Names of nets: the others of the sweep are left for another day."""
    runs: Path = Path("runs/sweeps")
    """Folder of the run directories."""
    results: Path = rows.RESULTS
    """Folder of the rows."""
    quiet: bool = False
    """Show no progress."""


def names() -> list[str]:
    """Configurations that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(configs.__path__))


def remarks(name: str) -> str:
    """What a configuration says of what came out, for its page: its `REMARKS`, or nothing.

    Example:
        >>> remarks("smoke")
        ''
    """
    if name not in names():
        return ""
    return getattr(importlib.import_module(f"experiments.configs.{name}"), "REMARKS", "")


def find(name: str) -> Sweep:
    """A configuration.

    Raises:
        ArgumentError: there is none of this name; the message suggests the nearest.
    """
    if name not in names():
        raise errors.ArgumentError(
            f"there is no configuration {name!r}; {errors.nearest(name, names())}"
            f"experiments/configs has {', '.join(names())}."
        )
    return importlib.import_module(f"experiments.configs.{name}").CONFIG


def main(words: Sequence[str]) -> int:
    """Runs what the words say.

    Returns:
        0 where all runs have their rows, 1 where some failed or are in other hands.
    """
    if not words or words[0].startswith("-"):
        print(f"{__doc__}\nConfigurations: {', '.join(names())}")
        return 0 if words[:1] in (["-h"], ["--help"]) else 2
    try:
        usual = Given(find(words[0]))
        prog = f"python -m experiments.run {words[0]}"
        given = tyro.cli(Given, default=usual, args=list(words[1:]), prog=prog)
        command = shlex.join(["python", "-m", "experiments.run", *words])
        return run(given, words[0], command)
    except errors.JpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(given: Given, config: str, command: str) -> int:
    """Runs a sweep with its workers, and shows it.

    Raises:
        ArgumentError: settings that do not go together.
        CheckpointError: results that cannot be read, or that have an id with other settings.
    """
    cores = usable_cores()
    if not 1 <= given.workers <= cores:
        raise errors.ArgumentError(
            f"workers={given.workers} for {cores} cores; write a number from 1 to {cores}."
        )
    planned = _chosen(runs(given.sweep), given.only)
    place = Place(config, given.sweep.family or config, given.runs, given.results, command)
    kept = Kept(place.results)
    show = _done(given, planned, place, kept)
    # What stands beside a method is known once its row is there.
    while more := _new(beside(given.sweep, planned, kept.rows()), planned):
        planned += more
        failures = show.failures
        show = _done(given, planned, place, kept)
        show.failures.update(failures)
    return _ended(planned, place, kept.rows(), show)


def _new(more: Sequence[Run], planned: Sequence[Run]) -> list[Run]:
    there = {each.id for each in planned}
    return [each for each in more if each.id not in there]


def _done(given: Given, planned: Sequence[Run], place: Place, kept: Kept) -> Show:
    """Does the runs that are left, and shows them."""
    done = kept.rows()
    todo = left(planned, place, done)
    share_rows(planned, place, done)
    show = Show(planned, todo, done, given.workers, quiet=given.quiet)
    with contextlib.closing(show):
        if todo and given.workers == 1:
            worker = Worker(planned, place, show.teller(0))
            worker.work()
        elif todo:
            _employ(given, planned, place, show)
    return show


def _chosen(planned: list[Run], only: Sequence[str]) -> list[Run]:
    """The runs of some nets.

    Raises:
        ArgumentError: the sweep has no such net.
    """
    known = sorted({each.job.model for each in planned})
    for name in only:
        if name not in known:
            raise errors.ArgumentError(
                f"only={name!r}; {errors.nearest(name, known)}the nets of this sweep are "
                f"{', '.join(known)}."
            )
    return [each for each in planned if not only or each.job.model in only]


def _employ(given: Given, planned: Sequence[Run], place: Place, show: Show) -> None:
    """Runs the sweep in processes of their own, and shows what they tell, until all are over.

    Raises:
        JpruneError: a worker met something that no run can go on with.
    """
    context = multiprocessing.get_context("spawn")
    ears: dict[Connection, int] = {}
    workers = []
    for number in range(given.workers):
        ear, mouth = context.Pipe(duplex=False)
        worker = context.Process(
            target=_employed, args=(planned, place, code_version(), (number, given.workers), mouth)
        )
        worker.start()
        mouth.close()
        ears[ear] = number
        workers.append(worker)
    fatal = ""
    while ears:
        ready = wait(list(ears))
        for ear in [ear for ear in ears if ear in ready]:
            try:
                word, *rest = ear.recv()
            except EOFError:  # it is over
                del ears[ear]
                continue
            if word == "fatal":
                (fatal,) = rest
            else:
                show.receive(ears[ear], (word, *rest))
    for worker in workers:
        worker.join()
    dead = [str(worker.exitcode) for worker in workers if worker.exitcode]
    if fatal or dead:
        raise errors.JpruneError(
            fatal or f"a worker died (exit code {dead[0]}); the same command goes on."
        )


def _employed(
    planned: Sequence[Run], place: Place, code: str, share: tuple[int, int], mouth: Connection
) -> None:
    """The life of a worker: its share of the cores, then runs until none is left."""
    _die_with_parent()
    first, workers = share
    if hasattr(os, "sched_setaffinity"):  # before JAX counts its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[first::workers])
    try:
        if code_version() != code:
            raise errors.CheckpointError(
                "the source of jprune has changed since this command began; start it again."
            )
        Worker(planned, place, Reports(mouth.send)).work()
    except errors.JpruneError as error:
        mouth.send(("fatal", str(error)))


def _die_with_parent() -> None:
    """A killed runner leaves no workers behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ended(planned: Sequence[Run], place: Place, done: dict[str, Row], show: Show) -> int:
    """Says what there is and what is missing."""
    wanted = [each for each in planned if each.kept]
    missing = [each for each in wanted if each.id not in done]
    show.say(f"{len(wanted) - len(missing)} of {len(wanted)} runs have their rows ({place.rows})")
    for each in missing:
        if each.id in show.failures:
            show.say(f"failed: {each.title}: {show.failures[each.id]}")
            continue
        try:
            with claimed(each, place):
                show.say(f"missing: {each.title}; the same command does it")
        except errors.InUseError as error:
            show.say(f"left alone: {error}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

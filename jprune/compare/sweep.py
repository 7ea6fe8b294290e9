"""Making a comparison: methods x budgets x seeds, each by the main job, in one folder.

    runs/taylor-macs0.5-seed0/      as `jprune prune` leaves it
    rates/l1-macs0.5-seed0-rate0.1/ tried while the learning rate was chosen
    rows.jsonl                      a row per finished run, in the order of the sweep
    comparison.json .html .png      written by `page.write`

The same sweep on the same folder goes on where it stopped. The dense net of a seed is trained once:
the training is the first stage of every run, with the same settings and key, so later runs of the
seed take it over from the first.
"""

import dataclasses
import pathlib
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jprune import errors, measure, recipes
from jprune.base import Budget, Task
from jprune.compare.protocol import BASELINES
from jprune.compare.rows import Row, row_of
from jprune.compare.words import budget_text, listed
from jprune.job import main as jobs
from jprune.job.changes import NO_CHANGES, Changes
from jprune.job.main import Job
from jprune.recipes.options import written
from jprune.report import text
from jprune.runs.directory import open_directory
from jprune.runs.files import PathLike, explained, locked, make_folder, read_lines, write_lines
from jprune.runs.inside import expect, guarded, remove_run
from jprune.runs.progress import Progress

RATES = (0.3, 1.0, 3.0)
"""Learning rates that are tried, as multiples of the usual one."""
TRAINING = pathlib.Path("stages") / "01-train"
"""Where a run has the training of its dense net."""
CHOOSING = ("l1", 0)
"""Method and seed that the learning rate is chosen with."""


class Sweep(NamedTuple):
    """The runs of a comparison, before they are made.

    Attributes:
        job: settings of all runs; its method, budget, seed and options are replaced by the sweep's.
        methods: names, baselines included.
        budgets: each method runs at each of them.
        seeds: each method and budget runs with each of them.
        command: how it was called.
        options: {method: its options}, where they are not the usual ones.
    """

    job: Job
    methods: tuple[str, ...]
    budgets: tuple[Budget, ...]
    seeds: tuple[int, ...]
    command: str
    options: Mapping[str, Mapping[str, Any]] = {}


class Swept(NamedTuple):
    """The rows of a sweep, and notes for people."""

    rows: list[Row]
    notes: list[str]


def with_baselines(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods, with the baselines that stand beside every comparison.

    Raises:
        ArgumentError: an unknown method, or `dense`, which every run begins with.

    Example:
        >>> with_baselines(["taylor", "l1"])[:3]
        ('taylor', 'l1', 'random')
    """
    for name in methods:
        recipes.find(name)
    return tuple(dict.fromkeys([*methods, *(n for n in BASELINES if n in recipes.METHODS)]))


def run(sweep: Sweep, out: PathLike, progress: Progress) -> Swept:
    """Runs a sweep, or goes on with it.

    Where the job has no `finetune_learning_rate`, it is chosen: three rates, L1, seed 0, the first
    budget, by the accuracy on the validation split after fine-tuning; all runs get the winner.

    Args:
        sweep: what is to be run; baselines are not added here.
        out: folder of everything.
        progress: is shown what happens.

    Returns:
        A row per run that came to its end, and notes: how the learning rate came about, and which
        runs diverged.

    Raises:
        ArgumentError: an unknown name, or settings that do not go together.
        BudgetError: a budget that the net cannot meet; found before anything is trained.
        CheckpointError: the folder holds runs with other settings.
        InUseError: another process makes a comparison in the folder.
    """
    folder = make_folder(out)
    with locked(folder):
        # Runs guard what is in their own folders (`runs/inside.py`).
        for name in ("runs", "rates"):
            expect(folder / name, stat.S_IFDIR)
        return _run(sweep, folder, progress)


def _run(sweep: Sweep, folder: pathlib.Path, progress: Progress) -> Swept:
    task, remarks = jobs.task_for(sweep.job), tuple(_said(sweep))
    # Patterns become names of groups here, once, and not in each of the runs.
    whole = tuple(jobs.with_frozen(task, each, sweep.job.freeze) for each in sweep.budgets)
    sweep = sweep._replace(budgets=whole, job=dataclasses.replace(sweep.job, freeze=()))
    # A budget that cannot be met is refused before the first of many trainings, not after.
    for budget in sweep.budgets:
        jobs.check_budget(task, budget)
    chosen = _learning_rate(sweep, task, folder, progress)
    notes = [chosen.note, *remarks]
    settled = dataclasses.replace(sweep.job, finetune_learning_rate=chosen.rate)
    planned = [_job(sweep._replace(job=settled), *each) for each in _each(sweep)]
    rows: list[Row] = []
    # {seed: folder of a run that holds its dense net}, to be taken over by all later runs of the
    # seed.
    first = {CHOOSING[1]: chosen.trained} if chosen.trained else {}
    clock = _Clock(len(planned), progress)
    for job in planned:
        path = folder / "runs" / _name(job)
        clock.begin(job, fresh=not (path / "result.json").exists())
        try:
            row = _one(job, path, first.get(job.seed), sweep.command, task, progress)
        # A run that diverges is a result, not an end: the others go on, and a note says so.
        except errors.DivergenceError:
            notes.append(f"{job.method} at {_asked(job)} diverged with seed {job.seed}.")
            continue
        finally:
            clock.end()
        # Only after the run is over, so that a torn one is never shared.
        first.setdefault(job.seed, path)
        rows.append({**row, "config": folder.resolve().name})
        # After every run, whole: a sweep that is killed leaves rows that can be compared.
        write_lines(folder / "rows.jsonl", rows, digest=True)
    return Swept(rows, notes)


def _each(sweep: Sweep) -> Iterator[tuple[str, Budget, int]]:
    """All runs, seed by seed, so that a stopped sweep has whole comparisons of the first seeds."""
    for seed in sweep.seeds:
        for budget in sweep.budgets:
            for method in sweep.methods:
                yield method, budget, seed


def _job(sweep: Sweep, method: str, budget: Budget, seed: int) -> Job:
    options = sweep.options.get(method, {})
    return dataclasses.replace(sweep.job, method=method, budget=budget, seed=seed, options=options)


def _said(sweep: Sweep) -> Iterator[str]:
    """Sentences about the settings that are not the usual ones."""
    for method, options in sweep.options.items():
        settings = listed(f"{name}={written(value)}" for name, value in options.items())
        yield f"{method} was run with {settings}."
    if sweep.job.freeze:
        yield f"{listed(sweep.job.freeze)} stayed whole."
    if sweep.job.distill:
        yield f"Fine-tuning learned from the dense net's outputs too, by {sweep.job.distill:g}."


def _name(job: Job) -> str:
    return f"{job.method}-{job.budget.kind}{job.budget.value:g}-seed{job.seed}"


def _asked(job: Job) -> str:
    return budget_text((job.budget.kind, float(job.budget.value)))


def _one(
    job: Job,
    path: pathlib.Path,
    first: pathlib.Path | None,
    command: str,
    task: Task,
    progress: Progress,
) -> Row:
    """Makes a run, or finishes a stopped one; returns its row."""
    # A directory with a configuration has begun: it goes on by itself.
    if first is not None and not (path / "config.json").exists():
        share_training(job, first, path, task)
    jobs.prune(job, path, command, progress, task=task)
    return row_of(path)


def share_training(
    job: Job,
    first: pathlib.Path,
    path: pathlib.Path,
    task: Task,
    changes: Changes = NO_CHANGES,
) -> bool:
    """Gives a new run the dense net of another run of its seed, so that it is not trained again.

    Args:
        job: of the run that is opened.
        first: directory of a run with the same net, data, seed and training.
        path: directory of the run that is opened.
        task: of both.
        changes: of the recipe of the run that is opened.

    Returns:
        Whether there was something to share: a training that both runs begin with.
    """
    train, finetune = jobs.trainings(job, task)
    begins = next(iter(recipes.unrolled(jobs.recipe_of(job, train, finetune))), None)
    # Stages compare by their settings: equal ones with equal keys give equal nets.
    if train is None or begins != train or not (first / TRAINING / "DONE").exists():
        return False
    copy_training(job, first, path, task, changes)
    return True


def copy_training(
    job: Job,
    first: pathlib.Path,
    path: pathlib.Path,
    task: Task,
    changes: Changes = NO_CHANGES,
) -> None:
    """Makes a run directory whose first stage, the dense training, is copied from another run.

    Args:
        job: of the run that is opened.
        first: directory of a run that has trained it.
        path: directory of the run that is opened; it is there whole or not at all.
        task: of both.
        changes: of the recipe of the run that is opened.
    """
    train, finetune = jobs.trainings(job, task)
    config, about = jobs.config_of(job, train, finetune, changes), jobs.about(job)
    provenance = {"versions": measure.versions(), "device": measure.device()}
    # Under a hidden name beside it and renamed at the end: a kill leaves no half run behind.
    half = path.parent / f".{path.name}"
    if expect(half, stat.S_IFDIR):
        remove_run(guarded(half / path.name))
    directory = open_directory(half / path.name, config, about, provenance)
    # The records of the training move along, or the report of the new run would have no curve.
    records = read_lines(first / "records.jsonl").records
    directory.adopt(first / TRAINING, [record for record in records if record["stage"] == "train"])
    with explained(path):
        directory.path.replace(path)
    half.rmdir()


class _Chosen(NamedTuple):
    """The learning rate of fine-tuning."""

    rate: float
    note: str
    """Where it is from."""
    trained: pathlib.Path | None
    """A run with a trained dense net, where some were needed."""


def _learning_rate(sweep: Sweep, task: Task, folder: pathlib.Path, progress: Progress) -> _Chosen:
    rate_of_job = sweep.job.finetune_learning_rate
    if rate_of_job is not None:
        note = f"The learning rate of fine-tuning, {rate_of_job:g}, was given, not chosen."
        return _Chosen(rate_of_job, note, None)
    job = _job(sweep, CHOOSING[0], sweep.budgets[0], CHOOSING[1])
    usual = jobs.trainings(job, task)[1].learning_rate
    tried: dict[float, float] = {}
    first: pathlib.Path | None = None
    # Rounded to three digits, since the rate is part of the folder's name.
    for rate in (float(f"{factor * usual:.3g}") for factor in RATES):
        path = folder / "rates" / f"{_name(job)}-rate{rate:g}"
        progress.note(f"choosing the learning rate: {rate:g}")
        try:
            row = _one(
                dataclasses.replace(job, finetune_learning_rate=rate),
                path,
                first,
                sweep.command,
                task,
                progress,
            )
        except errors.DivergenceError:
            continue
        first = first or path
        tried[rate] = row["validation"]["pruned"]
    return _Chosen(*best_rate(tried, job.method), first)


def best_rate(tried: dict[float, float], method: str) -> tuple[float, str]:
    """The learning rate with the best validation accuracy; of equally good ones the smallest.

    Args:
        tried: {learning rate: accuracy on the validation split}, without those that diverged.
        method: that they were tried with.

    Returns:
        The rate, and a note.

    Raises:
        DivergenceError: all of them diverged.

    Example:
        >>> best_rate({0.015: 0.97, 0.05: 0.981}, "l1")
        (0.05, 'The learning rate of fine-tuning, 0.05, was chosen among 0.015 (97.0 %) and ...')
    """
    if not tried:
        raise errors.DivergenceError(
            "fine-tuning diverged at every learning rate that was tried. Write a smaller "
            "--finetune-learning-rate."
        )
    # Highest accuracy; of equals the smallest rate, which is the safer one for other budgets.
    best = min(tried, key=lambda rate: (-tried[rate], rate))
    each = listed(f"{rate:g} ({text.percent(accuracy)})" for rate, accuracy in tried.items())
    how = f"with {method}, seed {CHOOSING[1]}, by the validation split"
    return best, f"The learning rate of fine-tuning, {best:g}, was chosen among {each} {how}."


class _Clock:
    """Shows which run begins, and about how long the remaining ones will take."""

    def __init__(self, total: int, progress: Progress):
        self._total, self._progress = total, progress
        self._begun, self._timed, self._spent = 0, 0, 0.0
        self._since: float | None = None

    def begin(self, job: Job, fresh: bool) -> None:
        remaining = self._total - self._begun
        self._begun += 1
        # Runs that were done before take no time: they tell nothing of those that are left.
        self._since = time.monotonic() if fresh else None
        mean = self._spent / self._timed if self._timed else None
        soon = "" if mean is None else f", about {text.seconds(remaining * mean)} left"
        which = f"{job.method}, {_asked(job)}, seed {job.seed}"
        self._progress.note(f"run {self._begun} of {self._total}: {which}{soon}")

    def end(self) -> None:
        if self._since is not None:
            self._spent += time.monotonic() - self._since
            self._timed += 1

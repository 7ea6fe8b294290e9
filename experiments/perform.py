"""What a run of each kind does, and the row that is left of it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.reading import code_of
from experiments.seeds import train_together
from experiments.sweep import DENSE, WHOLE, Run
from jprune import measure
from jprune.base import Pruned, Stage, Task
from jprune.compare.rows import Row, row_of
from jprune.compare.sweep import TRAINING, best_rate, copy_training, share_training
from jprune.job import main as jobs
from jprune.job.finish import Export, Measure
from jprune.job.main import Job
from jprune.job.nets import net_for
from jprune.job.result import Asked, write_result
from jprune.recipes import Evaluate
from jprune.runs import checkpoint
from jprune.runs.directory import held, open_directory
from jprune.runs.execution import execute
from jprune.runs.files import make_folder, write_json
from jprune.runs.progress import Progress
from jprune.zoo import pretrained


class Place(NamedTuple):
    """Where a sweep leaves things."""

    config: str
    """Its name."""
    family: str
    """Folder of its rows."""
    runs: Path
    """Folder of run directories."""
    results: Path
    """Folder of all rows, those of other sweeps too."""
    command: str

    @property
    def rows(self) -> Path:
        """The file of this sweep's rows."""
        return self.results / self.family / f"{self.config}.jsonl"

    def of(self, run: Run) -> Path:
        """Its directory."""
        return self.runs / run.id

    def is_over(self, run: Run) -> bool:
        """Whether its directory is complete."""
        return (self.of(run) / "result.json").exists()


def perform(run: Run, needs: Mapping[str, Run], place: Place, progress: Progress) -> Row:
    """Does a run, or goes on with it.

    Args:
        run: what to do.
        needs: the runs that it needs, by id, all of them over but for rates that diverged.
        place: where everything goes.
        progress: is shown what happens.

    Returns:
        Its row; of little use where the run is not one to keep.
    """
    return KINDS[run.kind](run, needs, place, progress)


@functools.lru_cache(maxsize=2)  # runs of one net share the data, and what was compiled
def _task(model: str, data: str, train_images: int | None) -> Task:
    return jobs.task_for(Job(model, data, "l1", WHOLE, train_images=train_images))


def task_of(job: Job) -> Task:
    """Net and data of a job; those of the last two are kept."""
    return _task(job.model, job.data, job.train_images)


def _seeds(run: Run, needs: Mapping[str, Run], place: Place, progress: Progress) -> Row:
    """Trains the dense nets of all seeds, each into a directory that has this one stage."""
    del needs
    task = task_of(run.job)
    train, finetune = jobs.trainings(run.job, task)
    assert train is not None  # nets that are read are not planned to be trained
    keys = [jax.random.key(seed) for seed in run.seeds]
    starts = [_start(run.job, task, key) for key in keys]
    stage_keys = [jax.random.fold_in(key, 1) for key in keys]
    trained, seconds = train_together(train, starts, task, stage_keys, progress)
    for seed, found in zip(run.seeds, trained):
        job = dataclasses.replace(run.job, seed=seed)
        directory = open_directory(
            place.of(run) / f"seed{seed}",
            jobs.config_of(job, train, finetune),
            jobs.about(job),
            {},
            overwrite=True,
        )
        folder = make_folder(directory.path / TRAINING)
        for entry in found.records:
            directory.append(entry, seconds / len(trained))
        checkpoint.save(folder / "state", 0, found.pruned._asdict(), {})
        share = {"wall_s": round(seconds / len(trained), 3), "records": []}
        write_json(folder / "DONE", share)
    write_json(place.of(run) / "result.json", {"seconds": seconds})
    return {}


def _start(job: Job, task: Task, key: jax.Array) -> Pruned:
    if job.weights is None:
        return Pruned(task.init(jax.random.fold_in(key, 0)), None)
    return Pruned(pretrained.load(net_for(job.model, job.data), job.weights), None)


def _dense(run: Run, needs: Mapping[str, Run], place: Place, progress: Progress) -> Row:
    """Trains, measures and exports the net itself."""
    job, path, task = run.job, place.of(run), task_of(run.job)
    if needs and not (path / "config.json").exists():
        (together,) = needs.values()
        copy_training(job, place.of(together) / f"seed{job.seed}", path, task)
    train, finetune = jobs.trainings(job, task)
    provenance = {"versions": measure.versions(), "device": measure.device()}
    config = jobs.config_of(job, train, finetune)
    seconds = 0.0 if job.max_steps else run.measure_seconds
    stages: tuple[Stage, ...] = (
        *(() if train is None else (train,)),
        Evaluate("test", name="dense"),
        Evaluate("test", slim=True, name="pruned"),
        Export(path, task.fn, progress.note),
        Measure(path, task.fn, seconds),
    )
    key = jax.random.key(job.seed)
    asked = Asked(place.command, job.method, job.model, job.data, job.seed, job.budget)
    with held(path, config, jobs.about(job), provenance) as directory:
        pruned = execute(directory, stages, task, key, lambda: _start(job, task, key), progress)
        write_result(directory, asked, task, pruned)
    row = _row(run, place)
    accuracy = row["validation"]["dense"]
    nothing = dict.fromkeys(("budget", "before_finetune", "finetune", "prune_s"))
    return {**row, **nothing, "validation": {"dense": accuracy, "pruned": accuracy}}


def _pruned(run: Run, needs: Mapping[str, Run], place: Place, progress: Progress) -> Row:
    """The main job, from the dense net of the sweep, with the best of the rates that were tried."""
    job, path, task = run.job, place.of(run), task_of(run.job)
    rates = [need for need in needs.values() if need.kind == "rate"]
    tried = {
        need.job.finetune_learning_rate or 0.0: row_of(place.of(need))["validation"]["pruned"]
        for need in rates
        if place.is_over(need)
    }
    if rates and jobs.finetunes(job.method):
        rate, _ = best_rate(tried, "l1")
        job = dataclasses.replace(job, finetune_learning_rate=rate)
    if not (path / "config.json").exists():
        (dense,) = (need for need in needs.values() if need.kind == "dense")
        share_training(job, place.of(dense), path, task, run.changes)
    jobs.prune(
        job,
        path,
        place.command,
        progress,
        measure_seconds=run.measure_seconds,
        task=task,
        changes=run.changes,
    )
    row = _row(run, place)
    said = {f"{rate:g}": found for rate, found in tried.items()}
    return {**row, "finetune": {**row["finetune"], "tried": said or None}}


def _row(run: Run, place: Place) -> Row:
    row = row_of(place.of(run), place.config, run.job.train_images)
    method = None if run.job.method == DENSE else run.job.method
    code = {"method": code_of(method), "shared": code_of(None)}
    return {**row, "settings": run.settings, "code": code}


KINDS: dict[str, Callable[[Run, Mapping[str, Run], Place, Progress], Row]] = {
    "seeds": _seeds,
    "dense": _dense,
    "rate": _pruned,
    "method": _pruned,
}

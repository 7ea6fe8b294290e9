"""The main job: from a net and data to a small net, measured, exported and reported.

Every stage is skipped when it is done, so the same command goes on where it was stopped. The
order: train (or load), the stages of the recipe, slim, export, measure, report.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import data, errors, measure, recipes, zoo
from jprune.base import Data, Pruned, Stage, Task, Variables
from jprune.graph.slim import check_masks
from jprune.learners import Optimizer, evaluator
from jprune.learners.drive import Progress, drive
from jprune.recipes.stages import Train, groups_of, shapes_of
from jprune.train import checkpoint, finish
from jprune.train.config import Config
from jprune.train.directory import RunDirectory
from jprune.train.progress import Reporter
from jprune.train.task import task as make_task

CHECKPOINT_SECONDS = 30.0
"""A training stage is saved at least this often."""


def prune(
    config: Config,
    out: str | os.PathLike[str],
    *,
    command: str = "",
    data_dir: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Runs the main job, or goes on with it.

    Args:
        config: what decides the result.
        out: run directory.
        command: as the user typed it, for the record.
        data_dir: where prepared data sets are.
        overwrite: start anew where there is a run already.
        quiet: no progress.
        checkpoint_seconds: longest time between two checkpoints of a training stage.

    Returns:
        What is in `result.json`.

    Raises:
        JpruneError: any of its kinds, with one sentence on what to do.
    """
    budget, method = config.budget, recipes.find(config.method)
    task = task_of(config, data_dir)
    recipe = method.factory(settings_of(config))
    common = {
        "run": pathlib.Path(out).name,
        "data": config.data,
        "model": config.model,
        "method": config.method,
        "budget": {budget.kind: float(budget.value)},
        "seed": config.seed,
        "commit": measure.commit(),
    }
    first = {"versions": measure.versions(), "device": measure.device()}
    directory = RunDirectory(out, config.as_json(), common, first, overwrite)
    with Reporter(quiet) as reporter:
        job = Job(config, task, directory, reporter, checkpoint_seconds)
        job.dense()
        for stage in recipe:
            job.stage(stage)
        return finish.results(job, command, first)


def task_of(config: Config, data_dir: str | None) -> Task:
    """The net and the data of a config.

    Raises:
        ArgumentError: an unknown model or data set.
        DataError: the set is not prepared.
    """
    dataset = data.load(config.data, data_dir, config.seed, config.subset)
    return make_task(net_of(config, dataset), dataset)


def net_of(config: Config, dataset: Data) -> zoo.Net:
    """The net of a config, for a data set."""
    build = zoo.load if ":" in config.model else zoo.build
    return build(config.model, dataset.classes, dataset.shape, jnp.dtype(config.dtype))


def settings_of(config: Config) -> recipes.Settings:
    """What a recipe sees of a config."""
    return recipes.Settings(
        config.budget,
        config.finetune_epochs,
        Optimizer(config.finetune_learning_rate, weight_decay=config.weight_decay),
        config.batch_size,
        config.steps,
        config.schedule,
        config.rounds,
        config.allocator,
        config.calibration,
        config.recalibration,
    )


@dataclasses.dataclass
class Job:
    """A run on its way: the current net, and what its stages have found."""

    config: Config
    task: Task
    directory: RunDirectory
    reporter: Reporter
    checkpoint_seconds: float
    net: Pruned = dataclasses.field(default_factory=lambda: Pruned(None, None))
    dense_variables: Variables = None
    before_finetune: dict[str, Any] | None = None
    """Validation metrics behind the last pruning stage, and its unit masks' cost."""
    number: int = 0

    def __post_init__(self):
        self.groups = groups_of(self.task)
        self.validate = evaluator(self.task)

    def key(self) -> jax.Array:
        """The key of the next stage."""
        self.number += 1
        return jax.random.fold_in(jax.random.key(self.config.seed), self.number)

    def dense(self) -> None:
        """Trains or loads the dense net."""
        config, key = self.config, self.key()
        if config.weights is not None:
            weights = config.weights
            self.run("load", lambda folder: self.loaded(weights))
        else:
            optimizer = Optimizer(config.learning_rate, weight_decay=config.weight_decay)
            stage = Train(config.epochs, config.batch_size, optimizer, config.steps)
            initial = Pruned(jax.jit(self.task.init)(jax.random.fold_in(key, 0)), None)
            self.run("train", lambda folder: self.trained(stage, initial, key, folder))
        self.dense_variables = self.net.variables

    def stage(self, stage: Stage) -> None:
        """Runs one stage of the recipe."""
        key, before = self.key(), self.net
        if isinstance(stage, Train):
            self.run(stage.name, lambda folder: self.trained(stage, before, key, folder))
            return
        name = getattr(stage, "name", type(stage).__name__.lower())
        found = self.run(name, lambda folder: self.called(stage, before, key))
        if self.net.masks is not None:
            self.before_finetune = found

    def run(self, name: str, make: Callable[[pathlib.Path], Pruned]) -> dict[str, Any]:
        """A stage that changes the net; what it made is saved, and read back if it is done."""
        place = self.directory.next_folder(name) / "state"

        def body(folder: pathlib.Path) -> dict[str, Any]:
            made = make(folder)
            masks = None if made.masks is None else kept_units(made.masks)
            checkpoint.save(place, 0, made.variables, {"masks": masks})
            scores = self.validate(self.restored(place).variables, "validation")
            self.reporter.end(name, f"validation accuracy {scores['accuracy']:.4f}")
            return scores

        found = self.directory.stage(name, body)
        self.net = self.restored(place)
        return found

    def restored(self, place: pathlib.Path) -> Pruned:
        """The net that a stage has saved."""
        saved = checkpoint.load(place, shapes_of(self.task))
        if saved is None:
            raise errors.CheckpointError(
                f"{place} is gone, but its stage is done. Delete {place.parent} and run the command again."
            )
        kept = saved.meta["masks"]
        if kept is None:
            return Pruned(saved.state, None)
        sizes = self.groups.sizes
        masks = {
            name: np.isin(np.arange(sizes.get(name, 0)), units) for name, units in kept.items()
        }
        return Pruned(saved.state, check_masks(self.groups, masks))

    def loaded(self, weights: str) -> Pruned:
        """The dense net from a file."""
        net = net_of(self.config, self.task.data)
        return Pruned(zoo.pretrained.load(net, weights), None)

    def called(self, stage: Stage, before: Pruned, key: jax.Array) -> Pruned:
        """Calls a stage that has no learner."""
        self.reporter.begin(getattr(stage, "name", "stage"))
        result, records = stage(before, self.task, key)
        for record in records:
            self.directory.record(record["stage"], record["step"], record["metrics"])
        return result

    def trained(self, stage: Train, before: Pruned, key: jax.Array, folder: pathlib.Path) -> Pruned:
        """Drives a training stage with checkpoints and progress."""
        learner, total = stage.learner(before, self.task), stage.total_steps(self.task)
        place, progress = folder / "checkpoints", None
        saved = checkpoint.load(place, jax.eval_shape(learner.init, before, key))
        if saved is not None:
            sums = {name: jnp.float32(value) for name, value in saved.meta["sums"].items()}
            progress = Progress(saved.step, saved.state, sums, saved.meta["records"])
            self.directory.resume(saved.meta["spent"])
        self.reporter.begin(stage.name, total, progress.step if progress else 0)
        base, last = self.directory.lines, [time.monotonic()]

        def note(now: Progress) -> str:
            for record in now.records[self.directory.lines - base :]:
                self.directory.record(stage.name, record["step"], record["metrics"])
            if not now.records:
                return ""
            return f"validation accuracy {now.records[-1]['metrics']['validation_accuracy']:.4f}"

        def watch(now: Progress) -> None:
            self.reporter.advance(now.step, note(now))
            due = time.monotonic() - last[0] >= self.checkpoint_seconds
            sums = {name: float(value) for name, value in now.sums.items()} if due else {}
            if due and np.isfinite(list(sums.values())).all():
                meta = {"sums": sums, "records": now.records, "spent": self.directory.spent()}
                checkpoint.save(place, now.step, now.state, meta)
                last[0] = time.monotonic()

        if progress is not None:
            note(progress)
        result, _ = drive(
            learner,
            before,
            self.task,
            key,
            epochs=stage.epochs,
            batch_size=stage.batch_size,
            steps=stage.steps,
            progress=progress,
            watch=watch,
        )
        return result


def kept_units(masks: Mapping[str, Any]) -> dict[str, list[int]]:
    """Unit masks as plain data."""
    return {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()}

"""The main job: from names to a small net, measured, exported and reported.

Train or load the dense net, run the method's recipe, slim, check the law on real images, export,
measure, report. All of it lies in one directory; `jprune.runs` says how it survives being killed.
"""

import dataclasses
import fnmatch
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import allocate, data, errors, measure, recipes
from jprune.base import Budget, Pruned, Recipe, Task
from jprune.job.finish import Export, Law, Measure
from jprune.job.nets import net_for
from jprune.job.result import Asked, write_result
from jprune.recipes import Evaluate, Prune, Train
from jprune.recipes.options import written
from jprune.runs.devices import from_first
from jprune.runs.directory import held
from jprune.runs.execution import execute
from jprune.runs.files import PathLike
from jprune.runs.loop import SAVE_SECONDS
from jprune.runs.progress import Progress, Silent
from jprune.stages.frame import check
from jprune.stages.reinitialise import BeginAnew, Reinitialise
from jprune.train.net import Net
from jprune.train.task import task as task_of
from jprune.zoo import pretrained


class Usual(NamedTuple):
    """Settings of training for a data set, where the user sets none."""

    epochs: float
    finetune_epochs: float
    batch_size: int
    learning_rate: float
    finetune_learning_rate: float


# Sized for two CPU cores. Those of digits were chosen on its validation split, with ResNet-8.
USUAL = {
    "digits": Usual(30, 30, 64, 0.2, 0.1),
    "mnist": Usual(10, 10, 128, 0.1, 0.05),
    "fashion_mnist": Usual(20, 20, 128, 0.1, 0.05),
    "cifar10": Usual(60, 8, 128, 0.1, 0.05),
}
DRAWS = (BeginAnew, Reinitialise)
"""Stages that draw initial values once more."""
WITHOUT_NORMS = 0.25
"""Factor of the learning rates of nets without norms, which diverge at those of the others."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The settings of a run: all that its numbers depend on.

    Attributes:
        model: a name of the zoo, or `module:callable`.
        data: a name of `jprune.data`.
        method: a name of `jprune.recipes.METHODS`.
        budget: what is kept of the dense net.
        seed: of initial values, order of the data, and draws.
        epochs: of the dense net; None is the data set's usual number.
        finetune_epochs: under the masks; None is the data set's usual number.
        batch_size: examples in a step; None is the data set's usual one.
        learning_rate: the largest one of the dense net's training; None is the net's usual one.
        finetune_learning_rate: the same for fine-tuning.
        max_steps: stop every training after so many steps; for trying out.
        distill: weight of the dense net's outputs in the loss of fine-tuning, in [0, 1].
        freeze: patterns (`*`, `?`) of groups that stay whole, such as "params/conv1/*".
        options: of the method, such as {"rounds": 3}.
        dtype: compute type, "float32" or "bfloat16"; parameters are float32.
        weights: where the dense net comes from: None trains it, "pretrained" or a path reads it
            (`zoo.pretrained.load`), "own" takes the weights that the net came with.
        train_images: so many training images, every class with its share; None takes all.
        data_dir: folder of prepared data; None is the usual one.
    """

    model: str
    data: str
    method: str
    budget: Budget
    seed: int = 0
    epochs: float | None = None
    finetune_epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    finetune_learning_rate: float | None = None
    max_steps: int | None = None
    distill: float = 0.0
    freeze: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    weights: str | None = None
    train_images: int | None = None
    data_dir: str | None = None


def prune(
    job: Job,
    out: PathLike,
    command: str = "",
    progress: Progress | None = None,
    overwrite: bool = False,
    save_seconds: float = SAVE_SECONDS,
    measure_seconds: float = 2.0,
    task: Task | None = None,
) -> dict[str, Any]:
    """Runs a job, or goes on with it.

    Args:
        job: the settings.
        out: the run directory.
        command: how the run was called, for the report.
        progress: is shown what happens.
        overwrite: start anew if the directory holds a run.
        save_seconds: time between two checkpoints of training.
        measure_seconds: time to spend on each comparison of latencies, at least; with `max_steps`
            it is the shortest possible.
        task: what `task_for(job)` returns, where it is there already: runs that share it share what
            was compiled.

    Returns:
        What is in `result.json`.

    Raises:
        ArgumentError: an unknown name, or settings that do not go together.
        BudgetError: a budget that the net cannot meet; found before anything is trained.
        JpruneError: whatever else goes wrong on the way, each with a class of its own.
    """
    progress = Silent() if progress is None else progress
    # The name first: an unknown method is refused before data are read.
    recipes.find(job.method)
    task = task_for(job) if task is None else task
    # Law and .tflite want float32, whatever the type that the net is trained in.
    exact = task.fn if job.dtype == "float32" else net_for(job.model, job.data).fn
    job = dataclasses.replace(job, budget=with_frozen(task, job.budget, job.freeze))
    train, finetune = trainings(job, task)
    recipe = recipe_of(job, train, finetune)
    # Budgets of weights (unstructured pruning) can always be met; those of whole units may not.
    if any(isinstance(stage, Prune) and stage.per == "unit" for stage in recipes.unrolled(recipe)):
        check_budget(task, job.budget)
    check(recipe, task)
    anew = [stage for stage in recipes.unrolled(recipe) if isinstance(stage, DRAWS)]
    if job.weights == "own" and anew:
        raise errors.ArgumentError(
            f"the method {job.method} begins anew from other initial values, and a net with "
            "weights of its own draws none: it would begin with its trained ones. Leave out "
            "--weights own, or choose another method."
        )
    provenance = {"versions": measure.versions(), "device": measure.device()}
    config = config_of(job, train, finetune)
    key = jax.random.key(job.seed)

    def start() -> Pruned:
        if job.weights is None:
            # `fold_in(key, 0)` makes the first values; the stages count from 1.
            return Pruned(task.init(jax.random.fold_in(key, 0)), None)
        net = net_for(job.model, job.data, job.dtype)
        return Pruned(pretrained.load(net, job.weights), None)

    with held(out, config, about(job), provenance, overwrite, progress.note) as directory:
        # The recipe first, then what every run is judged by.
        stages = (
            *recipe,
            Evaluate("test", slim=True, name="pruned"),
            Law(exact),
            Export(directory.path, exact, progress.note),
            Measure(directory.path, exact, 0.0 if job.max_steps else measure_seconds),
        )
        pruned = execute(directory, stages, task, key, start, progress, save_seconds)
        asked = Asked(command, job.method, job.model, job.data, job.seed, job.budget)
        return from_first(lambda: write_result(directory, asked, task, pruned, progress.note))


def task_for(job: Job) -> Task:
    """The net and the data of a job."""
    images = data.load(job.data, data_dir=job.data_dir, subset=job.train_images)
    return task_of(net_for(job.model, job.data, job.dtype), images)


def about(job: Job) -> dict[str, Any]:
    """What every record of a job says."""
    return {
        "data": job.data,
        "model": job.model,
        "method": job.method,
        "budget": {job.budget.kind: job.budget.value},
        "seed": job.seed,
        "commit": measure.commit(),
    }


def trainings(job: Job, task: Task) -> tuple[Train | None, Train]:
    """Training of the dense net (None where it is read) and fine-tuning."""
    usual = USUAL.get(job.data, USUAL["cifar10"])
    # Statistics: only norms have them.
    has_norms = bool(jax.tree.leaves(task.split(Net(task).shapes)[1]))
    slower = 1.0 if has_norms else WITHOUT_NORMS
    batch_size = job.batch_size or usual.batch_size

    def stage(name: str, epochs: float, rate: float, distill: float = 0.0) -> Train:
        training = Train(
            epochs, rate, batch_size, max_steps=job.max_steps, distill=distill, name=name
        )
        training.steps(task.data.sizes["train"])  # refuses what does not fit, before anything runs
        return training

    chosen = lambda value, otherwise: otherwise if value is None else value
    finetune = stage(
        "finetune",
        chosen(job.finetune_epochs, usual.finetune_epochs),
        chosen(job.finetune_learning_rate, slower * usual.finetune_learning_rate),
        job.distill,
    )
    if job.weights is not None:
        if job.epochs is not None or job.learning_rate is not None:
            raise errors.ArgumentError(
                "epochs and learning_rate are those of the dense net, which is read and not "
                "trained here. Leave out --weights, or write --finetune-epochs and "
                "--finetune-learning-rate."
            )
        return None, finetune
    rate = chosen(job.learning_rate, slower * usual.learning_rate)
    return stage("train", chosen(job.epochs, usual.epochs), rate), finetune


def recipe_of(job: Job, train: Train | None, finetune: Train) -> Recipe:
    """The method's recipe with the job's settings.

    Raises:
        ArgumentError: an option that the method does not have, or one with a wrong value.
    """
    taken = recipes.options(job.method)
    unknown = [name for name in job.options if name not in taken]
    if unknown:
        raise errors.ArgumentError(
            f"the method {job.method} has no option --{unknown[0].replace('_', '-')}; it has "
            f"{', '.join('--' + name.replace('_', '-') for name in taken) or 'none'}."
        )
    factory = recipes.find(job.method)
    # By signature: methods without fine-tuning (lottery tickets, scratch) take one training.
    if finetunes(job.method):
        return factory(job.budget, train, finetune, **job.options)
    if job.finetune_epochs is not None or job.finetune_learning_rate is not None or job.distill:
        raise errors.ArgumentError(
            f"the method {job.method} has no fine-tuning: it trains as the dense net is trained. "
            "Leave out --finetune-epochs, --finetune-learning-rate and --distill."
        )
    return factory(job.budget, train, **job.options)


def finetunes(method: str) -> bool:
    """Whether a method has fine-tuning settings of its own, beside the dense net's training.

    Example:
        >>> finetunes("l1"), finetunes("lottery_ticket")
        (True, False)
    """
    return "finetune" in inspect.signature(recipes.find(method)).parameters


def with_frozen(task: Task, budget: Budget, patterns: Sequence[str]) -> Budget:
    """The budget, with a floor for every group that a pattern names: all of its units.

    Raises:
        ArgumentError: a pattern that names no group.
    """
    sizes = Net(task).groups.sizes
    floors = dict(budget.floors)
    for pattern in patterns:
        named = fnmatch.filter(sizes, pattern)
        if not named:
            raise errors.ArgumentError(
                f"freeze={pattern!r} names no group of {task.name}; "
                f"{errors.nearest(pattern, sizes)}`jprune inspect` lists them."
            )
        # A floor of all units: no allocator can take one, and the budget is met by the other
        # groups.
        floors |= {name: sizes[name] for name in named}
    return dataclasses.replace(budget, floors=floors)


def check_budget(task: Task, budget: Budget) -> None:
    """Refuses a budget that no choice of units meets, before hours are spent on training.

    Raises:
        BudgetError: the message says the smallest that can be met.
    """
    groups = Net(task).groups
    scores = {name: np.zeros(size) for name, size in groups.sizes.items()}
    # Scores of 0 do: whether a budget can be met depends on the smallest widths, not on the scores.
    allocate.uniform(scores, budget, Net(task).cost)


def config_of(job: Job, train: Train | None, finetune: Train) -> dict[str, Any]:
    """The settings as plain data, with the usual ones filled in; for `config.json`."""
    budget = dataclasses.asdict(job.budget)
    return {
        "model": job.model,
        "data": job.data,
        "method": job.method,
        # Only what was asked for: a kind of budget that comes later must not change the settings of
        # old runs.
        "budget": {name: value for name, value in budget.items() if value not in (None, {})},
        "seed": job.seed,
        "options": {name: written(value) for name, value in job.options.items()},
        "dtype": job.dtype,
        "weights": job.weights,
        "train_images": job.train_images,
        "train": None if train is None else dataclasses.asdict(train),
        "finetune": dataclasses.asdict(finetune),
    }

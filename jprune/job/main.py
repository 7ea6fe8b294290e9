"""The main job: from names to a small net, measured, exported and reported.

Train or load the dense net, run the method's recipe, slim, check the law on real images, export,
measure, report. All of it lies in one directory; `jprune.runs` says how it survives being killed.
"""

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import allocate, data, errors, kernels, measure, recipes, zoo
from jprune.base import Budget, Data, Pruned, Recipe, Task
from jprune.job.changes import NO_CHANGES, Changes, changed
from jprune.job.finish import ExecuteSparse, Export, Law, Measure
from jprune.job.nets import net_for
from jprune.job.result import Asked, write_result
from jprune.recipes import Evaluate, Prune, Train
from jprune.recipes.methods import no_finetuning
from jprune.recipes.options import written
from jprune.runs.devices import from_first
from jprune.runs.directory import held
from jprune.runs.execution import execute
from jprune.runs.files import PathLike
from jprune.runs.loop import SAVE_SECONDS
from jprune.runs.progress import Progress, Silent
from jprune.stages.frame import check
from jprune.stages.reinitialise import BeginAnew, Reinitialise, TrainAnew
from jprune.train.net import Net
from jprune.train.optimizers import function_of
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
DRAWS = (BeginAnew, Reinitialise, TrainAnew)
"""Stages that draw initial values once more."""
WITHOUT_NORMS = 0.25
"""Factor of SGD's learning rates of nets without norms, which diverge at those of the others."""
RATES = {"adam": 1e-3, "adamw": 1e-3, "lion": 1e-4, "lamb": 5e-3}
"""Learning rates of the dense net where none is written; fine-tuning takes half of them."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The settings of a run: all that its numbers depend on.

    Attributes:
        model: a name of the zoo, or `module:callable`.
        data: a name of `jprune.data`, or one of the user's own with a colon: `npz:FILE` and others.
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
        data_options: of data of the user's own, such as {"size": 32}.
        optimizer: "sgd", "adam", "adamw", "lion", "lamb" or `module:callable`, of all trainings.
        optimizer_options: its settings, such as {"b1": 0.95}; `weight_decay` and, of sgd,
            `momentum` are among them.
        rate_schedule: of the learning rate: "one_cycle", "cosine", "constant" or "step".
        warmup: fraction of the steps in which the learning rate rises, before its schedule.
        clip: the largest norm of a gradient; None: any.
        ema: decay of the average that trainings hand on; None: none.
        accumulate: parts in which a batch goes through the net.
        target: runtime of a budget in latency, "xla" (batch 128) or "tflite" (batch 1).
        steps_of_table: take the `multiple_of` of a budget in latency from the latency table.
        execute: "dense", or "sparse": the net that was pruned weight by weight is run with sparse
            kernels too, and measured.
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
    data_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: str = "sgd"
    optimizer_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate_schedule: str = "one_cycle"
    warmup: float = 0.0
    clip: float | None = None
    ema: float | None = None
    accumulate: int = 1
    target: str = "xla"
    steps_of_table: bool = False
    execute: str = "dense"


def prune(
    job: Job,
    out: PathLike,
    command: str = "",
    progress: Progress | None = None,
    overwrite: bool = False,
    save_seconds: float = SAVE_SECONDS,
    measure_seconds: float = 2.0,
    task: Task | None = None,
    changes: Changes = NO_CHANGES,
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
        changes: of the method's recipe, for comparisons.

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
    errors.check_words("prune", ("execute", job.execute, ("dense", "sparse")))
    if job.execute == "sparse":
        kernels.require()
    task = task_for(job) if task is None else task
    # Law and .tflite want float32, whatever the type that the net is trained in.
    exact = task.fn if job.dtype == "float32" else _net(job, task.data, "float32").fn
    job, task = with_latency(job, task, exact, progress.note)
    job = dataclasses.replace(job, budget=with_frozen(task, job.budget, job.freeze))
    train, finetune = trainings(job, task)
    recipe = changed(recipe_of(job, train, finetune), changes, job.method)
    errors.check_words("prune", ("execute", job.execute, ("dense", "sparse")))
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
    config = config_of(job, train, finetune, changes) | _images(job, task.data)
    key = jax.random.key(job.seed)

    def start() -> Pruned:
        if job.weights is None:
            # `fold_in(key, 0)` makes the first values; the stages count from 1.
            return Pruned(task.init(jax.random.fold_in(key, 0)), None)
        net = _net(job, task.data, job.dtype)
        return Pruned(pretrained.load(net, job.weights), None)

    with held(out, config, about(job), provenance, overwrite, progress.note) as directory:
        # The recipe first, then what every run is judged by.
        seconds = 0.0 if job.max_steps else measure_seconds
        sparse = ExecuteSparse(exact, directory.path, seconds)
        stages = (
            *recipe,
            Evaluate("test", slim=True, name="pruned"),
            Law(exact),
            Export(directory.path, exact, progress.note),
            Measure(directory.path, exact, seconds),
            *((sparse,) if job.execute == "sparse" else ()),
        )
        pruned = execute(directory, stages, task, key, start, progress, save_seconds)
        asked = Asked(command, job.method, job.model, job.data, job.seed, job.budget, job.target)
        return from_first(lambda: write_result(directory, asked, task, pruned, progress.note))


def task_for(job: Job) -> Task:
    """The net and the data of a job."""
    images = data.load(job.data, data_dir=job.data_dir, subset=job.train_images, **job.data_options)
    return task_of(_net(job, images, job.dtype), images)


def _net(job: Job, images: Data, dtype: str) -> zoo.Net:
    """The net of a job; for data of the user's own, of what they say that they are."""
    if ":" not in job.data:
        return net_for(job.model, job.data, dtype)
    return net_for(job.model, job.data, dtype, images.shape, images.classes)


def _images(job: Job, images: Data) -> dict[str, Any]:
    """What `config.json` says of data of the user's own; nothing of those that jprune knows.

    The net of the run can be built from it where the data are not.
    """
    if ":" not in job.data:
        return {}
    options = {name: written(value) for name, value in job.data_options.items()}
    own = {"shape": list(images.shape), "classes": images.classes}
    return {"images": own, "data_options": options}


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
    dense_rate, finetune_rate = _rates(job, task, usual)
    options = dict(job.optimizer_options)
    fields = {name: options.pop(name) for name in ("momentum", "weight_decay") if name in options}
    batch_size = job.batch_size or usual.batch_size

    def stage(name: str, epochs: float, rate: float, distill: float = 0.0) -> Train:
        training = Train(
            epochs,
            rate,
            batch_size,
            schedule=job.rate_schedule,
            max_steps=job.max_steps,
            distill=distill,
            name=name,
            optimizer=job.optimizer,
            settings=tuple(options.items()),
            warmup=job.warmup,
            clip=job.clip,
            ema=job.ema,
            accumulate=job.accumulate,
            **fields,
        )
        # Refuses what does not fit, the user's own optimizer included, before anything runs.
        training.optimizer_for(task).transformation(Net(task).is_kernel)
        return training

    chosen = lambda value, otherwise: otherwise if value is None else value
    finetune = stage(
        "finetune",
        chosen(job.finetune_epochs, usual.finetune_epochs),
        chosen(job.finetune_learning_rate, finetune_rate),
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
    rate = chosen(job.learning_rate, dense_rate)
    return stage("train", chosen(job.epochs, usual.epochs), rate), finetune


def _rates(job: Job, task: Task, usual: Usual) -> tuple[float, float]:
    """Learning rates of dense training and fine-tuning where the user writes none.

    Raises:
        ArgumentError: an optimizer of the user's own, for which there is no usual one.
    """
    if job.optimizer == "sgd":
        # Statistics: only norms have them.
        has_norms = bool(jax.tree.leaves(task.split(Net(task).shapes)[1]))
        slower = 1.0 if has_norms else WITHOUT_NORMS
        return slower * usual.learning_rate, slower * usual.finetune_learning_rate
    if job.optimizer in RATES:
        return RATES[job.optimizer], RATES[job.optimizer] / 2
    function_of(job.optimizer)  # a typing error comes first
    written_rates = (job.weights is not None or job.learning_rate, job.finetune_learning_rate)
    if not all(written_rates):
        raise errors.ArgumentError(
            f"there are no usual learning rates for {job.optimizer}. Write --learning-rate and "
            "--finetune-learning-rate; it gets them as schedules."
        )
    return 1.0, 1.0


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
            f"{no_finetuning(job.method)} "
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


def with_latency(
    job: Job, task: Task, exact: Callable[..., Any], note: Callable[[str], None]
) -> tuple[Job, Task]:
    """The task with a latency table of this device, if the budget is in latency.

    Args:
        job: the settings.
        task: of its net.
        exact: the net in float32, which is what TFLite runs.
        note: told what is measured, and why.

    Raises:
        ArgumentError: an unknown target.
        CheckpointError: the table cannot be kept.
    """
    if job.target not in measure.TARGETS:
        raise errors.ArgumentError(
            f"target={job.target!r}; {errors.nearest(job.target, measure.TARGETS)}write one of "
            f"{', '.join(measure.TARGETS)}."
        )
    if job.budget.kind != "latency" or task.latency is not None:
        return job, task
    net, fn = Net(task), task.fn if job.target == "xla" else exact
    table = measure.latency_table(fn, net.shapes, task.example, net.groups, job.target, note=note)
    budget = job.budget
    if job.steps_of_table:
        budget = dataclasses.replace(budget, multiple_of=table.multiple_of)
        note(f"widths are multiples of {table.multiple_of}: what lies between saves no time.")
    return dataclasses.replace(job, budget=budget), task._replace(latency=table)


def check_budget(task: Task, budget: Budget) -> None:
    """Refuses a budget that no choice of units meets, before hours are spent on training.

    Raises:
        BudgetError: the message says the smallest that can be met.
    """
    groups = Net(task).groups
    scores = {name: np.zeros(size) for name, size in groups.sizes.items()}
    # Scores of 0 do: whether a budget can be met depends on the smallest widths, not on the scores.
    allocate.uniform(scores, budget, Net(task).cost)


def config_of(
    job: Job, train: Train | None, finetune: Train, changes: Changes = NO_CHANGES
) -> dict[str, Any]:
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
        **({"execute": job.execute} if job.execute != "dense" else {}),
        "train": None if train is None else _settings(train),
        "finetune": _settings(finetune),
        # A second look at the net changes no other number.
        **{k: v for k, v in changes._asdict().items() if k != "settled" and v is not None},
        # Later than the others: only where it matters, as above.
        **({"target": job.target} if job.budget.kind == "latency" else {}),
    }


def _settings(train: Train) -> dict[str, Any]:
    """The settings of a training; those that came later, only where they were written."""
    later = ("optimizer", "settings", "warmup", "clip", "ema", "accumulate")
    plain, default = dataclasses.asdict(train), Train(train.epochs, train.learning_rate)
    plain["settings"] = dict(train.settings)
    return {
        name: value
        for name, value in plain.items()
        if name not in later or getattr(train, name) != getattr(default, name)
    }

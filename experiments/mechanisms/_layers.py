"""What E19 and E20 share: a small residual net, and one layer of it pruned at a time.

A layer is a step of `jprune.stages.layer_wise`: what one consumer reads, the inner channels of a
block or, by a sampler, its part of a stream.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean as mean
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import rows
from experiments.claims import seeds_of
from experiments.mechanisms._nets import cifar10, task_of
from jprune.base import Budget, Problem, Pruned, Reconstructor, Task, Variables
from jprune.recipes import Train
from jprune.reconstruct import relative_error
from jprune.reconstruct._moments import best
from jprune.stages.layer_wise import Choose, LayerWise, Refit, Walk
from jprune.stages.walk import Step, steps_of


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        seeds: of initial values, order of the data and draws.
        epochs: of the dense net.
        learning_rate: the largest one.
        train_images: of the training split.
        test_images: that accuracy is measured on.
        images: of calibration.
        points: positions an image and layer.
        smoke: two steps a training, on digits; writes nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: float = 5.0
    learning_rate: float = 0.1
    train_images: int = 10_000
    test_images: int = 1_000
    images: int = 1_000
    points: int = 10
    smoke: bool = False


def dense_net(settings: Settings, task: Task, key: jax.Array) -> Pruned:
    """The trained net."""
    most = 2 if settings.smoke else None
    size = 64 if settings.smoke else 128
    stage = Train(settings.epochs, settings.learning_rate, size, max_steps=most)
    start = Pruned(task.init(jax.random.fold_in(key, 0)), None)
    return stage(start, task, jax.random.fold_in(key, 1))[0]


class Layers:
    """One layer at a time, from the dense net each time."""

    def __init__(self, settings: Settings, task: Task, dense: Pruned, key: jax.Array):
        self.settings, self.task, self.dense, self.key = settings, task, dense, key
        steps = steps_of(task, "sampler")
        self.steps = steps[-2:] if settings.smoke else steps
        self.stage = layerwise(settings, at_random, None)
        self.walk = Walk(self.stage, task, key, dense.variables, self.steps)

    def __iter__(self) -> Iterator[tuple[Step, Problem]]:
        for step in self.steps:
            (problem,) = self.walk.problems(step, np.ones(step.units, bool))
            yield step, problem

    def with_weights(
        self, step: Step, problem: Problem, mask: np.ndarray, refit: Reconstructor | None
    ) -> tuple[Variables, float]:
        """The net with one layer pruned, and the relative error of what the layer says."""
        weight, bias = np.asarray(problem.weight) * mask[:, None, None], None
        if refit is not None:
            weight, bias = refit(problem._replace(keep=mask))
        zeros = np.zeros(weight.shape[-1])
        self.walk.write(step.path, step.kernels[step.path], weight, zeros if bias is None else bias)
        # The walk stays at the dense net, where the next layer is looked at.
        pruned, self.walk.variables = self.walk.variables, self.dense.variables
        return pruned, relative_error(problem, weight, bias)


def layerwise(settings: Settings, choose: Choose, refit: Refit | None) -> LayerWise:
    """The stage that prunes all layers by half of their inputs, with this calibration."""
    size = 50 if settings.smoke else 125
    return LayerWise(
        Budget(density=0.5),
        choose,
        refit,
        batches=1 if settings.smoke else settings.images // size,
        batch_size=size,
        points=settings.points,
    )


def accuracy(settings: Settings, task: Task, variables: Variables) -> float:
    """On the first images of the test set."""
    size = 100 if settings.smoke else 500
    batches = itertools.islice(
        task.data.batches("test", size), max(1, settings.test_images // size)
    )
    right = [
        np.asarray(_right(task.fn)(variables, batch["image"]) == batch["label"])[
            batch["weight"] > 0
        ]
        for batch in batches
    ]
    return float(np.concatenate(right).mean())


_JITTED: dict[int, Callable[..., Any]] = {}


def _right(fn: Callable[..., Any]) -> Callable[..., Any]:
    made = jax.jit(lambda variables, image: jnp.argmax(fn(variables, image), axis=-1))
    return _JITTED.setdefault(id(fn), made)


def at_random(problems: Sequence[Problem], width: int, key: jax.Array) -> np.ndarray:
    """Any units."""
    keep = np.asarray(problems[0].keep, bool)
    return best(np.asarray(jax.random.uniform(key, keep.shape)), keep, width)


def first(problems: Sequence[Problem], width: int, key: jax.Array) -> np.ndarray:
    """The first ones."""
    del key
    keep = np.asarray(problems[0].keep, bool)
    return best(-np.arange(len(keep), dtype=float), keep, width)


def by_weights(problems: Sequence[Problem], width: int, key: jax.Array) -> np.ndarray:
    """Those whose weights in the layer have the largest L1 norm."""
    del key
    sizes = sum(np.abs(problem.weight).sum(axis=(1, 2)) for problem in problems)
    return best(np.asarray(sizes), np.asarray(problems[0].keep, bool), width)


def by_zeros(problems: Sequence[Problem], width: int, key: jax.Array) -> np.ndarray:
    """Those that are 0 least often (APoZ, [6])."""
    del key
    (problem, *_) = problems
    return best((problem.inputs != 0).mean(axis=(0, 2)), np.asarray(problem.keep, bool), width)


def layer_name(step: Step) -> str:
    """Short, for a row."""
    return step.name.replace("params/", "").replace("/kernel", "")


def of(found: Sequence[rows.Row], what: str, **wanted: Any) -> list[float]:
    """Means over all rows of a seed, by seed."""
    mine = [row for row in found if all(row.get(name) == value for name, value in wanted.items())]
    seeds = sorted({row["seed"] for row in mine})
    return [mean(row[what] for row in mine if row["seed"] == seed) for seed in seeds]


Part = Callable[[Settings, Task, Pruned, jax.Array], Iterator[rows.Row]]


def rows_of(settings: Settings, parts: Sequence[Part]) -> Iterator[rows.Row]:
    """The dense net of every seed, and what the parts make of it."""
    task = task_of("resnet8", cifar10(settings))
    for seed in seeds_of(settings):
        key = jax.random.key(seed)
        dense = dense_net(settings, task, key)
        reached = accuracy(settings, task, dense.variables)
        yield {"seed": seed, "part": "dense", "arm": "dense", "kept": 1.0, "accuracy": reached}
        for number, part in enumerate(parts, start=2):
            for row in part(settings, task, dense, jax.random.fold_in(key, number)):
                yield {"seed": seed, **row}

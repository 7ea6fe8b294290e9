"""What E19 and E20 share: a small residual net, and one layer of it pruned at a time.

A layer is a step of `jprune.stages.layer_wise`: what one consumer reads, the inner channels of a
block or, by a sampler, its part of a stream.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.claim import Case, Made, Net
from experiments.claims.settings import CommonSettings
from jprune.base import Budget, Problem, Pruned, Reconstructor, Variables
from jprune.recipes import Train
from jprune.reconstruct import relative_error
from jprune.reconstruct.moments import best
from jprune.stages.layer_wise import Choose, LayerWise, Refit, Walk
from jprune.stages.walk import Step, steps_of


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    """Those of E19 and E20.

    Attributes:
        points: positions an image and layer.
    """

    epochs: float = 5.0
    learning_rate: float = 0.1
    train_images: int = 10_000
    test_images: int = 1_000
    images: int = 1_000
    points: int = 10


def nets(settings: Settings) -> list[Net]:
    """A small residual net."""
    return [Net("resnet8", "cifar10", settings.train_images)]


def dense_net(case: Case[Settings]) -> Pruned:
    """The trained net."""
    size = 64 if case.smoke else 128
    return case.dense(case.train(case.settings.epochs, case.settings.learning_rate, size))


class Layers:
    """One layer at a time, from the dense net each time."""

    def __init__(self, case: Case[Settings], dense: Pruned, key: jax.Array):
        self.dense = dense
        steps = steps_of(case.task, "sampler")
        self.steps = steps[-2:] if case.smoke else steps
        stage = layerwise(case, at_random, None)
        self.walk = Walk(stage, case.task, key, dense.variables, self.steps, alive={}, goals={})

    def __iter__(self) -> Iterator[tuple[Step, Problem]]:
        for step in self.steps:
            (problem,) = self.walk.problems(step, np.ones(step.units, bool))
            yield step, problem

    def with_weights(
        self, step: Step, problem: Problem, mask: np.ndarray, refit: Reconstructor | None
    ) -> tuple[Variables, float]:
        """The net with one layer pruned, and the relative error of that layer's outputs."""
        weight, bias = np.asarray(problem.weight) * mask[:, None, None], None
        if refit is not None:
            weight, bias = refit(problem._replace(keep=mask))
        zeros = np.zeros(weight.shape[-1])
        self.walk.write(step.path, step.kernels[step.path], weight, zeros if bias is None else bias)
        # The walk stays at the dense net, where the next layer is looked at.
        pruned, self.walk.variables = self.walk.variables, self.dense.variables
        return pruned, relative_error(problem, weight, bias)


def layerwise(case: Case[Settings], choose: Choose, refit: Refit | None) -> LayerWise:
    """The stage that prunes all layers by half of their inputs, with this calibration."""
    size = 50 if case.smoke else 125
    return LayerWise(
        Budget(density=0.5),
        choose,
        refit,
        batches=1 if case.smoke else case.settings.images // size,
        batch_size=size,
        points=case.settings.points,
    )


def accuracy(case: Case[Settings], variables: Variables) -> float:
    """On the first images of the test set."""
    size = 100 if case.smoke else 500
    count = max(1, case.settings.test_images // size)
    right = []
    for batch in itertools.islice(case.task.data.batches("test", size), count):
        classes = np.asarray(classified(case.task.fn)(variables, batch["image"]))
        right.append((classes == batch["label"])[batch["weight"] > 0])
    return float(np.concatenate(right).mean())


@functools.cache
def classified(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The classes that a net tells, compiled once."""
    return jax.jit(lambda variables, image: jnp.argmax(fn(variables, image), axis=-1))


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


class Cell(NamedTuple):
    """One layer of the dense net at one width, its inputs chosen by one arm."""

    case: Case[Settings]
    layers: Layers
    step: Step
    problem: Problem
    arm: str
    kept: float
    mask: np.ndarray
    key: jax.Array

    def row(self, refit: Reconstructor | None, measured: bool = True, /, **more: Any) -> Made:
        """The row of the net with this layer pruned; its accuracy where it is measured."""
        variables, error = self.layers.with_weights(self.step, self.problem, self.mask, refit)
        about = {"part": "layer", "layer": layer_name(self.step), "arm": self.arm, **more}
        reached = accuracy(self.case, variables) if measured else None
        return {**about, "kept": self.kept, "error": error, "accuracy": reached}, None


def cells(
    case: Case[Settings],
    dense: Pruned,
    key: jax.Array,
    levels: Sequence[float],
    choices: Mapping[str, Choose],
) -> Iterator[Cell]:
    """All layers at all widths, by all choices; where it is only tried out, at one width."""
    layers = Layers(case, dense, key)
    for number, (step, problem) in enumerate(layers):
        drawn = jax.random.fold_in(key, number)
        for kept in levels[1:2] if case.smoke else levels:
            for arm, choose in choices.items():
                mask = choose([problem], round(kept * step.units), drawn)
                yield Cell(case, layers, step, problem, arm, kept, mask, drawn)


def whole_net(
    case: Case[Settings],
    dense: Pruned,
    key: jax.Array,
    arm: str,
    stage: LayerWise,
    tune: Train | None = None,
    **more: Any,
) -> Made:
    """The row of the net with all layers pruned, and what it reaches after some training."""
    pruned, (record,) = stage(dense, case.task, key)
    row = {
        "part": "net",
        "arm": arm,
        **more,
        "kept": record["metrics"]["macs"],
        "error": record["metrics"]["reconstruction_error"],
        "accuracy": accuracy(case, pruned.variables),
    }
    if tune is not None:
        row["finetuned"] = accuracy(case, tune(pruned, case.task, key)[0].variables)
    return row, None


Part = Callable[[Case[Settings], Pruned, jax.Array], Iterator[Made]]


def arms_of(*parts: Part) -> Callable[[Case[Settings]], Iterator[Made]]:
    """The dense net of a seed, and what the parts make of it."""

    def arms(case: Case[Settings]) -> Iterator[Made]:
        dense = dense_net(case)
        reached = accuracy(case, dense.variables)
        yield {"part": "dense", "arm": "dense", "kept": 1.0, "accuracy": reached}, None
        for number, part in enumerate(parts, start=2):
            yield from part(case, dense, case.fold(number))

    return arms

"""X9's nets: narrowed in depth, width or resolution, and what they reach."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.claims.claim import Case
from experiments.rows import Row
from jprune import errors
from jprune.base import Budget, Pruned
from jprune.recipes import Evaluate, Train, run
from jprune.search import fit
from jprune.stages.dimensions import (
    DIMENSIONS,
    Narrow,
    Observe,
    Optimum,
    fewer_units,
    seen_of,
    where,
)
from jprune.train.net import Net as TaskNet
from jprune.train.task import at_resolution

LEVELS = {"depth": (2 / 3, 1 / 3), "width": (0.75, 0.5), "resolution": (0.875, 0.75, 0.625, 0.5)}
OFF_AXES = ((2 / 3, 0.75, 0.75), (1.0, 0.75, 0.625), (2 / 3, 0.5, 0.875))
BUDGET = Budget(macs=0.5)
SIDES = 4
"""Sides of images are multiples of it."""


def training(case: Case[Any], epochs: float, rate: float = 0.1) -> Train:
    """So many epochs, at a fraction of the rate."""
    return case.train(epochs, rate * case.settings.learning_rate, 64)


def multiple(case: Case) -> int:
    """What sides of images are multiples of."""
    return 2 if case.smoke else SIDES


def narrow(case: Case, axis: str, level: float, anew: bool) -> Narrow:
    """Makes a net smaller in one dimension."""
    return Narrow(axis, level, BUDGET, multiple(case), anew)


def along_axes(case: Case[Any], dense: Pruned) -> np.ndarray:
    """[nets, dimensions and accuracy]: smaller and smaller in one dimension at a time."""
    probe = training(case, case.settings.probe_epochs)
    stages = [
        stage
        for axis, levels in LEVELS.items()
        for number, level in enumerate(case.first(levels))
        for stage in (narrow(case, axis, level, not number), probe, Observe())
    ]
    return np.asarray(run(stages, dense, case.task, case.fold(2))[0].extra)


def named(point: np.ndarray) -> Row:
    """A point of the space of nets, with its accuracy."""
    return dict(zip((*DIMENSIONS, "accuracy"), point.tolist()))


def held_out(case: Case[Any], dense: Pruned, points: np.ndarray) -> Iterator[Row]:
    """Nets that differ in all dimensions: narrowed in one go, trained as often as a probe."""
    model = fit(points[:, :3], points[:, 3] / points[0, 3], case.settings.degree)
    for number, levels in enumerate(case.first(OFF_AXES)):
        axes = [(axis, level) for axis, level in zip(DIMENSIONS, levels) if level < 1]
        stages = [narrow(case, axis, level, not n) for n, (axis, level) in enumerate(axes)]
        recipe = (*stages, training(case, case.settings.probe_epochs))
        net, _ = run(recipe, dense, case.task, case.fold(10 + number))
        point = seen_of(case.task, net)
        predicted = points[0, 3] * float(model(point[None, :3])[0])
        yield {"part": "held_out", **named(point), "predicted": predicted}


def compared(case: Case[Any], dense: Pruned) -> Iterator[Row]:
    """The optimum, and one dimension alone, each the largest that is under the budget."""
    stage = Optimum(BUDGET, multiple(case), case.settings.degree)
    net, (record,) = stage(dense, case.task, case.fold(20))
    predicted = record["metrics"]["predicted"]
    yield {"part": "optimum", "arm": "all", **tuned(case, net), "predicted": predicted}
    for axis in case.first(DIMENSIONS):
        net = alone(case, axis, dense)
        if net is not None:
            yield {"part": "axis", "arm": axis, **tuned(case, net)}


def alone(case: Case, axis: str, dense: Pruned) -> Pruned | None:
    """The largest net under the budget that is smaller in one dimension; None: no such net."""
    dense = Pruned(dense.saved["dense"], None, None, dense.saved)
    if axis == "width":
        return dense._replace(masks=fewer_units(case.task, dense, BUDGET, {}))
    for level in np.linspace(1, 0, 33)[1:-1].tolist():
        try:
            net, _ = narrow(case, axis, level, True)(dense, case.task, case.key)
        except errors.ArgumentError:
            return None
        if cost(case, net) <= 0.5:
            return net
    return None


def cost(case: Case, net: Pruned) -> float:
    """MACs at the net's resolution, as a fraction of the dense net's."""
    at = at_resolution(case.task, net)
    return float(TaskNet(at).cost(net.masks or {}).macs) / float(TaskNet(case.task).cost({}).macs)


def tuned(case: Case[Any], net: Pruned) -> Row:
    """A net that is compared, fine-tuned."""
    net = case.apply(net, 30, training(case, case.settings.finetune_epochs))
    _, (record,) = Evaluate("test")(net, case.task, case.key)
    sides = dict(zip(DIMENSIONS, where(case.task, net)))
    return {**sides, "macs": cost(case, net), "accuracy": record["metrics"]["accuracy"]}

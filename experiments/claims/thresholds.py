"""What E4 and E7 share: LeNets whose layers keep what a paper keeps of them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.claims.claim import Case
from experiments.claims.statements import Arm, Statement, at_most, gap
from experiments.rows import Row
from jprune.base import Budget, Pruned, Variables
from jprune.recipes import Train
from jprune.sparsify.surgery import CUT
from jprune.stages.dead_units import RemoveDead
from jprune.stages.prune import fractions
from jprune.stages.sensitivity import Sensitivity
from jprune.stages.std_rule import StdPrune
from jprune.train.numbers import Numbers

BY_LAYER = {
    "lenet300": {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26},
    "lenet5": {"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19},
}
"""What E4's paper keeps of every layer, of 8.3 % of all."""


def shorter(
    case: Case[Any], epochs: float, rate: float, batch_size: int, part: float, **more: Any
) -> Train:
    """A training; of LeNet-5, whose step takes ten times as long, with a part of the epochs.

    Args:
        case: of LeNet-5 or LeNet-300-100.
        epochs: of LeNet-300-100, whose batches have 128 images.
        rate: of both.
        batch_size: of LeNet-5.
        part: of the epochs.
        more: as of `Case.train`.
    """
    if case.net.name == "lenet5":
        return case.train(part * epochs, rate, batch_size, **more)
    return case.train(epochs, rate, 128, **more)


def cut(case: Case[Any], pruned: Pruned, kept: float, number: int) -> Pruned:
    """Pruned by E4's share of every layer, without units that nothing reads or feeds."""
    budget, by_layer = Budget(density=kept), BY_LAYER[case.net.name]
    q = 1.0 if case.smoke else qualities(pruned.variables, by_layer, kept)
    return case.apply(pruned, 10 * number, Sensitivity(budget, q), StdPrune(budget), RemoveDead())


def middle(case: Case[Any], pruned: Pruned) -> Row:
    """The fraction kept, and that of the first layer on the central 20 x 20 of 28 x 28 pixels."""
    if pruned.masks is None:
        return {"density": 1.0, "middle": None}
    mask, share = pruned.masks["params"].get("fc1", {}).get("kernel"), None
    if case.net.name == "lenet300" and mask is not None and len(mask) == 784:
        by_pixel = np.asarray(mask).sum(axis=1).reshape(28, 28)
        share = float(by_pixel[4:24, 4:24].sum() / by_pixel.sum())
    return {"density": fractions(case.task, pruned.masks)["density"], "middle": share}


def thresholds(variables: Variables, kept: Mapping[str, float], budget: float) -> dict[str, float]:
    """The size of weight, layer by layer, above which so many are as a paper keeps of the layer.

    Args:
        variables: of the net.
        kept: {layer: fraction}; all are scaled by one factor, none beyond 1, to meet the budget.
        budget: the fraction of the weights of these layers.
    """
    sizes = {name: np.abs(kernel(variables, name)).ravel() for name in kept}
    counts = np.array([size.size for size in sizes.values()])
    fractions = np.array(list(kept.values()))
    for _ in range(100):
        fractions = np.minimum(1, fractions * budget * counts.sum() / (fractions @ counts))
    return {
        name: float(np.quantile(size, 1 - fraction))
        for (name, size), fraction in zip(sizes.items(), fractions)
    }


def kernel(variables: Variables, name: str) -> np.ndarray:
    """That of a layer."""
    return np.asarray(variables["params"][name]["kernel"])


def qualities(variables: Variables, kept: Mapping[str, float], budget: float) -> Numbers:
    """The q of E4's threshold q * std, layer by layer, at which a layer keeps its share."""
    values = []
    for name, least in thresholds(variables, kept, budget).items():
        weights = kernel(variables, name)
        values.append(round(float(max(least / weights[weights != 0].std(), 1e-3)), 4))
    return tuple(values)


def rates(variables: Variables, kept: Mapping[str, float], budget: float) -> Numbers:
    """The c of E7, layer by layer, at which the first cut leaves a layer its share."""
    values = []
    for name, least in thresholds(variables, kept, budget).items():
        sizes = np.abs(kernel(variables, name))
        # The first cut is at CUT * (mean + c std) of the sizes.
        values.append(round(float((least / CUT - sizes.mean()) / sizes.std()), 4))
    return tuple(values)


def points_lost(text: str, than: Arm, paper: str, most: float, net: str) -> Iterator[Statement]:
    """A net is at most so many points below the dense one, and below that trained on as long."""
    for arm, name in (("dense", "the dense net"), ("longer", "it, trained on for as long")):
        lost = gap("accuracy", arm, than, net=net)
        yield at_most(f"{text}: points lost to {name}", paper, lost, most)

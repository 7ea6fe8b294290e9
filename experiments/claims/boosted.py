"""P32's channels: the gates of a boosted net, and fixed channels that are chosen by them."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.claims.claim import Case
from jprune.base import Pruned
from jprune.cost.samples import gates_of
from jprune.train.net import Net as TaskNet

Gates = Mapping[str, np.ndarray]
"""{layer: [images, outputs]}."""


def gates(case: Case[Any], pruned: Pruned) -> Gates:
    """Those of some training images."""
    run = jax.jit(gates_of(case.task.fn, TaskNet(case.task).groups))
    batches = itertools.islice(case.task.data.batches("train", 100), 20)
    of_batches = [run(pruned.variables, batch["image"])[1] for batch in batches]
    return {n: np.concatenate([np.asarray(of[n]) for of in of_batches]) for n in of_batches[0]}


def channels_apart(by_layer: Gates) -> dict[str, float]:
    """{layer: mean Jaccard distance of the open channels of two images}."""
    return {name: distance(gate[:200] > 0) for name, gate in by_layer.items()}


def distance(supports: np.ndarray) -> float:
    """Mean Jaccard distance of all pairs of images, supports being bool [images, outputs]."""
    there = supports.astype(float)
    both = there @ there.T
    sizes = there.sum(axis=1)
    either = sizes[:, None] + sizes[None] - both
    pairs = np.triu_indices(len(there), 1)
    return float((1 - both / np.maximum(either, 1))[pairs].mean())


def counts(by_layer: Gates, density: float) -> dict[str, int]:
    """How many channels of a layer stay."""
    return {name: int(np.ceil(density * gate.shape[1])) for name, gate in by_layer.items()}


def largest_gates(by_layer: Gates, density: float) -> dict[str, np.ndarray]:
    """Masks of the channels whose mean gates are largest."""
    ranks = {name: np.argsort(np.argsort(-g.mean(axis=0))) for name, g in by_layer.items()}
    return {name: ranks[name] < count for name, count in counts(by_layer, density).items()}


def first_channels(by_layer: Gates, density: float) -> dict[str, np.ndarray]:
    """Masks of as many channels, the first ones."""
    places = {name: np.arange(gate.shape[1]) for name, gate in by_layer.items()}
    return {name: places[name] < count for name, count in counts(by_layer, density).items()}

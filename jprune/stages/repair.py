"""Nets of any widths out of the dense one: the least units go, and what reads them is refitted."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune.base import Layer, Task, Variables
from jprune.masks import apply_masks
from jprune.reconstruct.masked import masked_refit
from jprune.reconstruct.windows import Look, collect, look
from jprune.stages.hypernetwork import stacked
from jprune.train.net import Net
from jprune.units import expand, to_units

WIDEST = 2048
"""Layers with more inputs (times window) are not refitted: their X^T X would fill the memory."""


@dataclasses.dataclass(frozen=True)
class Repair:
    """How what reads a pruned group is refitted.

    Attributes:
        batches: of calibration images; 0: nothing is refitted.
        batch_size: images in one.
        points: sampled positions per image and layer.
        ridge: see `reconstruct.masked_refit`.
    """

    batches: int = 3
    batch_size: int = 50
    points: int = 6
    ridge: float = 1e-4

    def grams(self, task: Task, variables: Variables, key: jax.Array) -> dict[str, np.ndarray]:
        """{kernel: X^T X [n, n] of the dense net's inputs}, of the plain layers that read units."""
        net = Net(task)
        layers = {
            path: layer
            for path, layer in net.groups.layers.items()
            if layer.plain and layer.sites and layer.reads and _inputs(layer) <= WIDEST
        }
        if not self.batches or not layers:
            return {}
        sites = tuple(site for layer in layers.values() for site in layer.sites)
        size = min(self.batch_size, task.data.sizes["train"])
        images = stacked(task, "train", size, self.batches, key)["image"]
        seen = collect(net.once(_look, sites, self.points), variables, [*images], key)
        rows = lambda layer: np.concatenate(
            [seen[site].inputs.reshape(-1, _inputs(layer)) for site in layer.sites]
        )
        return {path: (x := rows(layer)).T @ x for path, layer in layers.items()}


def _inputs(layer: Layer) -> int:
    return int(np.prod([layer.shape[axis] for axis in (*layer.inputs, *layer.window)]))


def _look(net: Net, sites: tuple[str, ...], points: int) -> Look:
    return look(net.task.fn, net.groups, sites, points)


def repaired(
    task: Task,
    variables: Variables,
    grams: Mapping[str, Any],
    masks: Mapping[str, Any],
    ridge: float,
) -> Variables:
    """The dense net under unit masks, what reads them refitted to its outputs of before.

    Args:
        task: of the net.
        variables: of the dense net.
        grams: from `Repair.grams`; layers without one are masked alone.
        masks: {group: bool [units]}, traced or not: one compiled function serves all of them.
        ridge: see `reconstruct.masked_refit`.
    """
    net = Net(task)
    leaves, read = net.leaves(variables), net.leaves(expand(net.groups, masks, ("in",)))
    for path, gram in grams.items():
        layer = net.groups.layers[path]
        weight = layer.matrix(leaves[path])
        inputs, window, outputs = weight.shape
        # [inputs]: a mask of a kernel at its input axis is the same for all windows and outputs.
        keep = jnp.repeat(layer.matrix(jnp.asarray(read[path]))[:, 0, 0], window)
        flat = weight.reshape(inputs * window, outputs).astype(gram.dtype)
        new = masked_refit(gram, flat, keep, ridge).reshape(inputs, window, outputs)
        leaves[path] = layer.array(new).astype(leaves[path].dtype)
    return apply_masks(net.tree(leaves), expand(net.groups, masks))


def ranks_of(task: Task, variables: Variables, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """{group: int [units]}: 0 for the unit whose readers weigh most, by their l1 norm.

    Groups that nothing reads as inputs go by the weights that make them.
    """
    net = Net(task)
    sizes = net.tree({path: np.abs(np.asarray(x)) for path, x in net.leaves(variables).items()})
    scores = {**to_units(net.groups, sizes), **to_units(net.groups, sizes, ("in",))}
    ranks = {}
    for name in names:
        score = np.asarray(scores.get(name, np.zeros(net.groups.sizes[name])))
        order = np.argsort(-score, kind="stable")
        ranks[name] = np.argsort(order, kind="stable").astype(np.int32)
    return ranks

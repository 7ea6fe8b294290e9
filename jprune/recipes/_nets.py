"""What stages ask about a task's net: its groups, its cost, its slim form. Found once for a net."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jprune.base import Budget, CostModel, Groups, Masks, Pruned, Task, Variables
from jprune.cost import cost_model
from jprune.granularity import lift
from jprune.graph import slim, slim_params, trace
from jprune.masks import is_none
from jprune.recipes._resolution import seen_at
from jprune.units import expand, ones


def groups_of(task: Task) -> Groups:
    """The groups of a task's net; traced once."""
    return traced(task.fn, task.init, task.example)


@functools.lru_cache(maxsize=8)
def traced(fn: Callable[..., Any], init: Callable[..., Any], example: Any) -> Groups:
    """The groups of a net; traced once."""
    return trace(fn, _shapes(init), example)


def _shapes(init: Callable[..., Any]) -> Variables:
    return jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))


def shapes_of(task: Task) -> Variables:
    """Shapes and types of the dense net's variables."""
    return _shapes(task.init)


def cost_of(task: Task) -> CostModel:
    """The cost model of a task's net; made once."""
    return _costed(task.fn, task.init, task.example)


@functools.lru_cache(maxsize=8)
def _costed(fn: Callable[..., Any], init: Callable[..., Any], example: Any) -> CostModel:
    return cost_model(fn, _shapes(init), example, groups=traced(fn, init, example))


def are_units(groups: Groups, masks: Masks) -> bool:
    """Whether masks are {group: [units]} and not a tree like the variables."""
    known = {*groups.sizes, *(branch.name for branch in groups.branches)}
    return isinstance(masks, dict) and set(masks) <= known


def weight_masks(task: Task, masks: Masks) -> Masks:
    """Masks as a tree like the variables; None where nothing is pruned."""
    if masks is None or not are_units(groups_of(task), masks):
        return masks
    return expand(groups_of(task), masks)


def unit_masks(task: Task, pruned: Pruned) -> dict[str, Any]:
    """Masks of all groups; masks of weights remove the units that nothing reads any more."""
    groups = groups_of(task)
    masks = {} if pruned.masks is None else pruned.masks
    if are_units(groups, masks):
        return {**ones(groups), **masks}
    return {**ones(groups), **lift(groups, masks)}


def prunable_weights(task: Task, masks: Masks, budget: Budget) -> Masks:
    """Masks of all weights that may go, True where one is alive; None for the other leaves.

    Kernels may go, all that have two axes or more, but for those of a group that the budget's
    floors leave whole.

    Args:
        task: of the net.
        masks: of weights or units, from before; or None.
        budget: whose floors are read.
    """
    groups = groups_of(task)
    whole = {
        place.leaf
        for name, floor in budget.floors.items()
        if floor >= groups.sizes[name]
        for place in groups.places[name]
        if "kernel" in place.roles
    }
    shapes = shapes_of(task)
    params, rest = task.split(shapes)
    nothing = lambda tree: jax.tree.map(lambda leaf: None, tree)
    kernels = task.merge(
        jax.tree.map(lambda leaf: np.ones(leaf.shape, bool) if leaf.ndim > 1 else None, params),
        nothing(rest),
    )
    kernels = jax.tree.unflatten(
        groups.treedef,
        [
            None if path in whole else mask
            for path, mask in zip(groups.leaves, groups.treedef.flatten_up_to(kernels))
        ],
    )
    before = weight_masks(task, masks)
    if before is None:
        return kernels
    alive = lambda kernel, mask: kernel if kernel is None or mask is None else kernel & mask
    return jax.tree.map(alive, kernels, before, is_leaf=is_none)


def standing(groups: Groups, masks: Mapping[str, Any]) -> tuple[str, ...]:
    """Groups with a place outside the branches that masks remove."""
    removed = {
        leaf
        for branch in groups.branches
        if not np.all(masks.get(branch.name, True))
        for leaf in branch.leaves
    }
    return tuple(
        name
        for name in groups.names
        if any(place.leaf not in removed for place in groups.places[name])
    )


def of_single_weights(budget: Budget) -> Budget:
    """The budget without what concerns units: multiples and floors."""
    return dataclasses.replace(budget, multiple_of=1, min_units=1, floors={})


def slim_net(task: Task, pruned: Pruned) -> tuple[Callable[..., Any], Variables]:
    """The small net: `(fn, variables)`; single weights that are masked stay in it as zeros."""
    groups, masks = groups_of(task), unit_masks(task, pruned)
    fn = seen_at(slim(task.fn, groups, masks), pruned.resolution)
    return fn, slim_params(groups, masks, pruned.variables)

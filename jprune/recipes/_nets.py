"""What stages ask about a task's net: its groups, its cost, its slim form. Found once for a net."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jprune import errors
from jprune.base import CostModel, Groups, Masks, Pruned, Task, Variables
from jprune.cost import cost_model
from jprune.graph import slim, slim_params, trace
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
    """Masks of all groups.

    Raises:
        StructureError: the masks are not those of units.
    """
    groups = groups_of(task)
    masks = {} if pruned.masks is None else pruned.masks
    if not are_units(groups, masks):
        raise errors.StructureError(
            "the masks are a tree of weights: zeros inside kernels leave no smaller dense net. "
            "Prune units to slim."
        )
    return {**ones(groups), **masks}


def slim_net(task: Task, pruned: Pruned) -> tuple[Callable[..., Any], Variables]:
    """The small net: `(fn, variables)`.

    Raises:
        StructureError: the masks are not those of units.
    """
    groups, masks = groups_of(task), unit_masks(task, pruned)
    return slim(task.fn, groups, masks), slim_params(groups, masks, pruned.variables)

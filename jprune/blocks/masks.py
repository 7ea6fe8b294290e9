"""Masks from the groups of blocks that are alive, of units, branches and patterns together.

A unit goes if its filter or its channel is empty, or the branch around it. A pattern of weights can
leave a unit without readers: `lift` finds such units, for `slim` to remove; `forms.compact` stores
the kernels of a pattern small.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jprune import errors
from jprune.base import Groups, Masks, Variables
from jprune.blocks.members import Blocks, along, by_kind, squares
from jprune.masks import intersect
from jprune.units import are_units, expand, ones, standing

Alive = Mapping[str, Any]
"""{block: bool [groups]} of one kind, or {kind: {block: bool [groups]}}."""


def alive(blocks: Blocks, variables: Variables) -> dict[str, np.ndarray]:
    """{block: bool [groups]}: whether any weight of a group is other than 0.

    For filters or channels these are masks of units, as `slim` takes them. `masks` combines several
    kinds.

    Args:
        blocks: of one kind.
        variables: those of the traced net or a part of them.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import blocks
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.eye(2, 3), "second": jnp.ones((3, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> alive(blocks.filters(groups), variables)
        {'first': array([ True,  True, False])}
    """
    # ||w_g||^2 > 0: no tolerance, since proximal steps make exact zeros.
    return {name: np.asarray(s) > 0 for name, s in squares(blocks, variables).items()}


def spread(blocks: Blocks, masks: Alive) -> Masks:
    """Masks of weights from masks of groups.

    Args:
        blocks: of one kind, made from groups.
        masks: {block: bool [groups]}; a block that is not named stays whole.

    Returns:
        A tree like the traced variables; None where there are no groups.

    Raises:
        StructureError: masks of other blocks.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import blocks
        >>> variables = {"b": jnp.ones(3), "w": jnp.ones((2, 3))}
        >>> fn = lambda v, x: x @ v["w"] + v["b"]
        >>> rows = blocks.rows(jprune.trace(fn, variables, jnp.ones(2)))
        >>> spread(rows, {"w": np.array([True, False, True])})["b"] is None
        True
        >>> spread(rows, {"w": np.array([True, False, True])})["w"].tolist()
        [[True, False, True], [True, False, True]]
    """
    groups = _groups_of(blocks)
    by_path: dict[str, Any] = {}
    for name, mask in masks.items():
        if name not in blocks or np.shape(mask) != (blocks[name].size,):
            expected = f"[{blocks[name].size}]" if name in blocks else f"of {', '.join(blocks)}"
            raise errors.StructureError(
                f"a mask of shape {np.shape(mask)} for {name!r}; masks of these {blocks.kind}s "
                f"are {expected}. Pass the masks of pool(blocks, scores), and the same blocks."
            )
        for member in (*blocks[name].members, *blocks[name].followers):
            shape = groups.leaves[member.path].shape
            # True where no group of the block stands: those weights are not its to mask.
            own = np.broadcast_to(along(member, shape, np.asarray(mask, bool), True), shape)
            # A weight on two axes of units goes with either.
            by_path[member.path] = own & by_path.get(member.path, True)
    return groups.treedef.unflatten([by_path.get(path) for path in groups.leaves])


def _groups_of(blocks: Blocks) -> Groups:
    if blocks.groups is None:
        raise errors.ArgumentError(
            f"these {blocks.kind}s were made by hand and belong to no net. Make them from groups: "
            f"blocks.{blocks.kind}s(jprune.trace(fn, variables, x))."
        )
    return blocks.groups


def masks(blocks: Blocks | Sequence[Blocks], alive: Alive, before: Masks = None) -> Masks:
    """Masks from groups that are alive: of units and branches, or of weights if there are patterns.

    A unit goes if its filter or its channel does. A group without units goes with the branch around
    it.

    Args:
        blocks: of one kind, or of several.
        alive: {block: bool [groups]}, of several kinds {kind: {block: bool [groups]}}.
        before: earlier masks, of weights or units; what they mask stays masked.

    Raises:
        BudgetError: a group is empty and in no branch: nothing would pass.
        ArgumentError: blocks that were not made from groups.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import blocks
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.eye(2, 3), "second": jnp.array([[1.0], [0.0], [1.0]])}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> both = blocks.filters(groups), blocks.channels(groups)
        >>> masks(both, {each.kind: alive(each, variables) for each in both})
        {'first': array([ True, False, False])}
    """
    families = by_kind(blocks, alive, "alive")
    groups = _groups_of(families[0][0])
    units, patterns = _units(groups, families), _patterns(families)
    # Masks of units as long as they say it all: `slim` cuts units off, weights stay as zeros.
    if before is None or are_units(groups, before):
        for name, mask in (before or {}).items():
            units[name] = np.asarray(mask, bool) & units.get(name, True)
        return units if patterns is None else intersect(patterns, expand(groups, units))
    weights = intersect(before, expand(groups, units))
    return weights if patterns is None else intersect(weights, patterns)


def _units(groups: Groups, families: Sequence[tuple[Blocks, Alive]]) -> dict[str, np.ndarray]:
    # A filter that is empty and a channel that is empty remove the same unit.
    units, gone = ones(groups), {}
    for blocks, of_kind in families:
        for name, mask in of_kind.items():
            if blocks.per == "unit":
                units[name] = units[name] & np.asarray(mask, bool)
            elif blocks.per == "branch":
                gone[name] = np.asarray(mask, bool)
    for name in [name for name, mask in units.items() if not mask.any()]:
        leaves = {place.leaf for place in groups.places[name]}
        # The branches whose leaves hold all of the group: with one of them the group goes.
        around = [branch for branch in groups.branches if leaves <= set(branch.leaves)]
        if not around:
            raise errors.BudgetError(
                f"no unit of {name} is left: nothing passes through it. Write a smaller strength, "
                "fewer epochs, or a floor for this group."
            )
        # The innermost one: an outer branch would take more along than is empty.
        gone[min(around, key=lambda branch: len(branch.leaves)).name] = np.zeros(1, bool)
    # Groups inside a removed branch cost nothing: their masks say nothing, and are whole.
    for name in {*groups.names} - {*standing(groups, gone)}:
        units[name] = np.ones(groups.sizes[name], bool)
    return units | gone


def _patterns(families: Sequence[tuple[Blocks, Alive]]) -> Masks:
    """Masks of weights that all patterns keep; None where there is no pattern."""
    result = None
    for blocks, of_kind in families:
        if blocks.per == "weight" and of_kind:
            own = spread(blocks, of_kind)
            result = own if result is None else intersect(result, own)
    return result

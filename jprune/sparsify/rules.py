"""Rules: masks as a function of the parameters and the step, for masks that move while one trains.

A rule is asked now and then by a transformation that decides what a mask does: `feedback` keeps the
weights behind it, `soft_prune` sets them to 0 once, `hard_threshold` freezes them for a while.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jprune import errors
from jprune.base import (
    ROLES,
    Allocator,
    Budget,
    Criterion,
    Groups,
    Masks,
    Params,
    PyTree,
    Schedule,
    Scores,
    is_none,
)
from jprune.blocks.members import paths_among
from jprune.graph.shrink.concrete import at_once
from jprune.units import are_units, expand, places_of, to_units

Rule = Callable[..., Masks]
"""`rule(params, step) -> masks`: a tree like the parameters, None where nothing is pruned."""


def masks_by(
    criterion: Criterion,
    allocator: Allocator,
    schedule: Schedule,
    groups: Groups | None = None,
    per: str = "unit",
    pool: str = "sum",
    roles: Sequence[str] = ROLES,
) -> Rule:
    """The rule: score the parameters, keep the best at the density that a schedule has at a step.

    Args:
        criterion: scores parameters or units, without data.
        allocator: jittable at a traced density, such as `allocate.global_topk`, `allocate.uniform`
            or `allocate.toward(counts)`.
        schedule: step -> density.
        groups: traced with these very parameters, or with variables of which they are a part. None:
            single weights, of every leaf that the criterion scores.
        per: with groups, "unit" or "weight" (those of kernels alone).
        pool: how scores of weights become scores of units: "sum", or "mean" where units of unequal
            size compete.
        roles: of units, where they are masked. With `("kernel",)` a unit loses its kernels alone
            and still has a gradient; at all roles it has none, and never comes back.

    Returns:
        `rule(params, step)`, jittable.

    Raises:
        ArgumentError: another `per`, or a criterion that looks at data.

    Example:
        >>> import jax.numpy as jnp
        >>> from jprune import allocate, criteria, schedules
        >>> halve = schedules.one_shot(0.5, at=1)
        >>> rule = masks_by(criteria.magnitude(), allocate.global_topk, halve)
        >>> [rule({"w": jnp.array([3.0, -4.0])}, step)["w"].tolist() for step in (0, 1)]
        [[True, True], [False, True]]
    """
    if per not in ("unit", "weight") or criterion.needs_data:
        raise errors.ArgumentError(
            f"masks_by(per={per!r}) with a criterion whose needs_data is {criterion.needs_data}; "
            "write per='unit' or 'weight', and a criterion that looks at the parameters alone."
        )

    def rule(params: Params, step: Any, **extra: Any) -> Masks:
        del extra
        budget = Budget(density=at_once(schedule)(step))
        if groups is None:
            return allocator(criterion.score((), params), budget, None)
        scores = criterion.score((), as_variables(groups, params))
        if per == "unit":
            return unit_masks(groups, scores, allocator, budget, params, pool, roles)
        return allocator(as_params(groups, kernels_of(groups, scores), params), budget, None)

    return rule


def unit_masks(
    groups: Groups,
    scores: Scores,
    allocator: Allocator,
    budget: Budget,
    params: Params,
    pool: str = "sum",
    roles: Sequence[str] = ROLES,
) -> Masks:
    """Masks like the parameters, of the units that an allocator keeps.

    Args:
        groups: from `trace`.
        scores: of units, or a tree like the variables.
        allocator: of scores of units.
        budget: its density may be traced.
        params: for their structure.
        pool: see `masks_by`.
        roles: see `masks_by`.

    Returns:
        None at leaves where no unit that was scored has these roles.
    """
    if not are_units(groups, scores):
        scores = to_units(groups, scores, within=pool, across=pool)
    chosen = {name: m for name, m in allocator(scores, budget, None).items() if m is not None}
    touched = {place.leaf for _, place in places_of(groups, roles, tuple(chosen))}
    masks = groups.treedef.flatten_up_to(expand(groups, chosen, roles))
    paths = groups.leaves
    only = [mask if path in touched else None for path, mask in zip(paths, masks)]
    return as_params(groups, groups.treedef.unflatten(only), params)


def kernels_of(groups: Groups, tree: PyTree) -> PyTree:
    """A tree like the variables with None at everything but kernels."""
    leaves = groups.treedef.flatten_up_to(tree)
    kernels = {*groups.kernels}
    pairs = zip(groups.leaves, leaves)
    return groups.treedef.unflatten([leaf if path in kernels else None for path, leaf in pairs])


def paths_in(groups: Groups, params: Params) -> tuple[str, ...]:
    """The path among the traced variables of every parameter.

    Raises:
        StructureError: the groups are of another net.
    """
    paths = paths_among(tuple(groups.leaves), params)
    if not {*paths} <= {*groups.leaves}:
        raise errors.StructureError(
            "the groups are of another net: the parameters are neither the traced variables nor a "
            f"part of them; {next(p for p in paths if p not in groups.leaves)} is not there."
        )
    return paths


def as_variables(groups: Groups, tree: PyTree) -> PyTree:
    """A tree like the parameters as a tree like the variables, None elsewhere."""
    by_path = dict(zip(paths_in(groups, tree), jax.tree.leaves(tree)))
    return groups.treedef.unflatten([by_path.get(path) for path in groups.leaves])


def as_params(groups: Groups, tree: PyTree, params: Params) -> PyTree:
    """The parameters' part of a tree like the variables."""
    by_path = dict(zip(groups.leaves, groups.treedef.flatten_up_to(tree)))
    leaves = [by_path[path] for path in paths_in(groups, params)]
    return jax.tree.structure(params).unflatten(leaves)


def where_masked(function: Callable[..., Any], masks: Masks, *trees: PyTree) -> PyTree:
    """Maps `function(mask, *leaves)` over the leaves that have a mask; the first tree elsewhere."""
    one = lambda mask, leaf, *others: leaf if mask is None else function(mask, leaf, *others)
    return jax.tree.map(one, masks, *trees, is_leaf=is_none)

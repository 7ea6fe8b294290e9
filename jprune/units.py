"""Conversions between units and weights: expand masks, pool scores, gather and map weights.

Unit masks and scores are `{group: [units]}`, weight masks are trees like the variables.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import ROLES, Groups, Masks, Place, PyTree, Scores, Variables
from jprune.graph.shrink.concrete import at_hand, is_traced, on_host, put_back


def ones(groups: Groups) -> dict[str, np.ndarray]:
    """Unit masks that keep everything."""
    return {name: np.ones(size, bool) for name, size in groups.sizes.items()}


def places_of(
    groups: Groups, roles: Sequence[str], names: Sequence[str] | None = None
) -> list[tuple[str, Place]]:
    """(group, place) for all places with one of these roles.

    Raises:
        ArgumentError: an unknown role.
    """
    unknown = [role for role in roles if role not in ROLES]
    if isinstance(roles, str) or unknown:
        raise errors.ArgumentError(
            f"roles={roles!r} holds {unknown or 'a bare string'}; roles are a tuple of "
            f'{", ".join(ROLES)}. Write roles=("in",).'
        )
    return [
        (name, place)
        for name in (groups.names if names is None else names)
        for place in groups.places[name]
        if set(place.roles) & set(roles)
    ]


def expand(groups: Groups, unit_masks: Mapping[str, Any], roles: Sequence[str] = ROLES) -> Masks:
    """Weight masks from unit masks: every weight of a pruned unit is masked.

    Args:
        groups: from `trace`.
        unit_masks: {group: [units]}, bool or float; a group that is not named keeps its units. The
            mask [1] of a branch applies to all leaves that only the branch reads. That removes the
            branch exactly only if zero weights make its output 0; `slim` and `gated(at="join")`
            always do.
        roles: where a unit is masked. `("in",)` removes it exactly for any nonlinearity. A float
            at several places would multiply several times, so float masks need explicit roles:
            `("in",)` or `("scale", "shift")`.

    Returns:
        A tree like the variables, of the masks' type, 1 where nothing is masked. A position that
        belongs to two units (a head and a head dimension) has the product of their masks.

    Raises:
        StructureError: an unknown group or a wrong length.
        ArgumentError: float masks at all roles; an unknown role.

    Example:
        >>> import jax.numpy as jnp, numpy as np, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.zeros((2, 3)), "second": jnp.zeros((3, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> expand(groups, {"first": np.array([True, False, True])}, ("in",))["second"][:, 0]
        Array([ True, False,  True], dtype=bool)
    """
    # Names of branches are taken out first: their masks act on whole leaves, not along an axis.
    branches = [branch for branch in groups.branches if branch.name in unit_masks]
    removed = {leaf: unit_masks[b.name] for b in branches for leaf in b.leaves}
    unit_masks = {k: v for k, v in unit_masks.items() if k not in {b.name for b in branches}}
    check_units(groups, unit_masks)
    unit_masks = {k: m if hasattr(m, "dtype") else np.asarray(m) for k, m in unit_masks.items()}
    real = any(mask.dtype != np.bool_ for mask in unit_masks.values())
    if real and tuple(roles) == ROLES:
        raise errors.ArgumentError(
            "float masks at all roles multiply kernel, scale, shift, statistics and consumer "
            "alike. Name "
            'the roles: expand(groups, gates, roles=("in",)) or roles=("scale", "shift").'
        )
    dtype = jnp.result_type(*unit_masks.values()) if real else jnp.bool_
    # NumPy unless something is traced. Outside of jit, JAX would compile a program per shape, which
    # takes longer than running it; inside, a mask made by NumPy would be a constant of full size.
    concrete = [at_hand(mask) for mask in (*unit_masks.values(), *removed.values())]
    xnp = jnp if is_traced() or any(mask is None for mask in concrete) else np
    factors: dict[str, list[Any]] = {path: [] for path in groups.leaves}
    for name, place in places_of(groups, roles, tuple(unit_masks)):
        mask = xnp.asarray(unit_masks[name], dtype)
        # Position n of the axis belongs to unit place.units[n]; if that is -1, its factor is 1.
        along = xnp.where(place.units < 0, xnp.ones((), dtype), mask[np.maximum(place.units, 0)])
        # [1, ..., n, ..., 1]: broadcast along the other axes when the factors are multiplied.
        rank = len(groups.leaves[place.leaf].shape)
        shape = [-1 if axis == place.axis else 1 for axis in range(rank)]
        factors[place.leaf].append(along.reshape(shape))
    for path, mask in removed.items():
        factors[path].append(xnp.asarray(mask, dtype)[0])
    whole = [
        math.prod(factors[path], start=xnp.ones(leaf.shape, dtype))
        for path, leaf in groups.leaves.items()
    ]
    return jax.tree.unflatten(groups.treedef, jax.device_put(whole) if xnp is np else whole)


def check_units(groups: Groups, by_group: Mapping[str, Any]) -> None:
    """Refuses {group: [..., units]} that are not of this net.

    Raises:
        StructureError: an unknown group, or a wrong length.
        FrozenError: the name of something that is frozen.
    """
    for name, value in by_group.items():
        frozen = [entry for entry in groups.frozen if entry.leaf == name]
        if name not in groups.sizes and frozen:
            raise errors.FrozenError(
                f"{name!r} is frozen: {frozen[0].reason} ({frozen[0].equation}). Leave it out; the "
                f"groups are {', '.join(groups.names) or 'none'}."
            )
        if name not in groups.sizes:
            raise errors.StructureError(
                f"there is no group {name!r}; the groups are {', '.join(groups.names) or 'none'}."
            )
        if jnp.shape(value)[-1:] != (groups.sizes[name],):
            raise errors.StructureError(
                f"{name!r} came with shape {jnp.shape(value)}; the group has {groups.sizes[name]} "
                "units."
            )


_SEGMENTS: dict[str, Callable[[jax.Array, np.ndarray, int], jax.Array]] = {
    "sum": lambda values, units, count: jax.ops.segment_sum(values, units, count),
    "max": lambda values, units, count: jax.ops.segment_max(values, units, count),
    "min": lambda values, units, count: jax.ops.segment_min(values, units, count),
    "mean": lambda values, units, count: (
        jax.ops.segment_sum(values, units, count) / np.bincount(units, minlength=count)
    ),
    "l2": lambda values, units, count: jnp.sqrt(jax.ops.segment_sum(values**2, units, count)),
}
_EXTREMES = {"max": (np.maximum, -np.inf), "min": (np.minimum, np.inf)}


def _check_reductions(*names: str) -> None:
    unknown = [name for name in names if name not in _SEGMENTS]
    if unknown:
        raise errors.ArgumentError(
            f"to_units cannot reduce by {unknown[0]!r}; write one of {', '.join(_SEGMENTS)}."
        )


def _pool(values: Any, units: np.ndarray, count: int, how: str) -> Any:
    """[count]: values [positions, ...] reduced by the units [positions] that they belong to."""
    if isinstance(values, np.ndarray) and jnp.issubdtype(values.dtype, jnp.floating):
        return _pool_numbers(values, units, count, how)
    # [positions * fan] values, each labelled with its unit: one segment reduction does both steps.
    fan = math.prod(values.shape[1:])
    return _SEGMENTS[how](jnp.reshape(values, -1), np.repeat(units, fan), count)


def _pool_numbers(values: np.ndarray, units: np.ndarray, count: int, how: str) -> np.ndarray:
    """`_pool` in NumPy, with sums in float64."""
    reduce, empty = _EXTREMES.get(how, (np.add, 0.0))
    rest = tuple(range(1, values.ndim))
    result = np.full(count, empty)
    with np.errstate(all="ignore"):  # -inf and +inf are scores
        values = values**2 if how == "l2" else values
        wide = None if how in _EXTREMES else np.float64
        # First each position's own values, then positions of the same unit: a segment reduction.
        reduce.at(result, units, reduce.reduce(values, rest, wide).astype(np.float64))
        if how == "mean":
            result = result / (np.bincount(units, minlength=count) * math.prod(values.shape[1:]))
        return (np.sqrt(result) if how == "l2" else result).astype(values.dtype)


def leaves_by_path(groups: Groups, tree: PyTree) -> dict[str, Any]:
    """{path: leaf} of a tree like the variables; None leaves stay None.

    Raises:
        StructureError: the tree has another structure.
    """
    try:
        leaves = groups.treedef.flatten_up_to(tree)
    except ValueError as error:
        raise errors.StructureError(
            f"the tree is not like the variables of the traced net: {error}. Pass a whole tree "
            "with the structure of the variables, None where there is nothing."
        ) from None
    return dict(zip(groups.leaves, leaves))


def are_units(groups: Groups, masks: Masks) -> bool:
    """Whether masks are {group: [units]} and not a tree like the variables."""
    names = {*groups.sizes, *(branch.name for branch in groups.branches)}
    return isinstance(masks, dict) and set(masks) <= names


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


def to_units(
    groups: Groups,
    scores: Scores,
    roles: Sequence[str] = ("kernel",),
    within: str = "sum",
    across: str = "sum",
) -> dict[str, jax.Array]:
    """Scores of units from scores of weights.

    Args:
        groups: from `trace`.
        scores: a tree like the variables; leaves without a role asked for may be None.
        roles: which places of a unit are pooled.
        within: `sum`, `mean`, `max`, `min` or `l2` over all weights of a unit at one place.
        across: the same over the places of a unit (the producers of a residual stream).

    Returns:
        {group: [units]}. Groups without a place in these roles are left out.

    Raises:
        StructureError: scores of another structure, or None where a place needs them.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> to_units(groups, variables)["first"]
        Array([2., 2., 2.], dtype=float32)
    """
    _check_reductions(within, across)
    leaves = leaves_by_path(groups, scores)
    parts: dict[str, list[Any]] = {}
    like: dict[str, Any] = {}
    for name, place in places_of(groups, roles):
        leaf = leaves[place.leaf]
        if leaf is None:
            raise errors.StructureError(
                f"the scores have None at {place.leaf}, where group {name!r} has the role "
                f"{place.roles}. Score that leaf, or leave its role out of roles={tuple(roles)}."
            )
        like[name] = leaf if isinstance(leaf, jax.Array) else like.get(name)
        # Units first: [positions, rest]; positions of no unit are dropped.
        numbers = at_hand(leaf)
        along = (
            jnp.moveaxis(leaf, place.axis, 0)
            if numbers is None
            else (np.moveaxis(numbers, place.axis, 0))
        )
        taken = np.flatnonzero(place.units >= 0)
        along = along if len(taken) == len(place.units) else along[taken]
        pooled = _pool(along, place.units[taken], groups.sizes[name], within)
        parts.setdefault(name, []).append(pooled)
    return {name: _across(values, across, like[name]) for name, values in parts.items()}


def _across(parts: Sequence[Any], how: str, like: Any) -> Any:
    """[units]: scores of several places reduced to one; a JAX array if `like` is one."""
    xnp = np if all(isinstance(part, np.ndarray) for part in parts) else jnp
    count = len(parts[0])
    result = _pool(xnp.stack(parts, axis=1), np.arange(count), count, how)
    return put_back(result, like) if isinstance(result, np.ndarray) else result


def _unit_major(place: Place, count: int) -> np.ndarray:
    """[count, repeats]: for every unit, the positions at a place that belong to it."""
    repeats = np.bincount(place.units[place.units >= 0], minlength=count)
    if repeats.min() != repeats.max():
        raise errors.StructureError(
            f"the units at {place.leaf}, axis {place.axis}, stand at {repeats.min()} to "
            f"{repeats.max()} positions each; rows of one length need the same number for all."
        )
    # Units (0, 1, 0, 1) have the positions ((0, 2), (1, 3)): a stable sort by unit.
    taken = np.flatnonzero(place.units >= 0)
    order = np.argsort(place.units[taken], kind="stable")
    return taken[order].reshape(count, -1)


def rows(
    groups: Groups, variables: Variables, group: str, roles: Sequence[str] = ("kernel",)
) -> jax.Array:
    """All weights of every unit of a group, one row per unit.

    Args:
        groups: from `trace`.
        variables: a tree like the variables.
        group: which group.
        roles: which places are included, in the order of the leaves.

    Returns:
        [units, fan]: for distances, clusters, proximal steps, OBS.

    Raises:
        StructureError: the units have different numbers of positions at a place.
        ArgumentError: the group has no place in these roles.
    """
    leaves = leaves_by_path(groups, variables)
    parts = []
    for _, place in places_of(groups, roles, (group,)):
        index = _unit_major(place, groups.sizes[group])
        parts.append(_rows_at(leaves[place.leaf], place.axis, index))
    if not parts:
        raise errors.ArgumentError(
            f"group {group!r} has no place in the roles {tuple(roles)}; it has "
            f"{sorted({role for place in groups.places[group] for role in place.roles})}."
        )
    return on_host(lambda xnp, *parts: xnp.concatenate(parts, axis=1))(*parts)


def _rows_at(leaf: Any, axis: int, index: np.ndarray) -> Any:
    """[units, repeats * rest]: the positions [units, repeats] of an axis, a row per unit."""
    cut = lambda xnp, leaf: xnp.moveaxis(leaf, axis, 0)[index].reshape(len(index), -1)
    return on_host(cut)(leaf)


def map_units(
    groups: Groups,
    variables: Variables,
    matrices: Mapping[str, Any],
    roles: Sequence[str] = ("in",),
) -> Variables:
    """Applies linear maps along unit axes, to fold a scale into consumers or merge clusters.

    Args:
        groups: from `trace`.
        variables: the net's variables.
        matrices: {group: M [m, units]} with m <= units; position i of the result is sum_j M[i, j]
            old[j].
        roles: which places are mapped.

    Returns:
        The variables, with m units at the mapped places.

    Raises:
        StructureError: a matrix of the wrong shape.
    """
    leaves = leaves_by_path(groups, variables)
    for name, place in places_of(groups, roles, tuple(matrices)):
        matrix, count = matrices[name], groups.sizes[name]
        matrix = matrix if isinstance(matrix, jax.Array) else np.asarray(matrix)
        if matrix.ndim != 2 or matrix.shape[1] != count or matrix.shape[0] > count:
            raise errors.StructureError(
                f"the matrix of {name!r} has shape {matrix.shape}; it must be [m, {count}] with m "
                f"at most {count}."
            )
        mapped = functools.partial(_mapped, place=place, count=count)
        leaves[place.leaf] = on_host(mapped)(leaves[place.leaf], matrix)
    return jax.tree.unflatten(groups.treedef, list(leaves.values()))


def _mapped(xnp: Any, leaf: Any, matrix: Any, place: Place, count: int) -> Any:
    """A leaf whose units at a place are mapped by a matrix [m, units]."""
    index = _unit_major(place, count)
    along = xnp.moveaxis(leaf, place.axis, 0)
    # new_i = sum_j M_ij old_j, for each of a unit's positions: [m, repeats, ...].
    mapped = xnp.tensordot(matrix, along[index], axes=1)
    # Positions of no unit (-1) stay, those of units from m on are dropped: what takes the place of
    # every position is a row of the leaf, or one of the mapped rows behind them.
    source = np.arange(len(along))
    own = index[: matrix.shape[0]]
    source[own.reshape(-1)] = len(along) + np.arange(own.size)
    both = xnp.concatenate([along, mapped.reshape(-1, *along.shape[1:]).astype(along.dtype)])
    return xnp.moveaxis(both[source[place.units < matrix.shape[0]]], 0, place.axis)

"""`slim` and `slim_params`: the same network on smaller dense arrays, with the kept units."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from jprune import errors
from jprune.base import Branch, Groups, Masks
from jprune.forms.leaf_type import is_leaf_type
from jprune.graph.couple.coupling import Coupling, couple, leaf_paths
from jprune.graph.couple.interpret import Frame
from jprune.graph.couple.labels import Indices, Reason
from jprune.graph.couple.zeros import find_survivors
from jprune.graph.look.branches import dependencies, find_forks, without
from jprune.graph.look.sites import find_spots
from jprune.graph.shrink import bodies
from jprune.graph.shrink.leaves import Leaves
from jprune.graph.shrink.rules import Alive, Keep, kept_shape, run, take
from jprune.jaxprs import Program

WAY_OUT = (
    "If this is another mode of the function that was traced (training beside inference), trace "
    "both, groups = jprune.trace(fn, variables, x, twin=this_one); if not, trace this very "
    "function. Then make the masks from its groups."
)
"""Ends the messages for a function that ties or freezes other things than the traced one."""

RULE_BOOKS = (bodies,)
"""The modules, beside `shrink`, whose rules are used here."""


def check_masks(groups: Groups, masks: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Unit masks as NumPy arrays; a group that is not named keeps all its units.

    Raises:
        StructureError: an unknown group, a wrong length, a mask that is not bool, or an emptied
            group.
    """
    result = {name: np.ones(size, bool) for name, size in groups.sizes.items()}
    branches = {branch.name for branch in groups.branches}
    for name, mask in masks.items():
        if name in branches:
            continue
        if name not in groups.sizes:
            raise errors.StructureError(
                f"the masks name a group {name!r} that this net does not have. Its groups are "
                f"{', '.join(groups.names) or 'none'}: the masks are of another net."
            )
        if np.shape(mask) != (groups.sizes[name],):
            raise errors.StructureError(
                f"the mask of {name!r} has shape {np.shape(mask)}; the group has "
                f"{groups.sizes[name]} units, so it must have shape ({groups.sizes[name]},)."
            )
        array = np.asarray(mask)
        if array.dtype != bool:
            raise errors.StructureError(
                f"the mask of {name!r} has type {array.dtype}; unit masks are bool, True keeps. "
                "Write mask > 0, or use jprune.gated for real gates."
            )
        if not array.any():
            raise errors.StructureError(
                f"the mask of {name!r} keeps none of its {array.size} units, which leaves a layer "
                "without channels. Keep at least one, or remove the whole branch."
            )
        result[name] = array
    return result


def dead_branches(groups: Groups, masks: Mapping[str, Any]) -> tuple[Branch, ...]:
    """The branches that the masks remove.

    Raises:
        StructureError: a mask of a branch that is not one bool.
    """
    dead: list[Branch] = []
    for branch in groups.branches:
        mask = np.asarray(masks.get(branch.name, [True]))
        if mask.shape != (1,) or mask.dtype != bool:
            raise errors.StructureError(
                f"the mask of {branch.name!r} has shape {mask.shape} and type {mask.dtype}; a "
                "branch is one unit. Write np.array([False]) to remove it."
            )
        if not mask[0]:
            dead.append(branch)
    return tuple(dead)


def axis_keeps(groups: Groups, masks: Mapping[str, Any]) -> dict[str, list[np.ndarray | None]]:
    """{leaf path: per axis, which positions live, None for all}."""
    checked = check_masks(groups, masks)
    keeps: dict[str, list[np.ndarray | None]] = {
        path: [None] * len(leaf.shape) for path, leaf in groups.leaves.items()
    }
    for name, mask in checked.items():
        if mask.all():
            continue
        for place in groups.places[name]:
            alive = (place.units < 0) | mask[place.units]
            before = keeps[place.leaf][place.axis]
            keeps[place.leaf][place.axis] = alive if before is None else before & alive
    for path, axes in keeps.items():
        for axis, keep in enumerate(axes):
            if keep is not None and not keep.any():
                raise _emptied(groups, path, axis)
    return keeps


def _emptied(groups: Groups, path: str, axis: int) -> errors.StructureError:
    """The error for masks of several groups that together leave no position of an axis."""
    names = [
        name
        for name, places in groups.places.items()
        if any((place.leaf, place.axis) == (path, axis) for place in places)
    ]
    return errors.StructureError(
        f"the masks of {', '.join(names)} together keep nothing of axis {axis} of {path}, whose "
        "positions need a unit of each. Keep more units of one of them."
    )


def slim_params(groups: Groups, masks: Masks, tree: Any) -> Any:
    """The kept part of a tree.

    Args:
        groups: of the net, from `trace`.
        masks: {group: bool [units]}.
        tree: the variables, one of their collections, or anything that repeats their paths:
            gradients, an optimizer state, the new statistics of a training step; arrays or
            shapes. Leaves may be stacked (an axis in front of the variable's), or have some of
            the variable's axes only (accumulators of rows and columns).

    Returns:
        The tree with smaller arrays; a leaf wholly inside a removed branch becomes None. Leaves
        whose path is not one of the variables' (a step counter) and scalars are returned as they
        are.

    Raises:
        StructureError: masks of another net, a leaf of a shape that does not fit its variable, a
            leaf that may stand for two variables of which different parts are kept (two
            collections with the same names: wrap the tree, {"online": tree}), or a tree that
            repeats the variables under none of their paths.

    Example:
        >>> import jax.numpy as jnp, numpy as np, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.zeros((3, 5)), "second": jnp.zeros((5, 2))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 3)))
        >>> small = slim_params(groups, {"first": np.arange(5) < 2}, variables)
        >>> small["first"].shape, small["second"].shape
        ((3, 2), (2, 2))
    """
    dead = {path for branch in dead_branches(groups, masks) for path in branch.leaves}
    leaves = Leaves(groups, axis_keeps(groups, masks), dead)
    recognised: list[Any] = []
    similar: list[str] = []

    def cut(key_path: Any, leaf: Any) -> Any:
        parts = tuple(jax.tree_util.keystr(key_path, simple=True, separator="/").split("/"))
        try:
            keep = (
                leaves.held(parts, leaf)
                if is_leaf_type(leaf)
                else leaves.keep(parts, np.shape(leaf))
            )
        except KeyError:
            similar.extend(["/".join(parts)] * leaves.is_like(parts, np.shape(leaf)))
            return leaf
        recognised.append(keep)
        if keep is None or is_leaf_type(leaf):
            return None if keep is None else leaf
        return _take_where_it_is(leaf, keep)

    result = jax.tree_util.tree_map_with_path(cut, tree, is_leaf=is_leaf_type)
    if similar and not recognised:
        raise errors.StructureError(
            f"no leaf of the tree has the path of a variable: it has {similar[0]!r}, the variables "
            f"have {', '.join(list(groups.leaves)[:3])}. Put it where it is in the variables, as "
            'in slim_params(groups, masks, {"outer": {"inner": tree}}).'
        )
    return result


def _take_where_it_is(leaf: Any, keep: Keep) -> Any:
    """The kept part of an array; a sharded axis stays sharded if its kept length can be divided."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(kept_shape(leaf.shape, keep), leaf.dtype)
    sharding = getattr(leaf, "sharding", None)
    traced = isinstance(leaf, Tracer)
    if traced or not isinstance(sharding, NamedSharding) or sharding.is_fully_replicated:
        return take(leaf, keep)
    shape = kept_shape(leaf.shape, keep)
    parts = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    spec = [
        part if part is not None and length % _parts(sharding, part) == 0 else None
        for part, length in zip(parts, shape)
    ]
    placed = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    # With a sharding for the result, or XLA gathers the whole array on every device first.
    return jax.jit(lambda whole: take(whole, keep), out_shardings=placed)(leaf)


def _parts(sharding: NamedSharding, names: Any) -> int:
    """The number of parts into which these mesh axes divide an array's axis."""
    several = names if isinstance(names, tuple) else (names,)
    return math.prod(sharding.mesh.shape[name] for name in several)


def slim(fn: Callable[..., Any], groups: Groups, masks: Masks) -> Callable[..., Any]:
    """The network on the kept units: a pure function of the slim variables.

    The function re-traces `fn` for every new shape of its arguments, so wrap it in `jax.jit`. It
    composes with `jit`, `grad`, `vmap` and `export`; custom derivatives are those of `fn`.

    Args:
        fn: the function that was traced, or its training-mode twin (same variables).
        groups: from `trace`.
        masks: {group: bool [units]}, True keeps; a group that is not named stays whole.

    Returns:
        `fn'(slim_params(groups, masks, variables), *args)`.

    Raises:
        StructureError: masks of another net (at once); variables that are not slim (when called).
        FrozenError: `fn` freezes something that the masks remove (when called).

    Example:
        >>> import jax.numpy as jnp, numpy as np, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 3)))
        >>> masks = {"first": np.arange(5) < 2}
        >>> slim(fn, groups, masks)(slim_params(groups, masks, variables), jnp.ones((1, 3)))
        Array([[6., 6.]], dtype=float32)
    """
    keeps = axis_keeps(groups, masks)
    cut = {branch.name for branch in dead_branches(groups, masks)}
    dead = {path for branch in dead_branches(groups, masks) for path in branch.leaves}

    def slim_fn(variables: Any, *args: Any) -> Any:
        leaves = check_slim(groups, keeps, dead, variables)
        # Traced at full shapes, with the dense net's labels; only the run is small.
        full = [
            jax.ShapeDtypeStruct(whole.shape, whole.dtype if leaf is None else leaf.dtype)
            for whole, leaf in zip(groups.leaves.values(), leaves)
        ]
        everything = jax.tree.unflatten(groups.treedef, full)
        coupling = couple(fn, everything, *args, groups=groups)
        alive = alive_units(coupling, groups, masks, keeps)
        program, frame, computed_outputs = _without_branches(coupling, cut, dead)
        results = iter(run(program, frame, alive, [*leaves, *jax.tree.leaves(args)]))
        # Statistics inside a removed branch are None, as its leaves are.
        outputs = [next(results) if computed else None for computed in computed_outputs]
        return jax.tree.unflatten(jax.tree.structure(coupling.output), outputs)

    return slim_fn


def _without_branches(
    coupling: Coupling, cut: set[str], dead: set[str]
) -> tuple[Program, Frame, list[bool]]:
    """The program without some branches, and which outputs it still has (without their statistics).

    Raises:
        StructureError: this function has no such branch.
    """
    program, frame = coupling.program, coupling.frame
    if not cut:
        return program, frame, [True] * len(program.outputs)
    spots = find_spots(program, coupling.uses, coupling.paths)
    forks = [f for f in find_forks(program, spots, len(coupling.paths)) if f.name in cut]
    if len(forks) != len(cut):
        raise errors.StructureError(
            f"the masks remove {sorted(cut)}; this function has only "
            f"{sorted(fork.name for fork in forks)} of them. {WAY_OUT}"
        )
    # Outputs that depend on a leaf of a removed branch are its statistics: nothing makes them any
    # more.
    bits = dependencies(without(program, frame, forks)[0], len(coupling.paths))
    removed = sum(1 << leaf for leaf, path in enumerate(coupling.paths) if path in dead)
    joined = {program.equations[fork.equation].outputs[0]: fork.identity for fork in forks}
    computed = [not bits[joined.get(value, value)] & removed for value in program.outputs]
    wanted = [value for value, is_there in zip(program.outputs, computed) if is_there]
    return *without(program, frame, forks, wanted), computed


def check_slim(
    groups: Groups, keeps: Mapping[str, Sequence[Any]], dead: set[str], variables: Any
) -> list[Any]:
    """The leaves of slim variables, in order; None for those of removed branches.

    Raises:
        StructureError: other leaves than the net has, or shapes that these masks do not give.
    """
    small = leaf_paths(variables)
    if set(small) != set(groups.leaves) - dead:
        differ = sorted(set(small) ^ (set(groups.leaves) - dead))
        raise errors.StructureError(
            f"the variables have other leaves than the traced net ({', '.join(differ[:5])}). Pass "
            "slim_params(groups, masks, variables)."
        )
    for path, leaf in small.items():
        full = groups.leaves[path].shape
        expected = tuple(n if k is None else int(k.sum()) for n, k in zip(full, keeps[path]))
        shape = leaf.shape if is_leaf_type(leaf) else np.shape(leaf)
        if shape != expected:
            raise errors.StructureError(
                f"{path} has shape {shape}; these masks make it {expected} of {full}. "
                "Pass slim_params(groups, masks, variables) with the same masks."
            )
    return [small.get(path) for path in groups.leaves]


def alive_units(
    coupling: Coupling, groups: Groups, masks: Mapping[str, Any], keeps: Mapping[str, Sequence[Any]]
) -> Alive:
    """The labels that live under the masks, checked against what this program freezes and ties.

    Raises:
        FrozenError: something is removed that this program freezes.
        StructureError: the masks are not closed under the ties of this program.
    """
    checked = check_masks(groups, masks)
    # One more entry, True: atom -1 indexes the last.
    alive = Alive(coupling.solution, np.concatenate([*checked.values(), [True]]))
    labels = coupling.labels
    find_survivors(coupling.program, coupling.frame, labels, coupling.uses, kernels=False)
    # What reductions freeze may go in groups that were opened: these count as alive here.
    opened = [np.full(size, groups.exact[name]) for name, size in groups.sizes.items()]
    inexact_live = Alive(coupling.solution, alive.atoms | ~np.concatenate([*opened, [True]]))
    for live, frozen in ((alive, labels.frozen), (inexact_live, labels.reduced)):
        reason = _removed(live, frozen)
        if reason is not None:
            raise errors.FrozenError(
                f"the masks remove channels that this function freezes: {reason.text} "
                f"({reason.equation or 'no equation'}, {reason.source or 'no line'}). Keep these "
                f"channels, or trace anew: {WAY_OUT}"
            )
    for leaf, path in enumerate(coupling.paths):
        for number, axis in enumerate(coupling.leaf_axes(leaf)):
            keep = keeps[path][number]
            expected = alive.of(axis)
            wrong = np.flatnonzero(~expected if keep is None else keep != expected)
            if wrong.size:
                raise errors.StructureError(
                    f"position {wrong[0]} on axis {number} of {path} is tied to channels that the "
                    f"masks treat otherwise. {WAY_OUT}"
                )
    for product in labels.products:
        # whole[i, j] = rows[i] and columns[j], tested for all elements at once
        all_live = functools.reduce(np.logical_and.outer, map(alive.of, product.factors))
        if (all_live != alive.of(product.whole)).any():
            raise errors.StructureError(
                f"what the masks leave is no rows and columns for {product.reason.equation} at "
                f"{product.reason.source or 'an unknown line'}. {WAY_OUT}"
            )
    return alive


def _removed(alive: Alive, frozen: Sequence[tuple[Indices, Reason]]) -> Reason | None:
    """The first reason for which a removed label is frozen; None if none is."""
    if not frozen:
        return None
    labels = np.concatenate([axis for axis, _ in frozen])
    dead = np.flatnonzero(~alive.of(labels))
    if not dead.size:
        return None
    # All frozen labels in one array: one look-up, not one for each reason.
    ends = np.cumsum([len(axis) for axis, _ in frozen])
    return frozen[int(np.searchsorted(ends, dead[0], side="right"))][1]

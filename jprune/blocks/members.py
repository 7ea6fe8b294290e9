"""Groups of weights that live or die together, reduced to a norm and multiplied by a factor.

A *block* is all groups of one kind that compete with each other: the units of an engine group (over
all producers of a residual stream, or all consumers), the columns of one kernel, one branch. What
stands in several leaves is one group, so penalties and projections see what is coupled.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Params, PyTree
from jprune.units import places_of

AXES = ("d", "h", "w", "in", "out")
"""Names of a kernel's axes, counted from the last one, as in `jprune.blocks.grains`."""


class Member(NamedTuple):
    """Where the groups of a block stand in one leaf."""

    path: str
    axes: tuple[int, ...]
    """Axes along which one group differs from the next; a group has all of the other axes."""
    units: np.ndarray | None
    """[positions along the axes]: the group at each, -1 for none; None: one after the other."""


class Block(NamedTuple):
    """Groups that compete."""

    size: int
    members: tuple[Member, ...]
    """Whose weights count."""
    followers: tuple[Member, ...] = ()
    """What goes to 0 with its group, and does not count."""


Blocks = Mapping[str, Block]


def unit_blocks(
    groups: Groups,
    names: Sequence[str] | None = None,
    roles: Sequence[str] = ("kernel",),
    followers: Sequence[str] = (),
) -> dict[str, Block]:
    """The units of engine groups, coupled wherever they stand.

    Args:
        groups: from `trace`.
        names: of groups; None: all that have a place in these roles.
        roles: ("kernel",) are filters, over all producers; ("in",) channels, over all consumers.
        followers: roles of what goes with them.

    Raises:
        FrozenError: a name is that of a leaf that the engine has frozen; the message says why.
        StructureError: no such group, or one without a place in these roles.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 1))}
        >>> blocks = unit_blocks(jprune.trace(fn, variables, jnp.zeros((1, 2))))
        >>> squares(blocks, variables)["first"].tolist()
        [2.0, 2.0, 2.0]
    """
    found = {}
    for name in groups.names if names is None else names:
        _check_group(groups, name)
        if members := _members(groups, name, roles):
            found[name] = Block(groups.sizes[name], members, _members(groups, name, followers))
        elif names is not None:
            raise errors.StructureError(
                f"the group {name!r} has no place in the roles {tuple(roles)}: there is nothing "
                "to reduce to a norm. Leave it out."
            )
    return found


def _members(groups: Groups, name: str, roles: Sequence[str]) -> tuple[Member, ...]:
    places = places_of(groups, roles, (name,))
    return tuple(Member(place.leaf, (place.axis,), place.units) for _, place in places)


def _check_group(groups: Groups, name: str) -> None:
    if name in groups.sizes:
        return
    for frozen in groups.frozen:
        if name in (frozen.leaf, frozen.leaf.rpartition("/")[0]):
            remedy = f" {frozen.remedy}" if frozen.remedy else ""
            raise errors.FrozenError(
                f"{name!r} is frozen: axis {frozen.axis} of {frozen.leaf} {frozen.reason}. No "
                f"penalty can remove it.{remedy} The groups are {', '.join(groups.names)}."
            )
    raise errors.StructureError(
        f"there is no group {name!r}; {errors.nearest(name, groups.names)}the groups are "
        f"{', '.join(groups.names) or 'none'}."
    )


def grain_blocks(
    groups: Groups, kernels: Sequence[str], along: Sequence[str] = ("d", "h", "w", "in")
) -> dict[str, Block]:
    """Patterns inside kernels, each kernel for itself.

    Args:
        groups: from `trace`.
        kernels: paths of kernels [window..., in, out].
        along: named axes along which one group differs from the next: all but "out" are columns
            (one tap of one input, over all filters), all five are single weights.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: x @ v["w"]
        >>> variables = {"w": jnp.arange(6.0).reshape(3, 2)}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 3)))
        >>> squares(grain_blocks(groups, ["w"]), variables)["w"].tolist()
        [1.0, 13.0, 41.0]
    """
    found = {}
    for path in kernels:
        shape = groups.leaves[path].shape
        axes = tuple(axis for axis, name in enumerate(AXES[-len(shape) :]) if name in along)
        size = int(np.prod([shape[axis] for axis in axes]))
        found[path] = Block(size, (Member(path, axes, None),))
    return found


def branch_blocks(
    groups: Groups, names: Sequence[str] | None = None, scales: bool = False
) -> dict[str, Block]:
    """Branches of residual sums, each one group: its kernels count, all else of it follows.

    Args:
        groups: from `trace`.
        names: of branches; None: all.
        scales: the scales of norms count too.

    Raises:
        StructureError: no such branch, or no branch at all.
    """
    branches = {branch.name: branch for branch in groups.branches}
    unknown = [name for name in names or () if name not in branches]
    if unknown or not branches:
        wanted = repr(unknown[0]) if unknown else "depth"
        raise errors.StructureError(
            f"{wanted}: the net has {', '.join(branches) or 'no'} branches. A branch is the side "
            "of a residual sum that has weights, the other side having none."
        )
    count = {path for path, leaf in groups.leaves.items() if len(leaf.shape) > 1}
    if scales:
        count |= {place.leaf for _, place in places_of(groups, ("scale",))}
    found = {}
    for name in branches if names is None else names:
        whole = {path: Member(path, (), None) for path in branches[name].leaves}
        counted = tuple(member for path, member in whole.items() if path in count)
        found[name] = Block(1, counted, tuple(m for m in whole.values() if m not in counted))
    return found


def leaves_of(paths: PyTree, params: Params) -> dict[str, jax.Array]:
    """{path: leaf} of parameters.

    Args:
        paths: a tree like the parameters, of the leaves' paths among the variables.
        params: the parameters.
    """
    return dict(zip(jax.tree.leaves(paths), jax.tree.leaves(params), strict=True))


def squares(blocks: Blocks, leaves: Mapping[str, Any]) -> dict[str, jax.Array]:
    """{block: [groups]}: sums of squares over the weights of every group.

    Args:
        blocks: the groups.
        leaves: {path: array}; members that are not there are left out.
    """
    return {name: _squares(block, leaves) for name, block in blocks.items()}


def _squares(block: Block, leaves: Mapping[str, Any]) -> jax.Array:
    total: Any = 0.0
    for member in block.members:
        if (leaf := leaves.get(member.path)) is None:
            continue
        rest = tuple(axis for axis in range(leaf.ndim) if axis not in member.axes)
        values = jnp.sum(leaf**2, axis=rest).reshape(-1)
        total = total + _gathered(values, member.units, block.size)
    return jnp.broadcast_to(jnp.asarray(total), (block.size,))


def _gathered(values: jax.Array, units: np.ndarray | None, size: int) -> jax.Array:
    if units is None or np.array_equal(units, np.arange(size)):
        return values
    taken = np.flatnonzero(units >= 0)
    return jax.ops.segment_sum(values[taken], units[taken], size)


def along(member: Member, shape: Sequence[int], values: Any, other: Any) -> Any:
    """Values of groups [groups] where they stand in a leaf; it broadcasts to the leaf's shape.

    Args:
        member: of a block.
        shape: of the leaf.
        values: one a group.
        other: at positions that belong to none.
    """
    if member.units is not None and not np.array_equal(member.units, np.arange(len(values))):
        values = jnp.where(member.units < 0, other, values[np.maximum(member.units, 0)])
    kept = [length if axis in member.axes else 1 for axis, length in enumerate(shape)]
    return values.reshape(kept)


def scaled(
    blocks: Blocks, leaves: Mapping[str, Any], factors: Mapping[str, jax.Array]
) -> dict[str, Any]:
    """The leaves with every group multiplied by its factor; followers of a factor 0 are 0."""
    found = dict(leaves)
    for name, block in blocks.items():
        factor = factors[name]
        here = [(member, factor) for member in block.members]
        here += [(member, (factor > 0).astype(factor.dtype)) for member in block.followers]
        for member, values in here:
            if (leaf := found.get(member.path)) is not None:
                found[member.path] = leaf * along(member, leaf.shape, values, 1.0)
    return found

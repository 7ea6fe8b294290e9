"""Blocks whose groups are units or branches: filters, channels, scales, branches."""

from collections.abc import Collection, Sequence

from jprune import errors
from jprune.base import Groups
from jprune.blocks.grains import kernels_of
from jprune.blocks.members import Block, Blocks, Member
from jprune.units import places_of


def filters(
    groups: Groups,
    names: Sequence[str] | None = None,
    *,
    scales: bool = True,
    shifts: bool = False,
) -> Blocks:
    """The weights that make a unit, over all coupled producers; a block is an engine group.

    Kernels count in norms. The unit's scales, shifts and biases in its producers go to 0 with it,
    whether they count or not.

    Args:
        groups: from `trace`.
        names: of groups; None: all.
        scales: whether the scales of norms count. A norm divides by the size of its kernel, so a
            penalty on kernels alone does not shrink the output of a unit behind a norm.
        shifts: whether shifts and biases count.

    Raises:
        FrozenError: a name is that of a leaf that the engine has frozen; the message says why.
        StructureError: no such group, or one that no kernel makes.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import blocks
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> blocks.norms(blocks.filters(groups), variables)["first"].round(3).tolist()
        [1.414, 1.414, 1.414]
    """
    # What counts is in the norm; what follows is only zeroed with its unit.
    counted = ("kernel", *(("scale",) if scales else ()), *(("shift",) if shifts else ()))
    followers = tuple(role for role in ("scale", "shift") if role not in counted)
    return _of_units("filter", groups, names, counted, followers)


def channels(groups: Groups, names: Sequence[str] | None = None) -> Blocks:
    """The weights that read a unit, over all its consumers; a block is an engine group.

    Args:
        groups: from `trace`.
        names: of groups; None: all that have a consumer with weights.

    Raises:
        FrozenError: a name is that of a leaf that the engine has frozen; the message says why.
        StructureError: no such group, or one that nothing reads.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import blocks
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((2, 3)), "second": jnp.array([[3.0], [0.0], [1.0]])}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> blocks.norms(blocks.channels(groups), variables)["first"].tolist()
        [3.0, 0.0, 1.0]
    """
    return _of_units("channel", groups, names, ("in",), ())


def coupled(groups: Groups, names: Sequence[str] | None = None, *, shifts: bool = False) -> Blocks:
    """All weights of a unit, those that make it and those that read it; a block is an engine group.

    Kernels, the scales of norms and the inputs of consumers count.

    Args:
        groups: from `trace`.
        names: of groups; None: all.
        shifts: whether shifts and biases count.

    Raises:
        FrozenError: a name is that of a leaf that the engine has frozen; the message says why.
        StructureError: no such group.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import blocks
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.array([[3.0, 0.0]]), "second": jnp.array([[4.0], [1.0]])}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 1)))
        >>> blocks.norms(blocks.coupled(groups), variables)["first"].tolist()
        [5.0, 1.0]
    """
    counted = ("kernel", "scale", "in", *(("shift",) if shifts else ()))
    return _of_units("unit", groups, names, counted, ())


def scales(groups: Groups, names: Sequence[str] | None = None) -> Blocks:
    """The scales of norms that multiply a unit, over all its places; a block is an engine group.

    Args:
        groups: from `trace`.
        names: of groups; None: all that have a norm with scales.

    Raises:
        FrozenError: a name is that of a leaf that the engine has frozen; the message says why.
        StructureError: no such group, or one without scales.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import blocks
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"] * v["scale"], 0) @ v["second"]
        >>> variables = {
        ...     "first": jnp.ones((2, 3)), "scale": jnp.arange(3.0), "second": jnp.ones((3, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> blocks.norms(blocks.scales(groups), variables)["first"].tolist()
        [0.0, 1.0, 2.0]
    """
    return _of_units("scale", groups, names, ("scale",), ())


def _of_units(
    kind: str,
    groups: Groups,
    names: Sequence[str] | None,
    roles: Sequence[str],
    followers: Sequence[str],
) -> Blocks:
    by_name = {}
    for name in groups.names if names is None else names:
        _check_group(groups, name)
        if members := _members(groups, name, roles):
            by_name[name] = Block(groups.sizes[name], members, _members(groups, name, followers))
        elif names is not None:
            raise errors.StructureError(
                f"the group {name!r} has no place in the roles {tuple(roles)}: there is nothing "
                "to reduce to a norm. Leave it out."
            )
    return Blocks(kind, "unit", by_name, groups)


def _members(groups: Groups, name: str, roles: Sequence[str]) -> tuple[Member, ...]:
    return tuple(
        Member(place.leaf, _alone(len(groups.leaves[place.leaf].shape), place.axis), place.units)
        for _, place in places_of(groups, roles, (name,))
    )


def _alone(axes: int, axis: int) -> tuple[int | None, ...]:
    """Lengths of boxes that are one position of an axis each."""
    # A unit is one position of one axis, and all of the others.
    return tuple(1 if number == axis else None for number in range(axes))


def _check_group(groups: Groups, name: str) -> None:
    if name in groups.sizes:
        return
    for frozen in groups.frozen:
        if name == frozen.leaf or frozen.leaf.startswith(f"{name}/"):
            remedy = f" {frozen.remedy}" if frozen.remedy else ""
            raise errors.FrozenError(
                f"{name!r} is frozen: axis {frozen.axis} of {frozen.leaf} {frozen.reason}. No "
                f"penalty can remove it.{remedy} The groups are {', '.join(groups.names)}."
            )
    raise errors.StructureError(
        f"there is no group {name!r}; {errors.nearest(name, groups.names)}the groups are "
        f"{', '.join(groups.names) or 'none'}."
    )


def branches(
    groups: Groups, names: Collection[str] | None = None, *, scales: bool = True
) -> Blocks:
    """Branches of residual sums, each a block of one group: its kernels count, all else follows.

    Args:
        groups: from `trace`.
        names: of branches; None: all.
        scales: whether the scales of norms count too.

    Raises:
        StructureError: no such branch, or no branch at all.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import blocks
        >>> fn = lambda v, x: (x + jnp.maximum(x @ v["a"], 0) @ v["b"]) @ v["c"]
        >>> variables = {name: jnp.full((2, 2), 2.0) for name in "abc"}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> blocks.norms(blocks.branches(groups), variables)["branch/b"].round(3).tolist()
        [5.657]
    """
    by_name = {branch.name: branch for branch in groups.branches}
    unknown = [name for name in names or () if name not in by_name]
    if unknown or not by_name:
        wanted = repr(unknown[0]) if unknown else "depth"
        raise errors.StructureError(
            f"{wanted}: the net has {', '.join(by_name) or 'no'} branches. A branch is the side "
            "of a residual sum that has weights, the other side having none."
        )
    counted = {*kernels_of(groups)}
    if scales:
        # Shifts never count: a constant that a branch adds is not its size.
        counted |= {place.leaf for _, place in places_of(groups, ("scale",))}
    result = {}
    for name in by_name if names is None else names:
        # A branch has whole leaves: one box each.
        whole = [
            Member(path, (None,) * len(groups.leaves[path].shape)) for path in by_name[name].leaves
        ]
        result[name] = Block(
            1,
            tuple(member for member in whole if member.path in counted),
            tuple(member for member in whole if member.path not in counted),
        )
    return Blocks("branch", "branch", result, groups)

"""Blocks by the words for their kinds that options of methods take."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from jprune import errors
from jprune.base import Budget, Groups
from jprune.blocks.grains import checked, columns, positions, weights
from jprune.blocks.members import Blocks
from jprune.blocks.units import branches, channels, filters

UNITS = ("filter", "channel")

PATTERNS = {"shape": columns, "column": columns, "position": positions, "weight": weights}
"""Kinds within kernels; "shape" is SSL's word for columns."""

NOTHING: Mapping[str, int] = MappingProxyType({})


def as_words(words: str | Sequence[str]) -> tuple[str, ...]:
    """One word, or a sequence of them, as a tuple."""
    return (words,) if isinstance(words, str) else tuple(words)


def words_of(text: str | Sequence[str], words: Sequence[str], option: str) -> tuple[str, ...]:
    """Kinds as a method takes them, checked.

    Args:
        text: a word, or a sequence of them.
        words: those that the method takes.
        option: of the method, for the message.

    Raises:
        ArgumentError: an unknown kind, one that is named twice, or depth with a pattern.

    Example:
        >>> words_of(("filter", "column"), ("filter", "column"), "groups")
        ('filter', 'column')
    """
    kinds = as_words(text)
    if not kinds or len({*kinds}) < len(kinds) or not {*kinds} <= {*words}:
        raise errors.ArgumentError(
            f"{option}={text!r}; write one of {', '.join(words)}, or a tuple of several (on the "
            "command line with '+' between)."
        )
    # Masks are of units and branches, or of weights: one tree cannot hold both.
    if "depth" in kinds and {*kinds} & {*PATTERNS}:
        raise errors.ArgumentError(
            f"{option}={text!r}: a pattern makes masks of weights, which hold no branches. Write "
            "'depth' alone or with 'filter' or 'channel'."
        )
    return kinds


def of_kinds(
    groups: Groups,
    kinds: Sequence[str],
    names: Collection[str] | None = None,
    *,
    scales: bool = True,
    shifts: bool = False,
    floors: Mapping[str, int] = NOTHING,
) -> tuple[Blocks, ...]:
    """Blocks of several kinds, each called by its word.

    Args:
        groups: from `trace`.
        kinds: "filter", "channel", "shape" or "column", "position", "weight", "depth"
            (branches).
        names: of engine groups, kernels or branches; each kind takes those it knows. None: all.
        scales: whether the scales of norms count, in filters and branches.
        shifts: whether shifts and biases of filters count.
        floors: {group: units that it keeps}; one that keeps all is left out, and so are patterns
            of the kernels that make it.

    Raises:
        FrozenError: a name is frozen.
        StructureError: a name that no kind knows, or a kind of which the net has nothing.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> [(each.kind, [*each]) for each in of_kinds(groups, ("shape", "filter"))]
        [('shape', ['first', 'second']), ('filter', ['first'])]
    """
    # `floor + 1`: floors may name groups of another net, which then say nothing.
    whole = {name for name, floor in floors.items() if floor >= groups.sizes.get(name, floor + 1)}
    # Kernels that make a group of whole size: their patterns would zero what the floor keeps.
    fixed = {
        place.leaf for name in whole for place in groups.places[name] if "kernel" in place.roles
    }
    names_of = {kind: _names(groups, kind, fixed) for kind in kinds}
    unknown = [name for name in names or () if not any(name in own for own in names_of.values())]
    families = []
    for kind in kinds:
        wanted = None
        if names is not None:  # what is unknown, or of other kinds alone, is refused below by name
            own = [name for name in names if name in names_of[kind]]
            wanted = tuple(unknown or own or names)
        of_kind = _of_kind(groups, kind, wanted, scales, shifts)
        # Branches have no floors.
        left_out = whole if kind in UNITS else fixed
        of_kind = of_kind.where(
            [name for name in of_kind if kind == "depth" or name not in left_out]
        )
        if not of_kind:
            raise errors.StructureError(
                f"the net has no {kind} to make sparse: see jprune.trace(...).frozen for the "
                "reasons, and the budget's floors."
            )
        # Called by the option's word: "shape" and "column" are the same blocks.
        families.append(dataclasses.replace(of_kind, kind=kind))
    return tuple(families)


def _names(groups: Groups, kind: str, fixed: Collection[str]) -> tuple[str, ...]:
    """Names of a kind's blocks."""
    if kind in UNITS:
        return groups.names
    if kind == "depth":
        return tuple(branch.name for branch in groups.branches)
    # Columns are a matter of plain layers; single weights of every kernel.
    paths = checked(groups, kind, None, plain=PATTERNS[kind] is not weights)
    return tuple(path for path in paths if path not in fixed)


def _of_kind(
    groups: Groups, kind: str, names: Sequence[str] | None, scales: bool, shifts: bool
) -> Blocks:
    if kind == "filter":
        return filters(groups, names, scales=scales, shifts=shifts)
    if kind == "channel":
        return channels(groups, names)
    if kind == "depth":
        return branches(groups, names, scales=scales)
    return PATTERNS[kind](groups, names)


def least_of(blocks: Blocks, budget: Budget) -> dict[str, int]:
    """{block: how many of its groups stay whatever happens}; floors are those of units.

    Args:
        blocks: of one kind.
        budget: whose `min_units` and `floors` are read.
    """
    if blocks.per == "branch":
        # A branch may go: the residual sum passes on its other side.
        return dict.fromkeys(blocks, 0)
    # Floors count units: a kernel of the same name has other groups.
    floors = budget.floors if blocks.per == "unit" else {}
    return {name: max(budget.min_units, floors.get(name, 0)) for name in blocks}

"""Blocks of groups: weights that live or die together, with their norms, scores and factors.

A *group* is weights that go together: a filter over all producers of a residual stream, a column of
a kernel, a branch. A *block* is all groups that compete with each other: those of one engine group,
or of one kernel. A group may stand in several leaves, so penalties and projections act on all that
is coupled. `Blocks` are the blocks of one kind, by name.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, PyTree, Scores, Variables
from jprune.graph.shrink.concrete import at_hand, put_back


class Member(NamedTuple):
    """Where the groups of a block stand in one leaf: a grid of boxes of equal lengths.

    Attributes:
        path: of the leaf.
        lengths: along every axis of the leaf, how many positions a box has; None: the whole axis.
            A last box is shorter where the length does not divide the axis.
        units: [boxes], row by row: which group a box belongs to, -1 for none. None: every box is a
            group, one after the other.
    """

    path: str
    lengths: tuple[int | None, ...]
    units: np.ndarray | None = None

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How many boxes there are along every axis of a leaf.

        Raises:
            StructureError: a leaf with another number of axes.
        """
        if len(shape) != len(self.lengths):
            raise errors.StructureError(
                f"{self.path} has the shape {tuple(shape)}; the groups are those of a leaf with "
                f"{len(self.lengths)} axes. Trace the net that the variables are of."
            )
        # ceil(axis / length): a last, shorter box is one too.
        return tuple(1 if n is None else -(-axis // n) for axis, n in zip(shape, self.lengths))


class Block(NamedTuple):
    """Groups that compete.

    Attributes:
        size: how many groups there are.
        members: the leaves whose weights count in norms and scores.
        followers: the leaves that go to 0 with their group, and do not count.
    """

    size: int
    members: tuple[Member, ...]
    followers: tuple[Member, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks(Mapping[str, Block]):
    """The blocks of one kind, by name: of engine groups, of kernels' paths, or of branches.

    Attributes:
        kind: what the groups are called: "filter", "column", ...
        per: what a mask of them is a mask of: "unit", "branch" or "weight".
        by_name: the blocks.
        groups: of the net, from `trace`; None for blocks made by hand, which make no masks.
    """

    kind: str
    per: str
    by_name: Mapping[str, Block]
    groups: Groups | None = None

    def __getitem__(self, name: str) -> Block:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    @property
    def counted(self) -> frozenset[str]:
        """Paths of the leaves whose weights count."""
        return frozenset(m.path for block in self.values() for m in block.members)

    @property
    def touched(self) -> frozenset[str]:
        """Paths of the leaves whose weights count, and of those that follow."""
        following = (m.path for block in self.values() for m in block.followers)
        return self.counted.union(following)

    def where(self, names: Collection[str]) -> "Blocks":
        """The same kind, of these names alone."""
        taken = {name: block for name, block in self.items() if name in names}
        return dataclasses.replace(self, by_name=taken)


def by_kind(blocks: Blocks | Sequence[Blocks], values: Any, option: str) -> list[Any]:
    """`[(blocks, their values)]` of one kind or several.

    Args:
        blocks: of one kind, or of several.
        values: of one kind, what belongs to it; of several, {kind: what belongs to it}, or what
            belongs to all.
        option: where the values come from, for the message.

    Raises:
        ArgumentError: two of one kind, a kind without values, or values of a kind that is not
            there.
    """
    if isinstance(blocks, Blocks):
        return [(blocks, values)]
    kinds = [each.kind for each in blocks]
    if len({*kinds}) < len(kinds):
        raise errors.ArgumentError(
            f"blocks of the kinds {', '.join(kinds)} came; each kind can come once. Take different "
            "`names` of a kind in one call."
        )
    if not isinstance(values, Mapping):
        return [(each, values) for each in blocks]
    if {*values} != {*kinds}:
        raise errors.ArgumentError(
            f"{option} is of {', '.join(map(str, values)) or 'nothing'}; of blocks of several "
            f"kinds, write {{kind: ...}} with {', '.join(kinds)}."
        )
    return [(each, values[each.kind]) for each in blocks]


def paths_among(paths: Collection[str], tree: PyTree) -> tuple[str, ...]:
    """Paths among the traced variables of the leaves of a tree that is those variables or a part.

    An optimizer is mostly given one collection of the variables: what is "conv/kernel" there is
    "params/conv/kernel" in the traced net. The part is found by the paths that have to be in it.

    Args:
        paths: some of the variables, by path: those that a method changes.
        tree: variables, parameters, gradients, updates, or `{path: leaf}`.

    Returns:
        A path for every leaf, in the order of `jax.tree.leaves`.

    Raises:
        StructureError: none of the paths is in the tree, or several parts of the variables could
            be meant.

    Example:
        >>> paths_among(["params/a/kernel"], {"a": {"bias": 0, "kernel": 1}})
        ('params/a/bias', 'params/a/kernel')
    """
    own = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    if not paths:
        return tuple(own)
    names, shared = {*own}, Counter[str]()
    for path in paths:
        # Every split of a path into (prefix, rest) at a "/", where the rest is a leaf of the tree.
        ends = [0, *(place + 1 for place, letter in enumerate(path) if letter == "/")]
        shared.update(path[:end] for end in ends if path[end:] in names)
    if not shared:
        raise errors.StructureError(
            f"none of {', '.join(sorted(paths)[:3])} is among {', '.join(own[:3])} (...): the "
            "groups are of another net. Trace the variables that hold these parameters."
        )
    # The prefix that most paths share; of equal ones the shortest.
    depth = lambda prefix: (-shared[prefix], prefix.count("/"))
    prefixes = sorted(shared, key=depth)
    # Two collections with the same names inside: a guess could prune the wrong one.
    if len(prefixes) > 1 and depth(prefixes[0]) == depth(prefixes[1]):
        raise errors.StructureError(
            f"the parameters may be those at {prefixes[0]} or at {prefixes[1]} of the traced "
            "variables. Pass the collection that holds both."
        )
    return tuple(prefixes[0] + path for path in own)


def leaves_of(blocks: Blocks | Sequence[Blocks], tree: PyTree) -> dict[str, Any]:
    """`{path among the variables: leaf}` of all leaves of a tree.

    Args:
        blocks: whose leaves tell which part of the variables the tree is, see `paths_among`.
        tree: variables, parameters, gradients, updates, or `{path: leaf}`.

    Raises:
        StructureError: a tree of another net.
    """
    families = [blocks] if isinstance(blocks, Blocks) else blocks
    wanted = frozenset[str]().union(*(each.touched for each in families))
    return dict(zip(paths_among(wanted, tree), jax.tree.leaves(tree)))


def squares(blocks: Blocks, variables: Variables) -> dict[str, Any]:
    """{block: [groups]}: sums of squares over the weights of every group.

    Args:
        blocks: of one kind.
        variables: those of the traced net or a part of them; members that are not in it are left
            out. Arrays at hand are summed by NumPy in float64.

    Example:
        >>> rows = Blocks("row", "weight", {"w": Block(2, (Member("w", (1, None)),))})
        >>> squares(rows, {"w": jnp.array([[3.0, 4.0], [0.0, 1.0]])})["w"].tolist()
        [25.0, 1.0]
    """
    leaves = leaves_of(blocks, variables)
    return {name: total(block, leaves, lambda leaf: leaf**2) for name, block in blocks.items()}


def norms(blocks: Blocks, variables: Variables) -> dict[str, np.ndarray]:
    """{block: [groups]}: the Euclidean norm of every group.

    Args:
        blocks: of one kind.
        variables: those of the traced net or a part of them.

    Example:
        >>> rows = Blocks("row", "weight", {"w": Block(2, (Member("w", (1, None)),))})
        >>> norms(rows, {"w": jnp.array([[3.0, 4.0], [0.0, 1.0]])})["w"].tolist()
        [5.0, 1.0]
    """
    return {name: np.sqrt(np.asarray(s, float)) for name, s in squares(blocks, variables).items()}


def total(block: Block, leaves: Mapping[str, Any], of: Any) -> Any:
    """[groups]: the sum over a group's weights of what a function makes of them.

    Args:
        block: its members count, those that are not among the leaves left out.
        leaves: {path: array}.
        of: array -> array of the same shape.
    """
    # float64 by NumPy, or JAX's type once a traced leaf is added.
    sums: Any = np.zeros(block.size)
    for member in block.members:
        if (leaf := leaves.get(member.path)) is None:
            continue
        numbers = at_hand(leaf)
        # float64: norms of many weights, compared with each
        # other, must not depend on the order of sums.
        values = of(leaf if numbers is None else numbers.astype(np.float64))
        sums = sums + _gathered(box_sums(member, values), member.units, block.size)
    return sums


def box_sums(member: Member, values: Any) -> Any:
    """[boxes]: the sums over a leaf's boxes, row by row."""
    xnp = np if isinstance(values, np.ndarray) else jnp
    member.grid(np.shape(values))
    # First the axes that a box spans as a whole, then lengths above 1, axis by axis.
    whole = tuple(axis for axis, n in enumerate(member.lengths) if n is None)
    values = values.sum(whole, keepdims=True)
    for axis, n in enumerate(member.lengths):
        if n is None or n == 1:
            continue
        short = -values.shape[axis] % n
        # A last, shorter box is filled with zeros, which add nothing.
        values = xnp.pad(values, [(0, short * (axis == a)) for a in range(values.ndim)])
        split = (*values.shape[:axis], values.shape[axis] // n, n, *values.shape[axis + 1 :])
        values = values.reshape(split).sum(axis=axis + 1)
    return values.reshape(-1)


def _gathered(values: Any, units: np.ndarray | None, size: int) -> Any:
    """[groups]: values of boxes, added up by group."""
    if units is None or np.array_equal(units, np.arange(size)):
        return values
    inside = np.flatnonzero(units >= 0)
    if isinstance(values, np.ndarray):
        result = np.zeros(size, values.dtype)
        # Not `result[units] +=`: that adds once where a unit stands at several positions.
        np.add.at(result, units[inside], values[inside])
        return result
    return jax.ops.segment_sum(values[inside], units[inside], size)


def along(member: Member, shape: Sequence[int], values: Any, other: Any) -> Any:
    """Values of groups where they stand in a leaf; the result broadcasts to the leaf's shape.

    Args:
        member: of a block.
        shape: of the leaf.
        values: [groups], of NumPy or JAX.
        other: at positions that belong to none.
    """
    xnp = np if isinstance(values, np.ndarray) else jnp
    if member.units is not None and not np.array_equal(member.units, np.arange(len(values))):
        values = xnp.where(member.units < 0, other, values[np.maximum(member.units, 0)])
    # [groups] -> the grid of boxes, which broadcasts along axes that a box spans.
    values = values.reshape(member.grid(shape))
    for axis, n in enumerate(member.lengths):
        if n is not None and n > 1:
            values = xnp.repeat(values, n, axis)
            # ... less what the last box is short of
            values = values[(slice(None),) * axis + (slice(shape[axis]),)]
    return values


def scale(blocks: Blocks, variables: Variables, factors: Mapping[str, Any]) -> Variables:
    """The variables with every group multiplied by its factor.

    Args:
        blocks: of one kind.
        variables: those of the traced net, or a part of them.
        factors: {block: [groups]}. Followers of a group are 0 where its factor is 0 or less, and
            stay as they are elsewhere.

    Returns:
        A tree of the same structure; leaves that no group touches are the very same.

    Example:
        >>> rows = Blocks("row", "weight", {"w": Block(2, (Member("w", (1, None)),))})
        >>> scale(rows, {"w": jnp.ones((2, 2))}, {"w": np.array([0.5, 0.0])})["w"].tolist()
        [[0.5, 0.5], [0.0, 0.0]]
    """
    leaves = leaves_of(blocks, variables)
    for name, block in blocks.items():
        factor = factors[name]
        concrete = at_hand(factor)
        # NumPy where values are at hand, or every leaf would be an eager JAX product.
        factor = factor if concrete is None else concrete
        pairs = [(member, factor) for member in block.members]
        # Followers go at 0 and are else left alone: a shift is not shrunk with its kernel.
        pairs += [(member, factor > 0) for member in block.followers]
        for member, values in pairs:
            if (leaf := leaves.get(member.path)) is not None:
                leaves[member.path] = _product(leaf, along(member, np.shape(leaf), values, 1))
    return jax.tree.unflatten(jax.tree.structure(variables), list(leaves.values()))


def _product(leaf: Any, values: Any) -> Any:
    numbers = at_hand(leaf)
    if numbers is None or not isinstance(values, np.ndarray):
        return leaf * values.astype(leaf.dtype)
    return put_back(numbers * values.astype(numbers.dtype), leaf)


def pool(blocks: Blocks, scores: Scores, how: str = "sum") -> dict[str, Any]:
    """Scores of groups from scores of weights.

    Args:
        blocks: of one kind.
        scores: a tree like the variables or a part of them; None where there are no scores.
        how: "sum", or "mean" where groups of unequal size compete.

    Returns:
        {block: [groups]}; blocks without a score are left out. A weight at -inf takes its group
        along, one at +inf saves it.

    Raises:
        ArgumentError: another way to reduce.

    Example:
        >>> columns = Blocks("column", "weight", {"w": Block(2, (Member("w", (1, None)),))})
        >>> pool(columns, {"w": np.array([[1.0, 2.0], [3.0, 5.0]])}, "mean")["w"].tolist()
        [1.5, 4.0]
    """
    if how not in ("sum", "mean"):
        raise errors.ArgumentError(f'pool(how={how!r}); write "sum" or "mean".')
    leaves = leaves_of(blocks, scores)
    result = {}
    for name, block in blocks.items():
        if not any(member.path in leaves for member in block.members):
            continue
        # inf - inf, in a group with both, is NaN.
        with np.errstate(invalid="ignore"):  # +inf and -inf are scores
            sums = total(block, leaves, lambda leaf: leaf)
            if how == "mean":
                sums = sums / total(block, leaves, lambda leaf: np.ones(np.shape(leaf)))
        result[name] = sums
    return result

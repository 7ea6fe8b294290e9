"""Granularity: patterns of weights inside one kernel that live or die together.

A grain is a block of a kernel's axes. `pool` turns scores of weights into scores of grains,
an allocator keeps some, `spread` turns the masks of grains back into masks of weights; the count
of grains is then as exact as the allocator's. N:M patterns have a fixed count and need no
allocator: `n_of_m`. Kernels are [..., in, out] with the spatial axes first (HWIO), or [in, out].

What a pattern is worth in the net: `lift` finds the units that it leaves no reader, for `slim` to
remove; `compact` holds what is left of a kernel in the form that fits (thin, rows, CSR).

References:
    Mao, Han, Pool, Li, Liu, Wang, Dally, Exploring the regularity of sparse structure in
    convolutional neural networks, 2017, arXiv 1705.08922 [3]. N:M: Zhou, Ma, Zhu, Liu, Zhang, Yuan,
    Sun, Li, Learning N:M fine-grained structured sparse neural networks from scratch, 2021, arXiv
    2102.04010.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Masks, Scores, is_none
from jprune.units import leaves_by_path, ones, places_of

AXES = ("d", "h", "w", "in", "out")
"""Names of a kernel's axes, counted from the last one; a dense kernel has the last two."""


class Grain(NamedTuple):
    """Lengths of a block along named axes."""

    lengths: Mapping[str, int | None]
    """{axis: length}, None for the whole axis; 1 along axes that are not named."""

    def block(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The block's length along every axis of a kernel."""
        lengths = [self.lengths.get(name, 1) for name in AXES[-len(shape) :]]
        return tuple(axis if n is None else min(n, axis) for n, axis in zip(lengths, shape))


weight = Grain({})
"""Single weights ("fine", 0-D)."""


vector = Grain({"w": None})
"""A row of one two-dimensional kernel (1-D); single weights of a dense kernel."""


kernel = Grain({"d": None, "h": None, "w": None})
"""All taps from one input to one output (2-D); single weights of a dense kernel."""


filter = Grain({"d": None, "h": None, "w": None, "in": None})
"""All weights of one output (3-D)."""


row = filter
"""The same as a row of the matrix [out, in h w]."""


column = Grain({"out": None})
"""One tap (h, w, in) of all filters: a column of that matrix, SSL's "shape"."""


def block(h: int = 1, w: int = 1, inputs: int = 1, outputs: int = 1) -> Grain:
    """Blocks of given lengths; the last one along an axis is shorter where they do not divide it.

    Raises:
        ArgumentError: a length below 1.

    Example:
        >>> pool(jnp.ones((4, 6)), block(inputs=2, outputs=4)).tolist()
        [[8.0, 4.0], [8.0, 4.0]]
    """
    lengths = {"h": h, "w": w, "in": inputs, "out": outputs}
    if min(lengths.values()) < 1:
        raise errors.ArgumentError(f"block got lengths {lengths}; each is at least 1.")
    return Grain(lengths)


def pool(scores: Scores, grain: Grain, how: str = "sum") -> Scores:
    """Scores of grains from scores of weights.

    Args:
        scores: a kernel's, or a tree of them.
        grain: what lives or dies together.
        how: "sum", or "mean" where grains of unequal size compete.

    Returns:
        [number of grains along every axis], or a tree. Leaves with fewer than two axes (biases,
        norms) have no grains and become None: not prunable. A weight at -inf takes its grain
        along, one at +inf saves it.

    Raises:
        ArgumentError: another way to reduce, or a kernel with more than five axes.

    Example:
        >>> pool(jnp.arange(6.0).reshape(2, 3), filter).tolist()
        [[3.0, 5.0, 7.0]]
    """
    if how not in ("sum", "mean"):
        raise errors.ArgumentError(f'pool(how={how!r}); write "sum" or "mean".')

    def one(leaf: Any) -> Any:
        if not _has_grains(jnp.shape(leaf)):
            return None
        total = _summed(jnp.asarray(leaf), grain)
        return total if how == "sum" else total / _summed(jnp.ones(jnp.shape(leaf)), grain)

    return jax.tree.map(one, scores)


def spread(masks: Masks, grain: Grain, like: Any) -> Masks:
    """Masks of weights from masks of grains.

    Args:
        masks: of what `pool` returned.
        grain: the same.
        like: arrays or shapes of the kernels, a tree of the masks' structure.

    Returns:
        Bool masks of the kernels' shapes; None where there are no grains.

    Raises:
        StructureError: masks of other grains or other kernels.

    Example:
        >>> spread(np.array([[True, False, True]]), filter, jnp.ones((2, 3))).tolist()
        [[True, False, True], [True, False, True]]
    """

    def one(mask: Any, leaf: Any) -> Any:
        if mask is None:
            return None
        lengths = grain.block(leaf.shape)
        expected = tuple(-(-axis // n) for axis, n in zip(leaf.shape, lengths))
        if np.shape(mask) != expected:
            raise errors.StructureError(
                f"a mask of shape {np.shape(mask)} for a kernel of shape {leaf.shape}, which has "
                f"{expected} grains. Pass the masks of pool(scores, grain), and the same grain."
            )
        for axis, (n, whole) in enumerate(zip(lengths, leaf.shape)):
            mask = jnp.repeat(mask, n, axis=axis, total_repeat_length=n * mask.shape[axis])
            mask = jax.lax.slice_in_dim(mask, 0, whole, axis=axis)
        return mask

    return jax.tree.map(one, masks, like, is_leaf=is_none)


def n_of_m(scores: Scores, n: int, m: int) -> Masks:
    """Keeps the n highest of every m consecutive weights along the input axis.

    Args:
        scores: a kernel's, or a tree of them.
        n: kept.
        m: in a group; the groups of a convolution run along its inputs at every tap.

    Returns:
        Bool masks with exactly n of every m True, ties by lowest index, -inf never. None (dense,
        not prunable) where the inputs are not a multiple of m, and for leaves with fewer than two
        axes.

    Raises:
        ArgumentError: not 1 <= n <= m.

    Example:
        >>> n_of_m(jnp.array([[0.1], [0.4], [0.3], [0.2]]), 2, 4)[:, 0].tolist()
        [False, True, True, False]
    """
    if not 1 <= n <= m:
        raise errors.ArgumentError(
            f"n_of_m(n={n}, m={m}): n of m are kept, so 1 <= n <= m. Write n_of_m(scores, 2, 4)."
        )

    def one(leaf: Any) -> Any:
        shape = jnp.shape(leaf)
        if not _has_grains(shape) or shape[-2] % m:
            return None
        groups = jnp.asarray(leaf).reshape(*shape[:-2], shape[-2] // m, m, shape[-1])
        mine, other = groups[..., :, None, :], groups[..., None, :, :]
        earlier = jnp.tri(m, k=-1, dtype=bool)[:, :, None]
        better = (other > mine) | ((other == mine) & earlier)
        return ((better.sum(axis=-2) < n) & (groups > -jnp.inf)).reshape(shape)

    return jax.tree.map(one, scores)


def lift(groups: Groups, masks: Masks) -> dict[str, np.ndarray]:
    """Masks of units from masks of weights: a unit goes once the pattern leaves it no reader.

    The rule. A unit goes if its places with the role `in` are empty in all its consumers: whatever
    it computes, nobody reads it. Nothing less is enough for every net: an empty filter still speaks
    through its shift, and one whose shift is empty too through a nonlinearity with f(0) != 0. Units
    that end in a contraction of two activations have no consumer with weights; there the places
    that stand in for `in` (kernel, shift and mean) must all be empty. A group that was opened (a
    norm counts its units, read or not) stays whole.

    What only a unit that goes was reading goes too, and so on. A pattern that leaves no unit of a
    group a reader keeps one, since no layer can be left without channels.

    Args:
        groups: from `trace`.
        masks: a tree like the variables, None leaves are whole.

    Returns:
        {group: [units]} bool.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.zeros((2, 3)), "second": jnp.zeros((3, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> lift(groups, {"first": None, "second": np.array([[True], [False], [True]])})
        {'first': array([ True, False,  True])}
    """
    kept = {
        path: np.ones(groups.leaves[path].shape, bool)
        if mask is None
        else np.broadcast_to(np.asarray(mask, bool), groups.leaves[path].shape).copy()
        for path, mask in leaves_by_path(groups, masks).items()
    }
    units = ones(groups)
    while True:
        read = _read(groups, kept, units)
        gone = [name for name in groups.names if (units[name] & ~read[name]).any()]
        if not gone:
            return units
        for name in gone:
            units[name] &= read[name]
            for place in groups.places[name]:
                dead = (place.units >= 0) & ~units[name][place.units]
                np.moveaxis(kept[place.leaf], place.axis, 0)[dead] = False


def _read(
    groups: Groups, kept: dict[str, np.ndarray], units: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """{group: [units]}: whether a weight that reads a unit is kept; one of `units` always is."""
    places = places_of(groups, ("in",))
    read = {name: np.zeros(size, bool) for name, size in groups.sizes.items()}
    for name, place in places:
        along = np.moveaxis(kept[place.leaf], place.axis, 0)
        alive = along.reshape(len(along), -1).any(axis=1) & (place.units >= 0)
        read[name][place.units[alive]] = True
    with_readers = {name for name, _ in places}
    for name, alive in read.items():
        if name not in with_readers or not groups.exact[name]:
            alive[:] = True
        elif not (alive & units[name]).any():
            alive[np.flatnonzero(units[name])[0]] = True
    return read


def _has_grains(shape: tuple[int, ...]) -> bool:
    if len(shape) > len(AXES):
        raise errors.ArgumentError(
            f"a kernel of shape {shape}; kernels have 2 to {len(AXES)} axes, [..., in, out]."
        )
    return len(shape) >= 2


def _summed(leaf: jax.Array, grain: Grain) -> jax.Array:
    lengths = grain.block(leaf.shape)
    for axis, n in enumerate(lengths):
        short = -leaf.shape[axis] % n
        leaf = jnp.pad(leaf, [(0, short if other == axis else 0) for other in range(leaf.ndim)])
        split = (*leaf.shape[:axis], leaf.shape[axis] // n, n, *leaf.shape[axis + 1 :])
        leaf = leaf.reshape(split).sum(axis=axis + 1)
    return leaf

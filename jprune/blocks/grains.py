"""Blocks whose groups are patterns of weights within one kernel.

An axis is named by what it does: it is contracted with inputs, makes outputs, or belongs to a
window, whatever the order of the axes. So a column is the same in HWIO and OIHW, in a dense layer
and in an einsum. N:M patterns have a fixed count and need no allocator: `n_of_m`.

References:
    Mao, Han, Pool, Li, Liu, Wang, Dally, Exploring the regularity of sparse structure in
    convolutional neural networks, 2017, arXiv 1705.08922 [3]. N:M: Zhou, Ma, Zhu, Liu, Zhang, Yuan,
    Sun, Li, Learning N:M fine-grained structured sparse neural networks from scratch, 2021, arXiv
    2102.04010.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Masks, Scores
from jprune.blocks.members import Block, Blocks, Member, paths_among
from jprune.graph.shrink.concrete import at_hand

WINDOW = ("w", "h", "d")
"""Names of the axes of a window, the last one first."""


def axes_of(groups: Groups, path: str) -> tuple[str, ...]:
    """What every axis of a kernel does: "in", "out", "batch", "w", "h" or "d".

    "batch" axes are those of members of an ensemble, or of turns of a loop: kernels side by side.
    A window's fourth axis from the last one, and any before it, count as "d".
    """
    layer = groups.layers[path]
    names = dict.fromkeys(layer.inputs, "in") | dict.fromkeys(layer.outputs, "out")
    names |= dict.fromkeys(layer.batch, "batch")
    # The last window axis is the width, in every layout: NHWC and NCHW both put height before it.
    for number, axis in enumerate(sorted(layer.window, reverse=True)):
        names[axis] = WINDOW[min(number, len(WINDOW) - 1)]
    # One name for every axis, in the layout of the leaf.
    return tuple(names[axis] for axis in range(len(layer.shape)))


def kernels_of(groups: Groups, plain: bool = False) -> tuple[str, ...]:
    """Paths of the kernels, in execution order.

    Args:
        groups: from `trace`.
        plain: only those of convolutions and dense layers as papers mean them, see `Layer.plain`.
    """
    return tuple(path for path, layer in groups.layers.items() if layer.plain or not plain)


def weights(groups: Groups, names: Sequence[str] | None = None) -> Blocks:
    """Single weights ("fine", 0-D).

    Args:
        groups: from `trace`.
        names: paths of kernels; None: all of them. Biases and norms are no kernels.

    Raises:
        StructureError: there is no such kernel.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: x @ v["w"] + v["b"]
        >>> variables = {"b": jnp.ones(2), "w": jnp.ones((3, 2))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 3)))
        >>> {name: block.size for name, block in weights(groups).items()}
        {'w': 6}
    """
    return _patterns("weight", groups, names, {})


def vectors(groups: Groups, names: Sequence[str] | None = None, axis: str = "w") -> Blocks:
    """A row of one two-dimensional kernel (1-D); single weights of a dense kernel.

    Args:
        groups: from `trace`.
        names: paths of kernels; None: all.
        axis: along what a vector lies: "w" (the papers' rows), "h" or "d" of the window, "in" (a
            tap's fibre over the inputs) or "out".

    Raises:
        ArgumentError: another axis.
        StructureError: there is no such kernel.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], {"w": jnp.ones((4, 6))}, jnp.ones(4))
        >>> vectors(groups)["w"].size, vectors(groups, axis="in")["w"].size
        (24, 6)
    """
    if axis not in (*WINDOW, "in", "out"):
        raise errors.ArgumentError(
            f"vectors(axis={axis!r}); write one of {', '.join(WINDOW)}, in, out."
        )
    return _patterns("vector", groups, names, {axis: None})


def kernels(groups: Groups, names: Sequence[str] | None = None) -> Blocks:
    """All taps from one input to one output (2-D); single weights of a dense kernel.

    Args:
        groups: from `trace`.
        names: paths of kernels; None: all.

    Raises:
        StructureError: there is no such kernel.
    """
    return _patterns("kernel", groups, names, dict.fromkeys(WINDOW))


def rows(groups: Groups, names: Sequence[str] | None = None) -> Blocks:
    """All weights of one output (3-D), of one kernel: a row of the matrix [out, in h w].

    `filters` are the same where nothing is coupled.

    Args:
        groups: from `trace`.
        names: paths of kernels; None: all.

    Raises:
        StructureError: there is no such kernel.
    """
    return _patterns("row", groups, names, dict.fromkeys((*WINDOW, "in")))


def columns(groups: Groups, names: Sequence[str] | None = None) -> Blocks:
    """One tap of one input, over all outputs: a column of the matrix [out, in h w]; SSL's "shape".

    Args:
        groups: from `trace`.
        names: paths of kernels; None: all convolutions and dense layers as papers mean them.

    Raises:
        StructureError: there is no such kernel.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import blocks
        >>> fn = lambda v, x: x @ v["w"]
        >>> variables = {"w": jnp.arange(6.0).reshape(3, 2)}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 3)))
        >>> blocks.pool(columns(groups), variables)["w"].tolist()
        [1.0, 5.0, 9.0]
    """
    return _patterns("column", groups, names, {"out": None}, plain=True)


def positions(groups: Groups, names: Sequence[str] | None = None) -> Blocks:
    """One position of a window, over all inputs and outputs: the same columns of every input.

    A kernel without a window has one position, which is all of it.

    Args:
        groups: from `trace`.
        names: paths of kernels; None: all convolutions and dense layers as papers mean them.

    Raises:
        StructureError: there is no such kernel.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], {"w": jnp.ones((4, 6))}, jnp.ones(4))
        >>> positions(groups)["w"].size
        1
    """
    return _patterns("position", groups, names, {"in": None, "out": None}, plain=True)


def cross(groups: Groups, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Which columns are in the cross of a window: in the middle of all of its axes but one.

    Args:
        groups: from `trace`.
        names: paths of kernels; None: all convolutions and dense layers as papers mean them.

    Returns:
        {kernel: bool [columns]}, in the order of `columns`; all True where a window has one axis of
        more than one position, or none.

    Raises:
        StructureError: there is no such kernel.

    Example:
        >>> import jax, jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jax.lax.conv(x, v["w"], (1, 1), "SAME")
        >>> groups = jprune.trace(fn, {"w": jnp.ones((7, 1, 3, 3))}, jnp.ones((1, 1, 8, 8)))
        >>> cross(groups)["w"].reshape(3, 3).astype(int).tolist()
        [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    """
    result = {}
    for path, block in columns(groups, names).items():
        layer, (member,) = groups.layers[path], block.members
        places = np.indices(member.grid(layer.shape))
        # How many axes of the window are off their middle: one at most, on the arms of the cross.
        off = sum((places[axis] != layer.shape[axis] // 2).astype(int) for axis in layer.window)
        result[path] = np.ravel(off <= 1) if layer.window else np.ones(block.size, bool)
    return result


def block(
    groups: Groups,
    names: Sequence[str] | None = None,
    *,
    h: int = 1,
    w: int = 1,
    inputs: int = 1,
    outputs: int = 1,
) -> Blocks:
    """Blocks of these lengths; the last one along an axis is shorter where they do not divide it.

    Args:
        groups: from `trace`.
        names: paths of kernels; None: all.
        h: length along the height of a window.
        w: along its width.
        inputs: along every axis of inputs.
        outputs: along every axis of outputs.

    Raises:
        ArgumentError: a length below 1.
        StructureError: there is no such kernel.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import blocks
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], {"w": jnp.ones((4, 6))}, jnp.ones(4))
        >>> blocks.pool(block(groups, inputs=2, outputs=4), {"w": jnp.ones((4, 6))})["w"].tolist()
        [8.0, 4.0, 8.0, 4.0]
    """
    lengths = {"h": h, "w": w, "in": inputs, "out": outputs}
    if min(lengths.values()) < 1:
        raise errors.ArgumentError(f"block got lengths {lengths}; each is at least 1.")
    return _patterns("block", groups, names, lengths)


def _patterns(
    kind: str,
    groups: Groups,
    names: Sequence[str] | None,
    lengths: Mapping[str, int | None],
    plain: bool = False,
) -> Blocks:
    """Boxes with these lengths along named axes, None being whole axes, 1 along all others."""
    by_name = {}
    for path in checked(groups, kind, names, plain):
        shape = groups.leaves[path].shape
        # Box lengths along the axes: 1 where a pattern does not name an axis, None for all of it.
        of_axes = [lengths.get(name, 1) for name in axes_of(groups, path)]
        # A box is at most as long as its axis: 1 x 1 kernels have vectors of one weight.
        member = Member(path, tuple(n if n is None else min(n, s) for n, s in zip(of_axes, shape)))
        # All boxes of a kernel compete with each other.
        by_name[path] = Block(int(np.prod(member.grid(shape))), (member,))
    return Blocks(kind, "weight", by_name, groups)


def checked(
    groups: Groups, kind: str, names: Sequence[str] | None, plain: bool = False
) -> tuple[str, ...]:
    """Kernels of these names, in execution order.

    Raises:
        StructureError: one that is no kernel, or none that has groups of this kind.
    """
    paths = kernels_of(groups, plain)
    unknown = [name for name in names or () if name not in paths]
    if unknown:
        raise errors.StructureError(
            f"{unknown[0]!r} is no kernel with {kind}s; {errors.nearest(unknown[0], paths)}"
            f"the kernels are {', '.join(paths)}."
        )
    # Execution order, whatever the order of the names.
    return paths if names is None else tuple(path for path in paths if path in names)


def n_of_m(groups: Groups, scores: Scores, n: int, m: int) -> Masks:
    """Keeps the n highest of every m consecutive inputs of a kernel, for each output and tap.

    Args:
        groups: from `trace`.
        scores: a tree like the variables or a part of them.
        n: how many are kept.
        m: of how many.

    Returns:
        Bool masks, a tree like the scores, with exactly n of every m True, ties by lowest index,
        -inf never. None (dense, not prunable) for leaves that are no kernels, and where the inputs
        are no multiple of m or have several axes.

    Raises:
        ArgumentError: not 1 <= n <= m.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> scores = {"w": jnp.array([[0.1], [0.4], [0.3], [0.2]])}
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], scores, jnp.ones(4))
        >>> n_of_m(groups, scores, 2, 4)["w"][:, 0].tolist()
        [False, True, True, False]
    """
    if not 1 <= n <= m:
        raise errors.ArgumentError(
            f"n_of_m(n={n}, m={m}): n of m are kept, so 1 <= n <= m. Write "
            "n_of_m(groups, scores, 2, 4)."
        )
    paths = paths_among(kernels_of(groups), scores)
    masks = [
        _n_of_m(leaf, groups.layers[path].inputs, n, m) if path in groups.layers else None
        for path, leaf in zip(paths, jax.tree.leaves(scores))
    ]
    return jax.tree.unflatten(jax.tree.structure(scores), masks)


def _n_of_m(leaf: Any, inputs: Sequence[int], n: int, m: int) -> Any:
    # Hardware reads m consecutive inputs: a remainder would have no place in its format.
    if len(inputs) != 1 or leaf.shape[inputs[0]] % m:
        return None
    # NumPy where values are at hand: eager JAX would compile for every leaf.
    numbers = at_hand(leaf)
    xnp: Any = jnp if numbers is None else np
    # [..., inputs], the inputs of one output and tap in a row, in sets of m
    rows = xnp.moveaxis(leaf if numbers is None else numbers, inputs[0], -1)
    sets = rows.reshape(*rows.shape[:-1], rows.shape[-1] // m, m)
    own, other = sets[..., :, None], sets[..., None, :]
    earlier = np.tri(m, k=-1, dtype=bool)  # of equal ones, the lower index is better
    # [..., m, m]: whether the second of a pair is before the first. Its count is a rank, without a
    # sort whose ties differ between devices.
    better = (other > own) | ((other == own) & earlier)
    mask = (better.sum(axis=-1) < n) & (sets > -np.inf)
    return xnp.moveaxis(mask.reshape(rows.shape), -1, inputs[0])

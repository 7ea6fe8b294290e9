"""Bits that the kernels of a pattern take, stored with relative indices.

An entry of the store is a group's values and the gap to it: how many groups since the last entry
are left out. A code of b bits says gaps up to 2^b - 1; a longer one takes fillers, entries whose
values are 0. Larger groups share an index among more values, and so cost fewer bits at equal
density.

References:
    Mao, Han, Pool, Li, Liu, Wang, Dally, Exploring the regularity of sparse structure in
    convolutional neural networks, 2017, arXiv 1705.08922 [3]. The format: Han, Mao, Dally, Deep
    compression, 2016, arXiv 1510.00149.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jprune import errors
from jprune.blocks.grains import WINDOW, axes_of
from jprune.blocks.members import Block, Blocks, box_sums

ORDER = ("batch", "out", "in", *reversed(WINDOW))
"""Axes of a kernel in the order of its groups in the store, as in the papers' W[n, c, r, s]."""


class Storage(NamedTuple):
    """What a kernel takes.

    Attributes:
        kept: how many groups are stored.
        fillers: how many entries of zeros stand between them.
        bits: of all entries.
        dense: bits of the dense kernel, which needs no index.
    """

    kept: int
    fillers: int
    bits: int
    dense: int

    @property
    def ratio(self) -> float:
        """Bits, as a fraction of those of the dense kernel."""
        return self.bits / self.dense


def storage(
    blocks: Blocks, masks: Mapping[str, Any], value_bits: int = 8, index_bits: int = 4
) -> dict[str, Storage]:
    """{kernel: what it takes} under masks of groups. Biases and norms do not count.

    Args:
        blocks: patterns within kernels: weights, vectors, kernels, rows, columns or blocks.
        masks: {kernel: bool [groups]}, as from an allocator or `alive`.
        value_bits: of a weight.
        index_bits: of a gap; a filler stands for 2^index_bits groups.

    Raises:
        ArgumentError: less than one bit; blocks that are no patterns within one kernel, or that
            were made by hand.
        StructureError: masks of other blocks.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import blocks
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], {"w": jnp.ones((40, 1))}, jnp.ones(40))
        >>> weights = blocks.weights(groups)
        >>> storage(weights, {"w": np.isin(np.arange(40), (3, 39))})["w"]
        Storage(kept=2, fillers=2, bits=48, dense=320)
    """
    if min(value_bits, index_bits) < 1:
        raise errors.ArgumentError(
            f"storage(value_bits={value_bits}, index_bits={index_bits}); each is at least 1."
        )
    if blocks.groups is None or blocks.per != "weight":
        raise errors.ArgumentError(
            f"storage is of patterns within one kernel, and these are {blocks.kind}s. Write "
            "blocks.rows(groups) for the filters of a kernel."
        )
    unknown = [name for name in masks if name not in blocks]
    if unknown:
        raise errors.StructureError(
            f"{unknown[0]!r} has no {blocks.kind}s; {errors.nearest(unknown[0], [*blocks])}"
            f"there are those of {', '.join(blocks)}."
        )
    names = {name: axes_of(blocks.groups, blocks[name].members[0].path) for name in masks}
    return {
        name: _stored(blocks, name, np.asarray(mask, bool), names[name], value_bits, index_bits)
        for name, mask in masks.items()
    }


def _stored(
    blocks: Blocks,
    name: str,
    mask: np.ndarray,
    names: tuple[str, ...],
    value_bits: int,
    index_bits: int,
) -> Storage:
    block: Block = blocks[name]
    if mask.shape != (block.size,):
        raise errors.StructureError(
            f"the mask of {name} has the shape {mask.shape}; it has {block.size} {blocks.kind}s."
        )
    (member,) = block.members
    groups: Any = blocks.groups
    shape = groups.leaves[member.path].shape
    # Row-major over the axes in one order for every layout: the same kernel takes the same bits.
    order = sorted(range(len(shape)), key=lambda axis: ORDER.index(names[axis]))
    places = np.flatnonzero(mask.reshape(member.grid(shape)).transpose(order))
    # place_j = sum over i <= j of (gap_i + 1), less 1
    gaps = np.diff(places, prepend=-1) - 1
    # A filler's own place is the last of 2^b that it stands for: its code is 2^b - 1.
    fillers = int((gaps >> index_bits).sum())
    sizes = box_sums(member, np.ones(shape, np.int64))
    # bits = sum over entries of (size b_w + b_i); a filler is as long as a whole group.
    values = int(sizes[mask].sum()) + fillers * int(sizes.max())
    entries = len(places) + fillers
    bits = values * value_bits + entries * index_bits
    return Storage(len(places), fillers, bits, int(sizes.sum()) * value_bits)

"""What lives or dies together: one vocabulary of blocks, made from `groups` alone.

Units and branches: `filters`, `channels`, `coupled` (both), `scales`, `branches`. Patterns within a
kernel: `weights`, `vectors`, `kernels`, `rows`, `columns`, `positions`, `block`, `n_of_m`, and
`cross`, some of the columns. Functions of them: `norms`, `scale`, `pool` (scores of weights to
scores of groups), `spread` (masks of groups to masks of weights), `alive` and `masks` (the groups
that are not 0, as masks), `lift` (units that a pattern leaves no reader), `storage` (bits with
relative indices). `of_kinds` makes them by the words that options of methods use.

    columns = blocks.columns(groups)
    masks = allocate.global_topk(blocks.pool(columns, scores), Budget(density=0.5))
    units = blocks.lift(groups, blocks.spread(columns, masks))

`depths.py` says how many of the residual blocks of a stage may stay.

Here belongs what defines which weights go together, whatever a method does with them. Read
`members.py` first: what a block is.
"""

from jprune.blocks.grains import (
    block,
    columns,
    cross,
    kernels,
    n_of_m,
    positions,
    rows,
    vectors,
    weights,
)
from jprune.blocks.kinds import of_kinds
from jprune.blocks.masks import alive, masks, spread
from jprune.blocks.members import Block, Blocks, Member, norms, pool, scale, squares
from jprune.blocks.storage import Storage, storage
from jprune.blocks.units import branches, channels, coupled, filters, scales
from jprune.masks import lift

__all__ = [
    "Block",
    "Blocks",
    "Member",
    "Storage",
    "alive",
    "block",
    "branches",
    "channels",
    "columns",
    "coupled",
    "cross",
    "filters",
    "kernels",
    "lift",
    "masks",
    "n_of_m",
    "norms",
    "of_kinds",
    "pool",
    "positions",
    "rows",
    "scale",
    "scales",
    "spread",
    "squares",
    "storage",
    "vectors",
    "weights",
]

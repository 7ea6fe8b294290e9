"""Masks: made of scores, applied to trees, learned through, combined, and held while one trains.

A mask tree is like the variables; True keeps, a None leaf is not prunable. `trees.py` applies,
combines, counts and packs masks and lifts those of weights to units; `topk.py` keeps the best;
`hold.py` keeps pruned weights at exactly 0 in an optax chain. Read `trees.py` first.
"""

from jprune.masks.hold import HoldState, as_masks, held, hold, masks_of, with_masks
from jprune.masks.topk import best, keep_best
from jprune.masks.trees import (
    apply_masks,
    density,
    intersect,
    lift,
    map_parameters,
    pack,
    ste,
    straight_through,
    unpack,
)

__all__ = [
    "HoldState",
    "apply_masks",
    "as_masks",
    "best",
    "density",
    "held",
    "hold",
    "intersect",
    "keep_best",
    "lift",
    "map_parameters",
    "masks_of",
    "pack",
    "ste",
    "straight_through",
    "unpack",
    "with_masks",
]

"""Sparsity while training: optax transformations that hold, move or induce zeros.

Here belongs what turns updates into updates: holding masks, pruning on a schedule, penalties and
proximal steps. Read `hold.py` first: masks live in the optimizer state, so a new mask recompiles
nothing. Training with more parts than weights and masks is in `jprune.learners`.
"""

from jprune.sparsify.dns import SurgeryState, dynamic_surgery
from jprune.sparsify.hold import HoldState, hold, masks_of, with_masks
from jprune.sparsify.l1 import l1_decay
from jprune.sparsify.scheduled import ScheduledState, scheduled_prune

__all__ = [
    "HoldState",
    "ScheduledState",
    "SurgeryState",
    "dynamic_surgery",
    "hold",
    "l1_decay",
    "masks_of",
    "scheduled_prune",
    "with_masks",
]

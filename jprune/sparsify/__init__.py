"""Sparsity while training: optax transformations that hold, move or induce zeros.

Here belongs what turns updates into updates: pruning on a schedule, penalties and proximal steps.
Read `jprune/masks/hold.py` first: masks live in the optimizer state, so a new mask recompiles
nothing. Training with more parts than weights and masks is in `jprune.learners`.
"""

from jprune.masks import HoldState, hold, masks_of, with_masks
from jprune.sparsify.admm import AdmmState, admm, projection
from jprune.sparsify.centripetal import (
    CentripetalState,
    centripetal,
    contraction,
    deviation_of,
    memberships,
    strength_for,
    strengths,
)
from jprune.sparsify.clusters import cluster
from jprune.sparsify.feedback import FeedbackState, feedback, hidden_fraction
from jprune.sparsify.fista import FistaState, fista
from jprune.sparsify.group_lasso import group_lasso, group_penalty
from jprune.sparsify.guard import GuardState, guarded
from jprune.sparsify.hard_threshold import HardThresholdState, hard_threshold, is_sparse
from jprune.sparsify.l1 import l1_decay
from jprune.sparsify.rules import Rule, masks_by
from jprune.sparsify.scheduled import ScheduledState, scheduled_prune
from jprune.sparsify.soft_prune import SoftPruneState, choice, lowest, nearest, soft_prune
from jprune.sparsify.surgery import SurgeryState, dynamic_surgery
from jprune.sparsify.thresholds import layer_numbers

__all__ = [
    "AdmmState",
    "CentripetalState",
    "FeedbackState",
    "FistaState",
    "GuardState",
    "HardThresholdState",
    "HoldState",
    "Rule",
    "ScheduledState",
    "SoftPruneState",
    "SurgeryState",
    "admm",
    "centripetal",
    "choice",
    "cluster",
    "contraction",
    "deviation_of",
    "dynamic_surgery",
    "feedback",
    "fista",
    "group_lasso",
    "group_penalty",
    "guarded",
    "hard_threshold",
    "hidden_fraction",
    "hold",
    "is_sparse",
    "l1_decay",
    "layer_numbers",
    "lowest",
    "masks_by",
    "masks_of",
    "memberships",
    "nearest",
    "projection",
    "scheduled_prune",
    "soft_prune",
    "strength_for",
    "strengths",
    "with_masks",
]

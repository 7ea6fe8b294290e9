"""Sparsity while training: optax transformations that hold, move or induce zeros.

Here belongs what turns updates into updates: pruning on a schedule, penalties and proximal steps.
Read `jprune/masks/hold.py` first: masks live in the optimizer state, so a new mask recompiles
nothing. Training with more parts than weights and masks is in `jprune.learners`.
"""

from jprune.masks import HoldState, hold, masks_of, with_masks
from jprune.sparsify.active_gradients import ActiveState, active_gradients
from jprune.sparsify.admm import AdmmState, admm, projection
from jprune.sparsify.box import box
from jprune.sparsify.candidate_decay import CandidateState, candidate_decay, candidates
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
from jprune.sparsify.drop_grow import DropGrowState, drop_and_grow
from jprune.sparsify.dwindling import DwindlingState, dwindling, saliences
from jprune.sparsify.feedback import FeedbackState, feedback, hidden_fraction
from jprune.sparsify.fista import FistaState, fista
from jprune.sparsify.forgetting import ForgettingState, forgetting, row_norms
from jprune.sparsify.group_decay import group_decay
from jprune.sparsify.group_lasso import group_lasso, group_penalty
from jprune.sparsify.growing_decay import GrowingState, growing_decay
from jprune.sparsify.guard import GuardState, guarded
from jprune.sparsify.hard_threshold import HardThresholdState, hard_threshold, is_sparse
from jprune.sparsify.l1 import l1_decay, l1_gradient
from jprune.sparsify.low_rank import low_rank, singular_values, soft_singular
from jprune.sparsify.movement import MovementState, movement
from jprune.sparsify.one_by_one import OneByOneState, one_by_one
from jprune.sparsify.proximal import proximal
from jprune.sparsify.ranked_decay import RankedState, delta, ranked_decay, rises_for
from jprune.sparsify.refined import RefinedState, refined_ste
from jprune.sparsify.relative_decay import RelativeDecayState, decay_factors, relative_decay
from jprune.sparsify.rules import Rule, masks_by
from jprune.sparsify.scheduled import ScheduledState, scheduled_prune
from jprune.sparsify.soft_prune import SoftPruneState, choice, lowest, nearest, soft_prune
from jprune.sparsify.surgery import SurgeryState, dynamic_surgery
from jprune.sparsify.thresholds import layer_numbers
from jprune.sparsify.truncated_lasso import TruncatedState, truncated_lasso, truncated_penalty
from jprune.sparsify.useful_range import RangeState, within_range

__all__ = [
    "ActiveState",
    "AdmmState",
    "CandidateState",
    "CentripetalState",
    "DropGrowState",
    "DwindlingState",
    "FeedbackState",
    "FistaState",
    "ForgettingState",
    "GrowingState",
    "GuardState",
    "HardThresholdState",
    "HoldState",
    "MovementState",
    "OneByOneState",
    "RangeState",
    "RankedState",
    "RefinedState",
    "RelativeDecayState",
    "Rule",
    "ScheduledState",
    "SoftPruneState",
    "SurgeryState",
    "TruncatedState",
    "active_gradients",
    "admm",
    "box",
    "candidate_decay",
    "candidates",
    "centripetal",
    "choice",
    "cluster",
    "contraction",
    "decay_factors",
    "delta",
    "deviation_of",
    "drop_and_grow",
    "dwindling",
    "dynamic_surgery",
    "feedback",
    "fista",
    "forgetting",
    "group_decay",
    "group_lasso",
    "group_penalty",
    "growing_decay",
    "guarded",
    "hard_threshold",
    "hidden_fraction",
    "hold",
    "is_sparse",
    "l1_decay",
    "l1_gradient",
    "layer_numbers",
    "low_rank",
    "lowest",
    "masks_by",
    "masks_of",
    "memberships",
    "movement",
    "nearest",
    "one_by_one",
    "projection",
    "proximal",
    "ranked_decay",
    "refined_ste",
    "relative_decay",
    "rises_for",
    "row_norms",
    "saliences",
    "scheduled_prune",
    "singular_values",
    "soft_prune",
    "soft_singular",
    "strength_for",
    "strengths",
    "truncated_lasso",
    "truncated_penalty",
    "with_masks",
    "within_range",
]

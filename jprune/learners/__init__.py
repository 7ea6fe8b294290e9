"""Learners: training with more, or with something else, than weights under fixed masks.

Here belongs what a method trains in place of the weights or beside them: scores of weights that
never move, gates, hypernetworks, discriminators. Two shapes fit: a `Task` made from another one,
whose trained part is what the method learns (then plain training trains it, with checkpoints), or a
whole `Learner` (`jprune.base`). What turns updates into updates is in `jprune.sparsify`.

Read `popup.py` first. `to_the_end` runs any learner in memory.
"""

from jprune.base import to_the_end
from jprune.learners.adversarial import AdversarialState, Terms, init_judge, judged, told_apart
from jprune.learners.barrier import Limits, barrier, transition
from jprune.learners.batch_codes import batch_codes
from jprune.learners.candidates import masked_scorer, scorer
from jprune.learners.channel_menu import (
    Menus,
    as_menus,
    choices_of,
    entropy,
    menu_task,
    own_steps,
    straight_choice,
)
from jprune.learners.compactor import compactable, compacted, compacted_task, restated
from jprune.learners.detector import area_under_curve, detector_area, logistic, sign_attack
from jprune.learners.feature_boosting import Boosting, as_winners, boosted_task
from jprune.learners.halving import Halving, HalvingState, halving
from jprune.learners.hard_concrete import hard_concrete
from jprune.learners.hypernetwork import (
    Hypernetwork,
    Menu,
    hypernetwork,
    hypernetwork_task,
    menu,
    width_masks,
)
from jprune.learners.input_gates import as_gated, boostable_layers, with_gates
from jprune.learners.isolated import isolated_damages, readers
from jprune.learners.manifold import (
    Manifold,
    as_thresholded,
    complexity_weights,
    manifold_task,
    similarity_gap,
)
from jprune.learners.mean_gates import mean_gates, mean_penalty
from jprune.learners.norm_gates import fold_gates, gateable, sample_gates
from jprune.learners.own_steps import beside
from jprune.learners.popup import DRAWS, draw_scores, draw_weights, kept_of, popup_task, top_masks
from jprune.learners.sharpening import Sharpening, majority, mean_pull
from jprune.learners.statistics import check_settles, settled, settled_on
from jprune.learners.unit_gates import (
    Gating,
    gated_start,
    gated_task,
    seen_shapes,
    settled_net,
)
from jprune.learners.variational import PRIORS, kl_gaussian, kl_log_uniform, variational_task
from jprune.learners.width_mixture import Mixture, candidate_widths, cost_loss, resizing, two_of

__all__ = [
    "DRAWS",
    "PRIORS",
    "AdversarialState",
    "Boosting",
    "Gating",
    "Halving",
    "HalvingState",
    "Hypernetwork",
    "Limits",
    "Manifold",
    "Menu",
    "Menus",
    "Mixture",
    "Sharpening",
    "Terms",
    "area_under_curve",
    "as_gated",
    "as_menus",
    "as_thresholded",
    "as_winners",
    "barrier",
    "batch_codes",
    "beside",
    "boostable_layers",
    "boosted_task",
    "candidate_widths",
    "check_settles",
    "choices_of",
    "compactable",
    "compacted",
    "compacted_task",
    "complexity_weights",
    "cost_loss",
    "detector_area",
    "draw_scores",
    "draw_weights",
    "entropy",
    "fold_gates",
    "gateable",
    "gated_start",
    "gated_task",
    "halving",
    "hard_concrete",
    "hypernetwork",
    "hypernetwork_task",
    "init_judge",
    "isolated_damages",
    "judged",
    "kept_of",
    "kl_gaussian",
    "kl_log_uniform",
    "logistic",
    "majority",
    "manifold_task",
    "masked_scorer",
    "mean_gates",
    "mean_penalty",
    "mean_pull",
    "menu",
    "menu_task",
    "own_steps",
    "popup_task",
    "readers",
    "resizing",
    "restated",
    "sample_gates",
    "scorer",
    "seen_shapes",
    "settled",
    "settled_net",
    "settled_on",
    "sign_attack",
    "similarity_gap",
    "straight_choice",
    "to_the_end",
    "told_apart",
    "top_masks",
    "transition",
    "two_of",
    "variational_task",
    "width_masks",
    "with_gates",
]

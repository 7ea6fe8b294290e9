"""Learners: training with more, or with something else, than weights under fixed masks.

Here belongs what a method trains in place of the weights or beside them: scores of weights that
never move, gates, hypernetworks, discriminators. Two shapes fit: a `Task` made from another one,
whose trained part is what the method learns (then plain training trains it, with checkpoints), or a
whole `Learner` (`jprune.base`). What turns updates into updates is in `jprune.sparsify`.

Read `popup.py` first. `to_the_end` runs any learner in memory.
"""

from jprune.base import to_the_end
from jprune.learners.adversarial import AdversarialState, Terms, init_judge, judged, told_apart
from jprune.learners.candidates import masked_scorer, scorer
from jprune.learners.feature_boosting import Boosting, as_winners, boosted_task
from jprune.learners.hypernetwork import (
    Hypernetwork,
    Menu,
    hypernetwork,
    hypernetwork_task,
    menu,
    width_masks,
)
from jprune.learners.norm_gates import fold_gates, gateable, sample_gates
from jprune.learners.popup import DRAWS, draw_scores, draw_weights, kept_of, popup_task, top_masks
from jprune.learners.statistics import check_settles, settled, settled_on
from jprune.learners.variational import PRIORS, kl_gaussian, kl_log_uniform, variational_task

__all__ = [
    "DRAWS",
    "PRIORS",
    "AdversarialState",
    "Boosting",
    "Hypernetwork",
    "Menu",
    "Terms",
    "as_winners",
    "boosted_task",
    "check_settles",
    "draw_scores",
    "draw_weights",
    "fold_gates",
    "gateable",
    "hypernetwork",
    "hypernetwork_task",
    "init_judge",
    "judged",
    "kept_of",
    "kl_gaussian",
    "kl_log_uniform",
    "masked_scorer",
    "menu",
    "popup_task",
    "sample_gates",
    "scorer",
    "settled",
    "settled_on",
    "to_the_end",
    "told_apart",
    "top_masks",
    "variational_task",
    "width_masks",
]

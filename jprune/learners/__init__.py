"""Learners: training with more, or with something else, than weights under fixed masks.

Here belongs what a method trains in place of the weights or beside them: scores of weights that
never move, gates, hypernetworks, discriminators. Two shapes fit: a `Task` made from another one,
whose trained part is what the method learns (then plain training trains it, with checkpoints), or a
whole `Learner` (`jprune.base`). What turns updates into updates is in `jprune.sparsify`.

Read `popup.py` first. `to_the_end` runs any learner in memory.
"""

from jprune.learners.popup import DRAWS, draw_scores, draw_weights, kept_of, popup_task, top_masks
from jprune.learners.running import to_the_end

__all__ = [
    "DRAWS",
    "draw_scores",
    "draw_weights",
    "kept_of",
    "popup_task",
    "to_the_end",
    "top_masks",
]

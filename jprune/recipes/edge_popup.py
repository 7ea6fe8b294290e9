"""Edge-popup: prune a random net, and train none of its weights.

Every weight of a random net has a score, and the net keeps the weights with the largest |s| of
every layer. The scores are learned; the weights stay as they were drawn, bit for bit. Masks meet
gradients *straight-through*: with y = (w * m) x the score of every weight, masked or not, gets the
gradient sign(s) w dL/d(w * m).

References:
    Malach, Yehudai, Shalev-Shwartz, Shamir, Proving the lottery ticket hypothesis: pruning is all
    you need, 2020, arXiv 2002.00585 [10]. The method: Ramanujan, Wortsman, Kembhavi, Farhadi,
    Rastegari, What's hidden in a randomly weighted neural network?, 2020, arXiv 1911.13299.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.learners import DRAWS
from jprune.stages.frame import framed
from jprune.stages.popup import Popup, Redraw
from jprune.stages.train import Train


def edge_popup(
    budget: Budget,
    train: Train | None,
    *,
    init: str = "signed_constant",
    scaled: bool = False,
    weight_decay: float | None = None,
) -> Recipe:
    """Learns which weights of a random net to keep.

    Every layer keeps n - int((1 - k) n) of its n weights (truncated, not rounded, as in the
    authors' code). A density is k itself; params and MACs are met by the largest k that fits. The
    paper's best k is near a half.

    Biases stay 0 and norms keep their initial scale and shift (the paper's are non-affine): they
    are not trained. The statistics of norms follow the data.

    Args:
        budget: of weights.
        train: training of the scores, and of the dense net beside it. The paper's has SGD with
            momentum 0.9, learning rate 0.1, a cosine (taken here whatever `train` says) and weight
            decay 1e-4 on scores, and 100 epochs.
        init: of the weights: "signed_constant" (+-sqrt(2 / fan in), the paper's best) or
            "kaiming_normal".
        scaled: sqrt(2 / (k fan in)), which keeps variances right under the masks.
        weight_decay: of the scores; None takes that of `train`.

    Returns:
        The recipe; it prunes weights and has no fine-tuning.

    Raises:
        ArgumentError: another `init`, or a net that is read and not trained here.

    Example:
        >>> [stage.name for stage in edge_popup(Budget(density=0.5), Train(14, 0.1))]
        ['train', 'save', 'dense', 'redraw', 'popup', 'before_finetune']
    """
    if train is None:
        raise errors.ArgumentError(
            "edge_popup prunes a random net, and this one is read from a file. Leave out --weights."
        )
    if init not in DRAWS:
        raise errors.ArgumentError(f"edge_popup(init={init!r}); write one of {', '.join(DRAWS)}.")
    decay = train.weight_decay if weight_decay is None else weight_decay
    scores = dataclasses.replace(train, schedule="cosine", weight_decay=decay, name="popup")
    return framed(train, Redraw(budget, init, scaled), Popup(budget, scores))


METHODS = {"edge_popup": edge_popup}

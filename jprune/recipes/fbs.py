"""FBS: channels boosted and suppressed anew for every image; all weights are kept.

A small predictor reads a layer's inputs and gates its outputs; only the largest gates of an
image pass. The density falls from 1 in steps while net and predictors train together. What comes
out is a net that depends on its input: `slim` removes nothing, the kernels are held as
`jprune.forms.Winners`, `params` are those of the dense net and of the predictors, and
`macs` is a mean over the images of a split, with inputs and outputs that are suppressed left out.

A channel that is suppressed is *frozen* for that image: exactly 0, without gradient.

References:
    Gao, Zhao, Dudziak, Mullins, Xu, Dynamic channel pruning: feature boosting and suppression,
    2019, arXiv 1810.05331 [32]; details as in the authors' code.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.learners.feature_boosting import Boosting
from jprune.stages.deformed import DEFORMATIONS, EvaluateDeformed
from jprune.stages.feature_boosting import Boost
from jprune.stages.frame import opening
from jprune.stages.input_gates import refuse_budget
from jprune.stages.train import Train


def fbs(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    gates: str = "",
    drop: float = 0.1,
    lasso: float = 1e-8,
    over: str = "gates",
    start: str = "one",
    std: float = 0.05,
    shift_first: bool = True,
) -> Recipe:
    """Gates on the trained net, trained with it while fewer and fewer pass.

    Args:
        budget: in MACs: the largest density d is taken at which no image can cost more, sums of two
            activations being counted as whole; or a density: d itself, the same for all layers.
            `min_units` and `floors` are winners of a layer; `multiple_of` has no meaning where
            every image has winners of its own.
        train: training of the dense net; None where it is trained already.
        finetune: training of net and gates, evenly divided among the densities 1, 1 - drop, ..., d.
        gates: patterns of the kernels that get gates, with ":" between; none: all convolutions.
        drop: by how much the density falls from one part of the training to the next.
        lasso: weight of the penalty on the gates.
        over: "gates", all of them as in the paper, or "winners" as in the authors' code.
        start: of the gates: "one" as in the authors' code, or "scale", from where the dense net is
            itself at density 1.
        std: of the predictors' initial weights.
        shift_first: pi * (norm + shift), the paper's; False: the default of the authors' code.

    Returns:
        The recipe; it ends with scores on deformed images.

    Raises:
        ArgumentError: a budget that an input-dependent net cannot have, or an option out of range.

    Example:
        >>> [s.name for s in fbs(Budget(macs=0.5), None, Train(8, 0.05, name="finetune"))]
        ['save', 'dense', 'boost', 'mosaic', 'occlusion']
    """
    refuse_budget("fbs", budget)
    if not 0 < drop < 1:
        raise errors.ArgumentError(f"fbs(drop={drop}); it is in (0, 1).")
    if finetune.distill:
        raise errors.ArgumentError("fbs learns from labels alone; leave out --distill.")
    # Checked here, before anything is trained.
    boosting = Boosting(lasso, over, start, std, shift_first)
    return (
        *opening(train),
        Boost(dataclasses.replace(finetune, name="boost"), budget, boosting, gates, drop),
        *(EvaluateDeformed(name) for name in DEFORMATIONS),
    )


METHODS = {"fbs": fbs}

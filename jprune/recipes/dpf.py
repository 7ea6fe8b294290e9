"""Pruning with feedback: one training in which wrong decisions are taken back.

Dense weights w stand behind a mask m. The net runs on m * w; the gradient there is applied to all
of w, and every so many steps m is taken anew from |w|, on a density that falls by the cubic rule. A
weight that was pruned by mistake grows until it is back. Masks meet gradients *straight-through* in
this part of the training; afterwards they are fixed, and the rest is *frozen*.

The paper trains once, from random weights: that is `train=None` on a new net and a `finetune` as
long as a training. Here the net is trained first, so that all methods begin at the same net. The
authors' code was not to be had. What is known of p = 16, of the global scope over all convolutions,
and of the dense last layer is from ports, whose masks are revised until the second fall of the
learning rate, three quarters of the epochs; the ramp ends there in one port, and earlier here, so
that the mask is revised at the last density too. Ports drop one weight too many (a strict
comparison with a threshold): here counts are exact. Filters by the same rule are the paper's
structured variant; a filter that is masked loses its kernels, and keeps shifts and readers until
the end.

References:
    Lin, Stich, Barba, Dmitriev, Jaggi, Dynamic model pruning with feedback, 2020, arXiv 2006.07253
    [45]. The ramp: Zhu and Gupta, To prune, or not to prune, 2017, arXiv 1710.01878.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.feedback import PruneWithFeedback
from jprune.stages.frame import framed
from jprune.stages.goal import Goal, Settle
from jprune.stages.train import Train


def dpf(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    per: str = "weight",
    scope: str = "global",
    order: int = 1,
    every: int | None = None,
    ramp: float = 0.5,
    stop: float = 0.75,
    first: float = 0.0,
    last: float | None = None,
) -> Recipe:
    """Training under masks that are revised, then training under the last ones.

    Args:
        budget: what is kept; of weights, a density is that of all kernels.
        train: training of the dense net; None where it is trained already, or not at all.
        finetune: both parts of the training. The paper's takes 300 epochs.
        per: "weight" or "unit".
        scope: "global": all weights or units compete (units by the mean over their weights);
            "layer": each layer keeps the same fraction.
        order: of the norm that scores: 1 or 2.
        every: steps from one revision to the next, the paper's p; None: 16, in runs of less than
            160 steps a tenth of them.
        ramp: fraction of the fine-tuning epochs in which the density falls.
        stop: fraction of the fine-tuning epochs after which the masks are fixed.
        first: the least fraction of its weights that the first layer keeps.
        last: the same of the last layer; None: 1 of weights, as in the ports.

    Returns:
        The recipe; it prunes weights, or units.

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> recipe = dpf(Budget(density=0.1), None, Train(8, 0.01, name="finetune"))
        >>> [(stage.name, getattr(stage, "epochs", None)) for stage in recipe][2:]
        [('feedback', None), ('prune', None), ('before_finetune', None), ('finetune', 2.0)]
    """
    if not 0 < stop < 1 or not 0 <= ramp <= stop:
        raise errors.ArgumentError(
            f"dpf(ramp={ramp}, stop={stop}); stop is in (0, 1), ramp in [0, stop]."
        )
    whole = float(per == "weight") if last is None else last
    goal = Goal(budget, per, scope, order, first, whole)
    # Constant: masks move as long as weights do.
    during = dataclasses.replace(finetune, epochs=stop * finetune.epochs, schedule="constant")
    return framed(
        train,
        PruneWithFeedback(during, goal, every, ramp / stop),
        Settle(goal),
        finetune=dataclasses.replace(finetune, epochs=(1 - stop) * finetune.epochs),
    )


METHODS = {"dpf": dpf}

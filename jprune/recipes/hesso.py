"""HESSO: in one training, the least salient units dwindle to 0 and the others learn on.

    x_g <- (T - t - 1) / (T - t) (x_g - alpha d_g)   for the units g that were chosen

After some ordinary steps units are chosen in a few periods: in each, those of the whole net that
matter least by five measures together (size, mean size, angle to the step, and what a step would
change in first and second order). Within a period they go to exactly 0 in a line, so that the net
has time to give up what they say; all others are trained as usual, and go on until the end.

Units that are 0 are *frozen*: exactly 0, without a step. While they dwindle their steps are taken,
and shortened with them.

Differences. A unit is what the engine couples: kernels, scales and shifts of all its producers. The
authors choose a number of units, here it is what the budget asks for, a part of it each time. Their
measures see the gradient with its momentum and weight decay; so do these. What a unit says when it
is 0 (nothing behind a ReLU) is folded into its readers where it is a constant. The variant that
corrects its choice in cycles (CRIC) is not made.

References:
    Chen and others, HESSO: towards automatic efficient and user friendly any
    neural network training and pruning, 2024, arXiv 2409.09085; details as in the authors' PyTorch
    code.
"""

import dataclasses

from jprune.base import Budget, Recipe
from jprune.sparsify.dwindling import SALIENCES
from jprune.stages.dwindling import DwindleUnits
from jprune.stages.frame import framed
from jprune.stages.train import Train
from jprune.train.numbers import Numbers, per_name


def hesso(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    begin: float = 0.1,
    until: float = 0.2,
    periods: int = 10,
    weights: Numbers = 0.2,
) -> Recipe:
    """Training in which units dwindle to 0 early, and all others learn to the end.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: the training in which units dwindle. The authors' ResNet-18 takes 100 epochs.
        begin: fraction of the steps before the first units are chosen; the authors' is a tenth.
        until: fraction of the steps after which as many units are 0 as the budget asks for; the
            authors' is a fifth or a quarter.
        periods: so many times units are chosen, an equal part of what is too much each time.
        weights: of the five measures: "magnitude", "mean_magnitude", "cosine", "taylor",
            "taylor_second"; one for each, or by name.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation), the
        last net's, since nothing is trained after it.

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = hesso(Budget(macs=0.5), None, Train(8, 0.05, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'dwindle', 'before_finetune']
    """
    measures = tuple(per_name(weights, SALIENCES, "weights").values())
    during = dataclasses.replace(finetune, name="dwindle")
    return framed(train, DwindleUnits(during, budget, begin, until, periods, measures))


METHODS = {"hesso": hesso}

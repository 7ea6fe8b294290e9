"""Gradual magnitude pruning: the smallest weights go while the net trains, early ones fast.

Every so many steps each layer loses its smallest weights, so that the fraction removed follows s_t
= s_f (1 - (1 - t)^3). What is masked stays so. Masks meet gradients *frozen*: a masked weight is
exactly 0 and takes no step.

The paper prunes all layers alike. Gale, Elsen and Hooker leave the first convolution dense and
prune the last layer to 80 % at most: `first=1,last=0.2`. They begin with a net that is not trained;
here it is trained first, so that all methods begin at the same net (`train=None` on a new net and a
long `finetune` are the paper's). Whole filters by the same rule are an option of ours.

References:
    Zhu, Gupta, To prune, or not to prune, 2017, arXiv 1710.01878. Gale, Elsen, Hooker, The state of
    sparsity in deep neural networks, 2019, arXiv 1902.09574.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.goal import Goal, Settle
from jprune.stages.scheduled import PruneGradually
from jprune.stages.train import Train


def gmp(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    per: str = "weight",
    scope: str = "layer",
    order: int = 1,
    every: int | None = None,
    begin: float = 0.0,
    stop: float = 0.75,
    first: float = 0.0,
    last: float = 0.0,
) -> Recipe:
    """Training while weights go, then training under the last masks.

    Args:
        budget: what is kept; of weights, a density is that of all kernels.
        train: training of the dense net; None where it is trained already, or not at all.
        finetune: both parts of the training.
        per: "weight" or "unit".
        scope: "layer": each layer keeps the same fraction; "global": all weights or units compete
            (units by the mean over their weights).
        order: of the norm that scores: 1 or 2.
        every: steps from one cut to the next; None: 100, the smallest of the paper's numbers, in
            runs of less than 1,000 steps a tenth of them.
        begin: fraction of the fine-tuning epochs before the first cut, for a learning rate that
            warms up.
        stop: fraction of the fine-tuning epochs after which nothing more goes; the paper ends
            before the last fall of the learning rate.
        first: the least fraction of its weights that the first layer keeps.
        last: the same of the last layer.

    Returns:
        The recipe; it prunes weights, or units.

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> recipe = gmp(Budget(density=0.1), None, Train(8, 0.01, name="finetune"))
        >>> [(stage.name, getattr(stage, "epochs", None)) for stage in recipe][2:]
        [('gradual', None), ('prune', None), ('before_finetune', None), ('finetune', 2.0)]
    """
    if not 0 < stop < 1 or not 0 <= begin < stop:
        raise errors.ArgumentError(
            f"gmp(begin={begin}, stop={stop}); stop is in (0, 1), begin in [0, stop)."
        )
    goal = Goal(budget, per, scope, order, first, last)
    # Constant: what is left has to make up for every cut.
    during = dataclasses.replace(finetune, epochs=stop * finetune.epochs, schedule="constant")
    return framed(
        train,
        PruneGradually(during, goal, every, begin / stop),
        Settle(goal),
        finetune=dataclasses.replace(finetune, epochs=(1 - stop) * finetune.epochs),
    )


METHODS = {"gmp": gmp}

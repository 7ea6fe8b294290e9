"""Iterative hard thresholding: sparse phases, and short dense ones in which the support changes.

In a sparse phase every layer keeps its k largest weights, and trains them alone; in a dense phase
all weights move, those that were cut from 0. The training ends in a sparse phase, so that every
layer has exactly k weights. Masks meet gradients *frozen* in the sparse phases: a masked weight is
exactly 0 and takes no step, of momentum and decay neither; in the dense phases there is no mask.

The abstract speaks of small activations, but the operator of the paper is this cut of small
weights. It begins with a trained net and its numbers of steps were not to be had: an epoch sparse
and a quarter of one dense are a choice of ours. Biases and norms are not cut. With the last mask
fixed there is nothing left to fine-tune: the phases are the fine-tuning.

References:
    Jin, Yuan, Feng, Yan, Training skinny deep neural networks with iterative hard thresholding
    methods, 2016, arXiv 1607.05423 [16].
"""

from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.goal import Goal, Settle
from jprune.stages.hard_threshold import HardThreshold
from jprune.stages.train import Train


def iht(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    sparse: float | None = None,
    dense: float | None = None,
    first: float = 0.0,
    last: float = 0.0,
) -> Recipe:
    """Training in sparse and dense phases.

    Args:
        budget: what is kept; a density is that of all kernels. Each layer keeps the same fraction.
        train: training of the dense net; None where it is trained already.
        finetune: all phases together.
        sparse: epochs of a sparse phase; None: one, in short runs less, so that there are five.
        dense: epochs of a dense phase; None: a quarter of a sparse one. It must be short: run to
            the minimum of the dense net, the support never changes.
        first: the least fraction of its weights that the first layer keeps.
        last: the same of the last layer.

    Returns:
        The recipe; it prunes weights.

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> recipe = iht(Budget(density=0.1), None, Train(8, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'threshold', 'prune', 'before_finetune']
    """
    goal = Goal(budget, first=first, last=last)
    return framed(train, HardThreshold(finetune, goal, sparse, dense), Settle(goal))


METHODS = {"iht": iht}

"""Incremental regularisation: every group has a weight decay of its own, which follows its rank.

    lambda_g <- max(lambda_g + delta(r_g), 0),   dW_g <- dW_g + lambda_g W_g

In every step the groups of a layer are ranked by their L1 norms, averaged over time. delta is A for
the weakest, falls along an exponential, is 0 at the number of groups that are to go, and below 0
behind it: pressure comes slowly, and is withdrawn when a group proves strong. A group whose lambda
reaches a ceiling is gone for good; by then it has decayed, and nothing jumps.

Masks meet gradients *frozen*: what is gone is exactly 0 and takes no step, while decay goes on
among the others and in the fine-tuning. (A group that only decays has no mask.)

Differences. The paper's groups are columns (one tap of one input, over all filters) or rows of a
layer's matrix, its rates are set by hand for each layer, and weights of kernels alone decay. Here
filters are those of units, over all coupled layers, with the scales and shifts of their norms,
without which a norm would undo the decay until the group goes; all blocks lose the same fraction;
and a block whose groups are gone is left alone. Its A (2.5e-4) and ceiling (2.5) are those of
hundred thousands of steps: they follow from the steps here unless they are set. The training under
the regularisation has a constant learning rate, as the authors' (a twentieth of the original one),
whose weight decay is half of the original one: `--weight-decay`.

References:
    Wang, Zhang, Wang, Yu, Hu, Structured pruning for efficient ConvNets via incremental
    regularization, 2019, arXiv 1804.09461 [27]; details as in the authors' Caffe code.
"""

import dataclasses
from collections.abc import Sequence

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.blocks.kinds import as_words
from jprune.stages.frame import framed
from jprune.stages.group_decay import CutGroups, Grouped
from jprune.stages.ranked_decay import RaiseByRank
from jprune.stages.train import Train


def increg(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    group: str = "filter",
    names: str | Sequence[str] | None = None,
    rise: float | None = None,
    ceiling: float | None = None,
    u: float = 0.25,
    every: int = 1,
    scales: bool = True,
    stop: float = 0.6,
) -> Recipe:
    """Training in which the weakest groups decay ever more until they are gone, then fine-tuning.

    Args:
        budget: what may be kept, the same fraction of every block.
        train: training of the dense net; None where it is trained already.
        finetune: the training under the regularisation and the one after it.
        group: "filter" (all that makes a unit), "channel" (all that reads it), or "column", the
            paper's default, which makes masks of weights.
        names: of groups or kernels; None: all. (On the command line with "+" between.)
        rise: A, what lambda gains in a step at rank 0. None: so that all groups are gone after
            three quarters of the steps, if their ranks do not change.
        ceiling: lambda at which a group goes; the paper's is 2.5, 10,000 times its A. None: so that
            what goes is exp(-12) of its size, if there are enough steps for it.
        u: of delta, in (0, 1).
        every: steps from one ranking to the next.
        scales: whether the scales and shifts of a filter decay with it; False is the paper's.
        stop: fraction of the fine-tuning epochs under the regularisation.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = increg(Budget(macs=0.5), None, Train(10, 0.01, name="finetune"))
        >>> [(stage.name, getattr(stage, "epochs", None)) for stage in recipe][2:]
        [('raise', None), ('prune', None), ('before_finetune', None), ('finetune', 4.0)]
    """
    if not 0 < stop < 1:
        raise errors.ArgumentError(f"increg(stop={stop}); it is in (0, 1).")
    grouped = Grouped(group, None if names is None else as_words(names), scales)
    during = dataclasses.replace(finetune, epochs=stop * finetune.epochs, schedule="constant")
    return framed(
        train,
        RaiseByRank(during, budget, grouped, rise, ceiling, u, every),
        CutGroups(budget, grouped),
        finetune=dataclasses.replace(finetune, epochs=(1 - stop) * finetune.epochs),
    )


METHODS = {"increg": increg}

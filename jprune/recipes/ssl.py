"""Structured sparsity learning: group lasso while training, then what is exactly 0 is taken away.

    E(W) = E_D(W) + lambda R(W) + sum_f lambda_f sum_g ||w_g||

Families f of groups: filters, channels, shapes (one tap of one input, over all filters of a kernel)
and depth (all that a branch of a residual sum has). Filters and channels are those of units, over
all producers or consumers that are coupled. Masks meet gradients *prox* while groups vanish: there
is no mask, the step makes exact zeros, and a channel or column can come back. (A filter takes its
shift along, and a ReLU then has no gradient for it: it stays. Wen's code leaves the bias.) Then the
zeros are read off as masks and fine-tuning is *frozen*.

References:
    Wen, Wu, Wang, Chen, Li, Learning structured sparsity in deep neural networks, 2016, arXiv
    1608.03665 [13]; details as in the authors' Caffe code, which takes the subgradient and zeroes
    weights below 1e-4. The proximal step: Parikh, Boyd, Proximal algorithms, 2014.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.blocks.kinds import as_words, words_of
from jprune.stages.frame import Evaluate, Save
from jprune.stages.group_lasso import FAMILIES, Penalty, ReadOff, Shrink
from jprune.stages.train import Train
from jprune.train.numbers import Numbers

STRENGTHS = {"shape": 0.003, "filter": 0.003, "channel": 0.003, "depth": 0.007}
"""The paper's, for CIFAR-10 (ConvNet, ResNet-20)."""


def ssl(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    families: str | Sequence[str] = ("filter", "channel"),
    strength: Numbers | Sequence[Sequence[float]] | Mapping[str, Numbers] | None = None,
    names: str | Sequence[str] | None = None,
    how: str = "prox",
    threshold: float | None = None,
    scales: bool = True,
    stop: float = 0.6,
    correct: bool = True,
) -> Recipe:
    """Training under group lasso, then training under the masks that it made.

    The paper has strengths and no budget. Here the groups that are 0 are counted first; where they
    are too few, `correct` says what happens.

    Args:
        budget: what may be kept. A floor of its whole size leaves a group without a penalty. Only
            the correction keeps to `multiple_of`, and only where no shapes are among the families:
            what the penalty has made 0 goes.
        train: training of the dense net; None where it is trained already.
        finetune: the training under the penalty and the one after it.
        families: "filter", "channel", "shape" or "depth", or several of them: they add. Filters
            and shapes are the paper's rows and columns, depth its ResNet's. Shapes make masks of
            weights, the others of units or branches. (On the command line "filter+shape".)
        strength: lambda of all; of each block (group, kernel, branch) in execution order; a
            sequence of such sequences, one a family; or {family: either of the former}. None:
            0.003, and 0.007 for depth. The paper's are tuned by hand. (On the command line
            "0.003:0.001+0.005" are two blocks of the first family, and all of the second.)
        names: of groups, kernels or branches that are penalised; None: all. (On the command line
            with "+" between.)
        how: "prox", whose step makes groups exactly 0, or "subgradient", the authors'.
        threshold: weights below it become 0 after every step; None: 0 for "prox", and the authors'
            1e-4 for "subgradient", which makes no zeros by itself.
        scales: whether the norm of a filter or branch has the scales of its batch norms in it. The
            paper's has kernels alone; but a norm divides by the kernel's size, so that shrinking it
            does not shrink the unit's output, and zeros come late if at all.
        stop: fraction of the fine-tuning epochs under the penalty (the authors' AlexNet: a half of
            the dense training's steps, and a third after it).
        correct: True cuts the groups until the budget is met of which the penalty has left least
            (the norm over the mean norm of its block in the dense net, which is ours; blocks of
            strength 0 are left alone); the record of the stage `prune` says what the penalty alone
            had `reached`. False is the paper's: only what is 0 goes, and a budget out of reach is
            an error.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = ssl(Budget(macs=0.5), None, Train(10, 0.01, name="finetune"))
        >>> [(stage.name, getattr(stage, "epochs", None)) for stage in recipe][2:]
        [('shrink', None), ('prune', None), ('before_finetune', None), ('finetune', 4.0)]
    """
    kinds = words_of(families, FAMILIES, "families")
    if not 0 < stop < 1:
        raise errors.ArgumentError(f"ssl(stop={stop}); it is in (0, 1).")
    penalty = Penalty(
        kinds,
        {kind: STRENGTHS[kind] for kind in kinds} if strength is None else strength,
        None if names is None else as_words(names),
        how,
        (1e-4 if how == "subgradient" else 0.0) if threshold is None else threshold,
        scales,
    )
    # The penalty takes a part of the fine-tuning and adds
    # none: methods are compared at equal epochs.
    during = dataclasses.replace(finetune, epochs=stop * finetune.epochs)
    return (
        *(() if train is None else (train,)),
        Save("dense"),
        Evaluate("test", name="dense"),
        Shrink(during, budget, penalty),
        ReadOff(budget, penalty, correct),
        Evaluate("validation", name="before_finetune"),
        dataclasses.replace(finetune, epochs=(1 - stop) * finetune.epochs),
    )


METHODS = {"ssl": ssl}

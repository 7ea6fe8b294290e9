"""StructADMM: weights trained towards a structured-sparse copy of them, cut, and trained again.

Loss plus a constraint on how many groups are not 0 is split: W is trained with a pull towards Z, Z
is the projection of W + U on the constraint, and the duals U gather what is missing (see
`jprune.sparsify.admm`). Masks meet gradients *prox* meanwhile: there is no mask, W is dense, and
Z, the proximal step of the constraint, has the zeros. Then the support of W's projection becomes
the masks, and retraining is *frozen*, with an optimizer of its own.

References:
    Zhang, Zhang, Ye, Li, Tang, Wen, Lin, Fardad, Wang, StructADMM: a systematic, high-efficiency
    framework of structured weight pruning for DNNs, 2018, arXiv 1807.11091 [33]; settings as in
    the same group's code for LeNet-5 (kaiqzhan/admm-pruning). The splitting: Boyd, Parikh, Chu,
    Peleato, Eckstein, 2011.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from jprune import allocate, errors
from jprune.base import Budget, Recipe
from jprune.blocks.kinds import as_words, words_of
from jprune.stages.admm import Admm, Cut
from jprune.stages.frame import Evaluate, Save
from jprune.stages.rounds import evenly
from jprune.stages.splitting import Sets
from jprune.stages.train import Train
from jprune.train.numbers import Numbers

KINDS = ("filter", "channel", "column", "weight")
OPTIMIZERS = ("adam", "sgd")


def struct_admm(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    groups: str | Sequence[str] = "filter",
    keep: Numbers | Sequence[Sequence[float]] | Mapping[str, Numbers] | None = None,
    names: str | Sequence[str] | None = None,
    allocator: str = "uniform",
    affine: bool = True,
    rounds: int | None = None,
    rho: float = 1e-3,
    growth: float = 1.2,
    limit: float = 100.0,
    optimizer: str = "adam",
    rate: float = 1e-3,
    weight_decay: float = 5e-5,
    stop: float = 0.8,
    progressive: int = 1,
    purify: float = 0.0,
) -> Recipe:
    """Training with ADMM, the cut, and training under its masks.

    Args:
        budget: what is kept after the last cut. How many groups every layer keeps is fixed before
            training, which of them it is not.
        train: training of the dense net; None where it is trained already.
        finetune: ADMM and the training after it.
        groups: "filter" (over all producers of a unit), "channel" (over all its consumers),
            "column" (one tap of one input, over all filters of a kernel), "weight", or several,
            filters and columns being the paper's rows and columns: projected one after the other,
            as the authors do, which is not the nearest point of both. Columns and weights make
            masks of weights: the gain is a smaller matrix, and units that nothing reads. With
            them, the budget's `multiple_of` has no meaning. (On the command line "filter+column".)
        keep: fractions kept, instead of those that meet the budget, which they have to fit: one
            for all; one for each block in execution order; a sequence of such sequences, one a
            kind; or {kind: either of the former}. (On the command line "0.5:0.25+0.3" are two
            blocks of the first kind, and all of the second.)
        names: of groups or kernels that are pruned; None: all. (On the command line with "+"
            between.)
        allocator: how the budget is spread: "uniform" (every layer the same fraction) or
            "global_topk" (by the norms of the dense net). The paper's fractions are set by hand.
        affine: whether a filter has its scales and shifts in it. The paper's has kernels alone, in
            nets with batch norms too; but a norm divides by the kernel's size, so that a filter
            near 0 says as much as before, and the cut undoes the net however small the gap.
        rounds: updates of the duals, of equally many steps. Authors: 30, of 5 epochs each. None:
            30, or as many as have 100 steps: in shorter ones duals grow faster than the weights can
            follow.
        rho: of rho/2 ||W - Z + U||^2; of order 1e-3 (authors' LeNet-5: 1e-4 without the half).
        growth: rho grows by this factor a round (1: the authors' LeNet-5). Above 1 it ends cycles
            that a small rho leaves.
        limit: the duals diverge when they are so many times longer than the weights, or not finite:
            training stops at the last good round, and the cut raises an error that says so.
        optimizer: of the W-step: "adam" (AMSGrad, the authors') or "sgd", as fine-tuning.
        rate: learning rate of "adam".
        weight_decay: of "adam", part of the loss.
        stop: fraction of the fine-tuning epochs with ADMM (authors: 150 of 160).
        progressive: cuts, each with ADMM and training of its own, that keep the same fraction of
            what is left.
        purify: groups below so much of the mean norm of their block are cut too (the journal
            version's purification; units that nothing reads go in any case).

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = struct_admm(Budget(macs=0.25), None, Train(10, 0.01, name="finetune"),
        ...                      progressive=2)
        >>> [stage.name for stage in recipe][2:]
        ['admm', 'prune', 'between', 'admm', 'prune', 'before_finetune', 'finetune']
    """
    kinds = words_of(groups, KINDS, "groups")
    errors.check_words(
        "struct_admm",
        ("allocator", allocator, allocate.ALLOCATORS),
        ("optimizer", optimizer, OPTIMIZERS),
    )
    errors.check_numbers(
        "struct_admm",
        ("stop", stop, 0 < stop < 1, "in (0, 1)"),
        ("rounds", rounds, rounds is None or rounds >= 1, "1 or more"),
        ("rho", rho, rho > 0, "above 0"),
        ("growth", growth, growth >= 1, "1 or more"),
        ("limit", limit, limit > 0, "above 0"),
        ("rate", rate, rate > 0, "above 0"),
        ("weight_decay", weight_decay, weight_decay >= 0, "0 or more"),
        ("progressive", progressive, progressive >= 1, "1 or more"),
        ("purify", purify, 0 <= purify < 1, "in [0, 1)"),
    )
    if keep is not None and progressive > 1:
        raise errors.ArgumentError(
            f"keep={keep!r} with progressive={progressive}: the fractions of every cut come from "
            "the budget. Leave one of the two out."
        )
    chosen = None if names is None else as_words(names)
    share = lambda part: part * finetune.epochs / progressive
    # Constant: a rate that falls to 0 within a part would leave its last rounds without a W-step.
    during = dataclasses.replace(finetune, epochs=share(stop), schedule="constant")
    after = dataclasses.replace(finetune, epochs=share(1 - stop))
    adam = (rate, weight_decay) if optimizer == "adam" else None
    stages = []
    for goal in evenly(budget, progressive):
        sets = Sets(goal, kinds, keep, chosen, allocator, affine)
        training = Admm(during, sets, rounds, rho, growth, limit, adam)
        stages += [training, Cut(sets, purify), dataclasses.replace(after, name="between")]
    return (
        *(() if train is None else (train,)),
        Save("dense"),
        Evaluate("test", name="dense"),
        *stages[:-1],
        Evaluate("validation", name="before_finetune"),
        after,
    )


METHODS = {"struct_admm": struct_admm}

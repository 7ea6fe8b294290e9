"""DepGraph's group sparsity: units are ranked, and faded, by all that is coupled to them.

A unit weighs what its filters, its norms' scales and its consumers' inputs weigh together. While
the net trains under a decay that is the stronger the less a unit weighs, the light ones fade in all
layers at once; then units are cut by what they weigh, all groups competing, and the rest is
fine-tuned. Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step; units
that fade have no mask yet, and never are 0 by themselves.

The defaults are those of the authors' script for CIFAR-10 (Torch-Pruning). Its `regularize` has
2^4 written into it whatever alpha says, and divides 0 by 0 where all units of a group weigh the
same: here alpha is an option, and such units decay alike. Its strength of 5e-4 belongs to 100
epochs: by default it is scaled so that shorter trainings decay as much. Dependencies are those that
`jprune.trace` finds in the jaxpr.

References:
    Fang, Ma, Song, Mi, Wang, DepGraph: towards any structural pruning, 2023, arXiv 2301.12900.
    Factors that grow: Wang, Qin, Zhang, Fu, Neural pruning via growing regularization, 2021, arXiv
    2012.09243.
"""

import dataclasses

from jprune import allocate, errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.prune import Prune, coupled_of
from jprune.stages.relative_decay import Fade, FadeUnits
from jprune.stages.rounds import evenly
from jprune.stages.train import Train

REGULARIZERS = ("group", "growing", "none")


def depgraph(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    regularizer: str = "group",
    reg: float | None = None,
    alpha: float = 4.0,
    growth: float | None = None,
    every: int = 0,
    order: int = 2,
    normalize: str = "max",
    bias: bool = False,
    allocator: str = "global_topk",
    rounds: int = 10,
    stop: float = 0.5,
) -> Recipe:
    """Training in which light units fade, pruning by the coupled norm, fine-tuning.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: the training in which units fade and the one after it.
        regularizer: "group": lambda_k = reg 2^(alpha (I_max - I_k) / (I_max - I_min)), I_k being
            the norm of unit k over all of its slices; "growing": lambda_k begins at reg and grows
            by growth (I_max - I_k) / (I_max - I_min); "none": pruning alone.
        reg: the decay of the unit that weighs most. None: 5e-4 (authors, CIFAR-10), scaled so that
            it decays as much as in their 100 epochs: by e^-1.2, the lightest ones by e^-19.
        alpha: the lightest units decay 2^alpha times as much.
        growth: of "growing". None: reg triples over the training for the lightest units, as 1e-5 an
            epoch does in the authors' script.
        every: steps from one growth to the next; 0: an epoch.
        order: of the norms that rank units: 2 (squared), or 1.
        normalize: what the scores of a group are divided by before groups compete: "max" (authors'
            script for CIFAR-10) or "mean" (their library's default); "none".
        bias: whether biases and shifts are ranked and decay too.
        allocator: "global_topk", all groups compete, or "uniform".
        rounds: units go in so many rounds without training between; what is gone counts no more
            when others are ranked. (Authors' script: 400.)
        stop: fraction of the fine-tuning epochs in which units fade (authors: 100 of 200).

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = depgraph(Budget(macs=0.5), None, Train(10, 0.01, name="finetune"), rounds=2)
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'fade', 'prune', 'prune', 'before_finetune', 'finetune']
    """
    errors.check_words(
        "depgraph",
        ("regularizer", regularizer, REGULARIZERS),
        ("allocator", allocator, allocate.ALLOCATORS),
    )
    errors.check_numbers(
        "depgraph",
        ("stop", stop, 0 < stop < 1, "in (0, 1)"),
        ("rounds", rounds, rounds >= 1, "1 or more"),
    )
    if regularizer != "growing" and (growth is not None or every):
        raise errors.ArgumentError(
            f"depgraph(regularizer={regularizer!r}, growth={growth}, every={every}): nothing "
            "grows. Write regularizer='growing', or leave them out."
        )
    fade = Fade(reg, alpha, regularizer == "growing", growth, every, bias)
    fading, after = (), finetune
    if regularizer != "none":
        during = dataclasses.replace(finetune, epochs=stop * finetune.epochs)
        fading = (FadeUnits(during, fade),)
        after = dataclasses.replace(finetune, epochs=(1 - stop) * finetune.epochs)
    spread = allocate.ALLOCATORS[allocator]
    ranked = coupled_of(order, normalize, bias)
    prunings = [Prune(ranked, spread, goal, final=budget) for goal in evenly(budget, rounds)]
    return framed(train, *fading, *prunings, finetune=after)


METHODS = {"depgraph": depgraph}

"""Approximated oracle: random halves of a layer are tried on the next layer while the net trains.

Beside every training step each layer closes a random half of its search space on a side path, which
the next layer alone sees: the damage is how much that layer's output changes, so that layers do not
disturb each other and all are searched at once. Every filter is charged with the mean damage of the
halves that it was in. After a number of steps the better half becomes the search space, until its
damage is below theta and it is cut: a binary search for every layer, which begins anew after each
cut. Nothing says how wide a layer becomes but theta, and the budget that ends the search.

Masks meet gradients *frozen*: what was cut is exactly 0 from then on. The side path passes no
gradient.

References:
    Ding, Ding, Guo, Han, Yan, Approximated oracle filter pruning for destructive CNN width
    optimization, 2019, arXiv 1905.04748 [23]; procedure and constants as in the authors' code.
    There the next layer runs again in training mode, so that its running statistics see closed
    inputs too; here the side path has the running statistics and updates nothing. Damage is
    measured behind norm and nonlinearity, before pooling (there behind it), and where several
    layers read a unit, over all of them. A move that would pass by the budget is cut short here,
    and a layer of one filter rests.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.halving import Halve, MeetBudget
from jprune.stages.train import Train


def aofp(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    theta: float = 0.01,
    period: int | None = None,
    warmup: int | None = None,
    streams: bool = False,
    stop: str = "budget",
    search: float = 0.6,
    rate: float = 0.1,
    correct: bool = True,
) -> Recipe:
    """Training with the search beside it, then training under the masks that it found.

    Args:
        budget: what is kept. The search ends in the epoch in which it is met.
        train: training of the dense net; None where it is trained already.
        finetune: the search and the training after it (600 epochs at most, and 600, in the paper).
        theta: the largest mean damage of a half that is cut (the authors' LeNet-5: 0.05). It is
            compared with the damage of many filters together, so that it depends on widths.
        period: steps from one decision of a layer to the next. None: the authors' 1000, and in
            short trainings a sixtieth of the steps, so that a layer can decide 60 times.
        warmup: steps before the first layer begins. None: the authors' 500, in short trainings a
            twentieth of the steps.
        streams: whether filters that write a residual stream go too. The authors' ResNet-56 loses
            those inside of blocks alone.
        stop: "budget"; or "theta": the threshold alone decides, and of the budget only floors and
            multiples are looked at (the default of the authors' code).
        search: fraction of the fine-tuning epochs that the search may take.
        rate: learning rate of the search, as a fraction of that of the fine-tuning (1e-3 of 1e-2).
        correct: whether what the search leaves above the budget is cut by the size of the filters;
            False leaves it, as the authors do. With "theta" nothing is corrected.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = aofp(Budget(macs=0.5), None, Train(10, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe][2:]
        ['halve', 'prune', 'before_finetune', 'finetune']
    """
    errors.check_numbers(
        "aofp", ("search", search, 0 < search < 1, "in (0, 1)"), ("rate", rate, rate > 0, "above 0")
    )
    # Constant: decisions are alike in all of its steps.
    during = dataclasses.replace(
        finetune, epochs=search * finetune.epochs, learning_rate=rate * finetune.learning_rate,
        schedule="constant", warmup=0.0,
    )  # fmt: skip
    halve = Halve(during, budget, theta, period, warmup, streams, stop)
    return framed(
        train,
        halve,
        MeetBudget(halve, correct and stop == "budget"),
        finetune=dataclasses.replace(finetune, epochs=(1 - search) * finetune.epochs),
    )


METHODS = {"aofp": aofp}

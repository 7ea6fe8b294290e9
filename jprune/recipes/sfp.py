"""Soft filter pruning: after every epoch the smallest filters are set to 0, and train on.

No filter is given up before the end: one that was set to 0 has a gradient, through the scale and
shift that it keeps, and a momentum, and comes back if it grows. In sfp as many filters as in the
end go from the first epoch on; in asfp first few, so that less is lost at a time: three quarters of
them after an eighth of the epochs. The zeros are made by the step itself, without a mask: masks
meet gradients as after a *prox* step. After the last step the filters that are 0 go for good, and
what their shifts still say is folded into their readers where that can be done; the authors' code
drops it.

The papers give each layer the same rate, round the number of filters that go down, and prune layer
by layer, summed streams too, whose channels then do not match: here a unit is a channel of all
layers that are summed, and has one norm; numbers follow from the budget. They end with this
training; `stop` below 1 leaves a part of the epochs for fine-tuning under fixed masks (*frozen*),
as ours.

References:
    sfp: He, Kang, Dong, Fu, Yang, Soft filter pruning for accelerating deep convolutional neural
    networks, 2018, arXiv 1808.06866. asfp: He, Dong, Kang, Fu, Yan, Yang, Asymptotic soft filter
    pruning for deep convolutional neural networks, 2020, arXiv 1808.07471. score=distance: He, Liu,
    Wang, Hu, Yang, 2019, arXiv 1811.00250.
"""

import dataclasses
from functools import partial

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.goal import Goal, Settle
from jprune.stages.soft_prune import CRITERIA, Pool, SoftPrune
from jprune.stages.train import Train

NORMS = {"l1": 1, "l2": 2}


def sfp(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    ramp: str = "constant",
    score: str = "l2",
    every: float | None = None,
    stop: float = 1.0,
) -> Recipe:
    """Training with soft pruning, and what is left of the epochs under the last masks.

    Args:
        budget: what is kept; every group keeps the same fraction of its units.
        train: training of the dense net; None where it is trained already, or not at all (the
            papers report both).
        finetune: both parts of the training.
        ramp: "constant", or "asymptotic" as in asfp.
        score: of a unit: "l2" (the authors'), "l1", or its distances to the others of its group,
            "distance" (Euclidean: soft pruning by the geometric median), "manhattan" or "cosine".
        every: epochs from one time to the next; None: one, in runs of less than ten epochs a tenth
            of the steps.
        stop: fraction of the fine-tuning epochs after which masks are fixed, and the rest is
            fine-tuning. The papers' is 1: none at all.

    Returns:
        The recipe; it prunes units.

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> recipe = sfp(Budget(macs=0.5), None, Train(8, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'soft', 'prune', 'before_finetune']
    """
    if not 0 < stop <= 1:
        raise errors.ArgumentError(f"stop={stop}; it is a fraction of the epochs, in (0, 1].")
    errors.check_words("sfp", ("score", score, CRITERIA))
    goal = Goal(budget, "unit", order=NORMS.get(score, 2))
    pool = None if score in NORMS else Pool((score,))
    during = dataclasses.replace(finetune, epochs=stop * finetune.epochs)
    left = (1 - stop) * finetune.epochs
    return framed(
        train,
        SoftPrune(during, goal, every, ramp, pool),
        Settle(goal),
        finetune=dataclasses.replace(finetune, epochs=left) if left > 0 else None,
    )


METHODS = {"sfp": sfp, "asfp": partial(sfp, ramp="asymptotic")}

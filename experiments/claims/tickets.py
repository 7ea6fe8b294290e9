"""E9's nets: how much is left after a round, and what a ticket is compared with."""

from collections.abc import Iterator
from typing import Any

from experiments.claims.claim import Case
from jprune.base import Budget, Pruned
from jprune.recipes import Rewind
from jprune.stages.reinitialise import Reinitialise, ShuffleMasks
from jprune.stages.tickets import PruneRound, after


def remaining(number: int) -> float:
    """The fraction of LeNet-300-100's weights after so many rounds of 20 %, 20 % and 10 %.

    Example:
        >>> round(remaining(7), 4)
        0.2107
    """
    sizes = ((235200, 0.2), (30000, 0.2), (1000, 0.1))
    return sum(after(size, rate, number) for size, rate in sizes) / 266200


def pruned_round(case: Case[Any], pruned: Pruned, number: int) -> Pruned:
    """The net after one more round."""
    return case.apply(pruned, 10 * number, PruneRound(Budget(density=remaining(number)), 1))


def rewound(case: Case[Any], pruned: Pruned, number: int) -> Pruned:
    """The net with the values that it began with, under its masks."""
    return case.apply(pruned, 10 * number, Rewind("rewind"))


def controls(case: Case[Any], pruned: Pruned, number: int) -> Iterator[tuple[str, Pruned]]:
    """(arm, net): the same masks with new initial values, and masks shuffled."""
    yield "reinit", Reinitialise()(pruned, case.task, case.fold(10 * number, 1))[0]
    shuffled, _ = ShuffleMasks()(pruned, case.task, case.fold(10 * number, 2))
    yield "random_mask", rewound(case, shuffled, number)

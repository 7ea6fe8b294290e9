"""Pruning in rounds with training in between: what iterative methods share."""

import dataclasses
from collections.abc import Callable

from jprune.base import Budget, Recipe, Stage
from jprune.stages.train import Train


def in_rounds(
    prune: Callable[[Budget], Stage], budget: Budget, fractions: list[float], finetune: Train
) -> tuple[Recipe, Train]:
    """Pruning stages with training in between.

    Half of the fine-tuning epochs lie between the rounds, at a constant learning rate, so that
    every number of rounds trains equally long.

    Args:
        prune: makes the stage for a budget.
        budget: of the last round.
        fractions: kept after each round, the last being the budget's.
        finetune: all training after the first round.

    Returns:
        The stages up to the last pruning, and the training that is left for the end.
    """
    budgets = [dataclasses.replace(budget, **{budget.kind: fraction}) for fraction in fractions]
    first, *others = map(prune, budgets)
    if not others:
        return (first,), finetune
    half = finetune.epochs / 2
    between = dataclasses.replace(
        finetune, epochs=half / len(others), schedule="constant", name="between"
    )
    stages = (first, *(stage for later in others for stage in (between, later)))
    return stages, dataclasses.replace(finetune, epochs=half)


def evenly(budget: Budget, rounds: int) -> list[Budget]:
    """Budgets of rounds that each keep the same fraction of what is left; the last is the budget.

    Example:
        >>> [each.macs for each in evenly(Budget(macs=0.25), 2)]
        [0.5, 0.25]
    """
    kept = [float(budget.value) ** (number / rounds) for number in range(1, rounds)]
    return [*(dataclasses.replace(budget, **{budget.kind: fraction}) for fraction in kept), budget]

"""Pruning in rounds with training in between, for iterative methods."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from jprune import errors, schedules
from jprune.base import Budget, Recipe, Stage
from jprune.stages.train import Train

Way = TypeVar("Way")

ROUNDS = 5
"""The number of rounds of a schedule that has several, where none is asked for."""


def in_rounds(
    prune: Callable[[Way], Stage], ways: Sequence[Way], finetune: Train
) -> tuple[Recipe, Train]:
    """Pruning stages, one for each of a sequence of budgets or settings, training in between.

    Half of the fine-tuning epochs lie between the rounds, at a constant learning rate, so that
    every number of rounds trains equally long.

    Args:
        prune: makes the stage of a round.
        ways: what differs between rounds: their budgets, the last being that of the recipe.
        finetune: all training after the first round.

    Returns:
        The stages up to the last pruning, and the training that remains for the end.
    """
    first, *others = map(prune, ways)
    if not others:
        return (first,), finetune
    # Constant in between: a schedule that falls to 0 in every
    # round would hardly train in the last of its steps.
    half = finetune.epochs / 2
    between = dataclasses.replace(
        finetune, epochs=half / len(others), schedule="constant", warmup=0.0, name="between"
    )
    stages = (first, *(stage for later in others for stage in (between, later)))
    return stages, dataclasses.replace(finetune, epochs=half)


def parts(rounds: int) -> list[tuple[int, int]]:
    """The parts of a net's layers that rounds prune, for stages that have `part`.

    Raises:
        ArgumentError: less than one round.

    Example:
        >>> parts(2)
        [(0, 2), (1, 2)]
    """
    if rounds < 1:
        raise errors.ArgumentError(f"rounds={rounds}; it is 1 or more.")
    return [(number, rounds) for number in range(rounds)]


def evenly(budget: Budget, rounds: int) -> list[Budget]:
    """Budgets of rounds that each keep the same fraction of the rest; the last is the budget.

    Raises:
        ArgumentError: less than one round.

    Example:
        >>> [each.macs for each in evenly(Budget(macs=0.25), 2)]
        [0.5, 0.25]
    """
    if rounds < 1:
        raise errors.ArgumentError(f"rounds={rounds}; it is 1 or more.")
    # After round i of m, the fraction k^(i / m) is left of a budget k.
    fractions = [float(budget.value) ** (number / rounds) for number in range(1, rounds)]
    return [*(_with(budget, fraction) for fraction in fractions), budget]


def rounds_for(budget: Budget, remaining: float) -> int:
    """How many rounds meet a budget if each keeps about a fraction `remaining` of the rest.

    Example:
        >>> rounds_for(Budget(density=0.5), 0.8), rounds_for(Budget(density=0.64), 0.8)
        (4, 2)
    """
    # remaining^m <= k  <=>  m >= log k / log remaining
    return max(1, math.ceil(math.log(float(budget.value)) / math.log(remaining) - 1e-9))


def scheduled(budget: Budget, schedule: str, rounds: int | None = None) -> list[Budget]:
    """Budgets of rounds under a schedule, the last being the budget itself; see `kept_after`."""
    return [_with(budget, each) for each in kept_after(float(budget.value), schedule, rounds)]


def kept_after(fraction: float, schedule: str, rounds: int | None = None) -> list[float]:
    """The fraction kept after each round.

    Args:
        fraction: kept after the last one.
        schedule: "one_shot", "iterative" (every round keeps the same fraction of what is left) or
            "cubic" (early rounds remove more).
        rounds: number of rounds of pruning; None is 1 for "one_shot" and 5 for the others.

    Raises:
        ArgumentError: an unknown schedule, or rounds that it cannot have.

    Example:
        >>> kept_after(0.25, "iterative", 2), kept_after(0.25, "one_shot")
        ([0.5, 0.25], [0.25])
    """
    if schedule not in schedules.SCHEDULES:
        raise errors.ArgumentError(
            f"there is no schedule {schedule!r}; write one of {', '.join(schedules.SCHEDULES)}."
        )
    at_once = schedule == "one_shot"
    # `rounds` that do not fit the schedule are refused, not ignored.
    rounds = (1 if at_once else ROUNDS) if rounds is None else rounds
    if rounds < 1 or (at_once and rounds > 1):
        raise errors.ArgumentError(
            f"{schedule} with rounds={rounds}: one_shot has 1 round, iterative and cubic have 1 or "
            "more. Write --schedule iterative for several."
        )
    if at_once:
        return [fraction]
    if schedule == "iterative":
        density = schedules.iterative(fraction, rounds, every=1)
        fractions = [density(number) for number in range(rounds - 1)]
    else:
        density = schedules.cubic(fraction, 0, rounds)
        fractions = [density(number) for number in range(1, rounds)]
    # The last one is the fraction itself, to the last bit: the budget is checked against it.
    return [*np.asarray(fractions, float).tolist(), fraction]


def _with(budget: Budget, fraction: float) -> Budget:
    """The budget with another fraction kept."""
    return dataclasses.replace(budget, **{budget.kind: fraction})

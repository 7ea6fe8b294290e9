"""Uniform: every group keeps the same fraction."""

from typing import Any

import numpy as np

from jprune.allocate.budgets import allocated, floor_of, kept_count, map_named, rounded, step_of
from jprune.base import Budget, CostModel, Masks, Scores
from jprune.masks import keep_best


def uniform(scores: Scores, budget: Budget, cost_model: CostModel | None = None) -> Masks:
    """The best entries of every group (or leaf), the same fraction in each.

    A budget in parameters or MACs is met by the largest such density; units that still fit are then
    added, best first, so that the cost is as close to the budget as single steps allow.

    Args:
        scores: {group: [n]} or a tree; None leaves pass through.
        budget: with `min_units`, `multiple_of` and `floors`. A density may be traced.
        cost_model: for budgets in anything but density.

    Returns:
        Bool masks of the scores' structure. Kept are n - round((1 - density) n) entries of each
        leaf, ties by lowest index, then floors and multiples; -inf never, +inf always.

    Raises:
        ArgumentError: NaN scores, nothing to allocate, or a missing cost model.
        BudgetError: a budget that cannot be met.

    Example:
        >>> uniform({"a": np.array([1.0, 4.0, 2.0, 3.0])}, Budget(density=0.5))["a"].tolist()
        [False, True, False, True]
    """
    return allocated(lambda s, density: _at(s, density, budget), scores, budget, cost_model)


def _at(scores: Scores, density: Any, budget: Budget) -> Masks:
    return map_named(lambda name, leaf: _keep(name, leaf, density, budget), scores)


def _keep(name: str | None, leaf: Any, density: Any, budget: Budget) -> Any:
    # n - round((1 - d) n), then up to the floor and to the nearest allowed width.
    size = int(np.size(leaf))
    count = rounded(
        kept_count(size, density), size, floor_of(name, size, budget), step_of(size, budget)
    )
    return keep_best(leaf, count)

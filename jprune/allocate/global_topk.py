"""Global top-k: the best entries of all groups together are kept."""

import dataclasses
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jprune.allocate.budgets import (
    allocated,
    are_units,
    floor_of,
    kept_count,
    map_named,
    rounded,
    step_of,
)
from jprune.base import Budget, CostModel, Masks, Scores
from jprune.masks import best, keep_best

LEAST = 1 / 16
"""Fraction of a group that a budget in MACs and the like leaves, where no floor is written."""


def global_topk(scores: Scores, budget: Budget, cost_model: CostModel | None = None) -> Masks:
    """The best entries, in whichever group they are.

    Scores of different groups must be comparable; `normalized` makes them so where a criterion
    does not. A budget in parameters or MACs is met by the largest number of units whose masks
    fit, by the cost model; units that still fit are then added, best first.

    Layers collapse where scores are not comparable: in a net of ReLUs the sum of g w over a layer
    is the same for all layers, so that units of wide layers have low scores and all go first.
    Budgets other than a density therefore leave a sixteenth of every group of units (less where
    the budget is below a quarter), unless `floors` names the group; a density is counted exactly.
    Either way, a group that falls so low is named by a warning (of `logging`).

    Args:
        scores: {group: [n]} or a tree; None leaves pass through.
        budget: with `min_units`, `multiple_of` and `floors`. A density may be traced (jittable).
        cost_model: for budgets in anything but density.

    Returns:
        Bool masks of the scores' structure. Kept are n - round((1 - density) n) of all n entries,
        ties by lowest index in flattening order; floors are kept first, then counts are rounded
        to multiples. -inf is never kept, +inf always.

    Raises:
        ArgumentError: NaN scores, nothing to allocate, or a missing cost model.
        BudgetError: a budget that cannot be met.

    Example:
        >>> scores = {"a": np.array([1.0, 4.0]), "b": np.array([9.0, 8.0])}
        >>> {name: mask.tolist() for name, mask in global_topk(scores, Budget(density=0.5)).items()}
        {'a': [False, True], 'b': [True, False]}
    """
    least = _least(scores, budget)
    if budget.kind != "density":
        budget = dataclasses.replace(budget, floors={**least, **budget.floors})
    masks = allocated(lambda s, density: _at(s, density, budget), scores, budget, cost_model)
    for name, floor in least.items():
        _warn_of_collapse(name, scores[name], masks[name], floor)
    return masks


def _least(scores: Scores, budget: Budget) -> dict[str, int]:
    """{group: the width at which it has collapsed}, for groups of units that no floor names."""
    if isinstance(budget.value, Tracer) or not are_units(scores):
        return {}
    # A quarter of what all groups could keep evenly: floors alone never make a budget impossible.
    fraction = min(LEAST, float(budget.value) / 4)
    return {
        name: math.ceil(fraction * np.size(leaf))
        for name, leaf in scores.items()
        if name not in budget.floors and np.size(leaf) > 1 / LEAST
    }


def _warn_of_collapse(name: str, scores: Any, mask: Any, floor: int) -> None:
    """Names a group of which next to nothing is left, where more could be."""
    if isinstance(mask, Tracer):
        return
    kept, size = int(np.sum(mask)), int(np.size(mask))
    alive = int(np.sum(np.asarray(scores, float) > -np.inf))
    if kept <= floor < alive:
        logging.getLogger(__name__).warning(
            "global_topk keeps %d of the %d units of %s: its scores are low beside those of other "
            "groups, and the layer may collapse. Take allocate.uniform, or scores that are "
            "comparable (allocate.normalized), or write Budget(floors={%r: N}).",
            kept, size, name, name,
        )  # fmt: skip


def _at(scores: Scores, density: Any, budget: Budget) -> Masks:
    traced = any(isinstance(leaf, Tracer) for leaf in (*jax.tree.leaves(scores), density))
    numbers = jnp if traced else np
    # Floors are entries of score +inf: one global selection then keeps them by itself.
    forced = map_named(lambda name, leaf: _with_floor(name, leaf, budget, numbers), scores)
    flat = numbers.concatenate([numbers.reshape(leaf, (-1,)) for leaf in jax.tree.leaves(forced)])
    count = numbers.maximum(kept_count(flat.shape[0], density), (flat == numbers.inf).sum())
    mask = best(flat, count)
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(forced)])[:-1].tolist()
    parts = iter(numbers.split(mask, ends))
    masks = jax.tree.map(lambda leaf: numbers.reshape(next(parts), leaf.shape), forced)
    if budget.multiple_of == 1:
        return masks
    return map_named(lambda n, m, s: _rounded(n, m, s, budget), masks, scores)


def _with_floor(name: str | None, leaf: Any, budget: Budget, numbers: Any) -> Any:
    """The scores with +inf at the best entries that the floor keeps."""
    leaf = numbers.asarray(leaf)
    leaf = leaf.astype(numbers.result_type(leaf.dtype, numbers.float32))
    floor = floor_of(name, int(np.size(leaf)), budget)
    return numbers.where(keep_best(leaf, floor), numbers.inf, leaf)


def _rounded(name: str | None, mask: Any, scores: Any, budget: Budget) -> Any:
    # The global selection decides how many a group keeps; rounded, its own best are kept.
    size = int(np.size(mask))
    count = mask.sum()
    count = count if isinstance(count, Tracer) else int(count)
    width = rounded(count, size, floor_of(name, size, budget), step_of(size, budget))
    return keep_best(scores, width)

"""How many units or weights each layer keeps, decided before it is known which."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jprune import allocate, errors
from jprune.base import Budget, CostModel, Masks
from jprune.learners import kept_of


def widths(
    alive: Mapping[str, np.ndarray],
    budget: Budget,
    cost: CostModel,
    masks_of: Callable[[dict[str, np.ndarray]], Masks],
    ratios: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """How many units each layer or group keeps, so that a budget is met.

    Args:
        alive: {name: bool [units]}: the units that exist.
        budget: what is kept of the dense net.
        cost: the cost model of the net.
        masks_of: masks of the net from masks by name; the cost depends on how many units they keep,
            not on which.
        ratios: fractions kept are proportional to these; None: all equal. One with ratio `inf`
            keeps all its units as long as another one can be narrowed.

    Returns:
        {name: units kept}, names in the order of `alive`.

    Raises:
        ArgumentError: there is nothing to prune, or a ratio that is not above 0.
        BudgetError: a budget that cannot be met.
    """
    if not alive:
        raise errors.ArgumentError(
            "nothing of this net is prunable by this method: no unit is read by plain "
            "contractions alone. Take a method that looks at no consumer, such as l1."
        )
    shares = {name: 1.0 if ratios is None else ratios[name] for name in alive}
    if any(not share > 0 for share in shares.values()):
        raise errors.ArgumentError(f"ratios={shares}; each is above 0.")
    scores = {name: _ranks(mask, shares[name]) for name, mask in alive.items()}
    model = lambda by_name: cost(masks_of(by_name))
    allocator = allocate.global_topk if len({*shares.values()}) > 1 else allocate.uniform
    chosen: Any = allocator(scores, budget, model)
    return {name: int(np.sum(chosen[name])) for name in alive}


def refuse_impossible_widths(
    alive: Mapping[str, np.ndarray],
    budget: Budget,
    cost: CostModel,
    masks_of: Callable[[dict[str, np.ndarray]], Masks],
) -> None:
    """Refuses a budget that no widths can meet; arguments as of `widths`.

    Raises:
        ArgumentError: a budget in what the cost model does not measure.
        BudgetError: it is one.
    """
    model = lambda by_name: cost(masks_of(by_name))
    allocate.refuse_impossible({**alive}, budget, model)


def _ranks(alive: np.ndarray, ratio: float) -> np.ndarray:
    """Synthetic scores: their global top-k keeps the same fraction x ratio of each layer."""
    # Unit r of n has score -(r + 1/2) / (n ratio). All units above a threshold -t have rank
    # r < t n ratio, a fraction t x ratio of their layer; 1/2 centres the rounding.
    ranks = np.arange(len(alive))
    return np.where(ranks < alive.sum(), -(ranks + 0.5) / (len(alive) * ratio), -np.inf)


def fraction_of(weights: Masks, budget: Budget, cost: CostModel) -> float:
    """The fraction k of its weights that every layer keeps so that a budget is met.

    Args:
        weights: masks of all weights that may go, True where one is alive; None for other leaves.
        budget: what is kept of the dense net.
        cost: the cost model of the net.

    Raises:
        BudgetError: it asks for less than one weight a layer.
    """
    if budget.kind == "density":
        return float(budget.value)
    price = allocate.price_of(weights, budget, cost)
    # Which weights are kept does not change the cost, so the first ones stand for any.
    first = lambda k: price(jax.tree.map(lambda leaf: keep_first(leaf.shape, k), weights))
    goal = float(budget.value) + 1e-9
    if (least := first(1e-9)) > goal:
        raise errors.BudgetError(
            f"Budget({budget.kind}={budget.value}) cannot be met: one weight in every layer is "
            f"{least:.4f} of the dense net. Ask for more."
        )
    return max(allocate.largest(first, goal), 1e-9)


def keep_first(shape: tuple[int, ...], k: float) -> np.ndarray:
    """A mask of this shape that keeps the fraction k, the first weights in row-major order."""
    size = int(np.prod(shape))
    return (np.arange(size) < kept_of(size, k)).reshape(shape)

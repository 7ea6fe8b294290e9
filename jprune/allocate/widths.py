"""How wide layers become, before anybody knows which units or weights stay."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jprune import allocate, errors
from jprune.base import Budget, CostModel, Masks
from jprune.cost.model import Measuring
from jprune.learners import kept_of


def widths(
    alive: Mapping[str, np.ndarray],
    budget: Budget,
    cost: CostModel,
    masks_of: Callable[[dict[str, np.ndarray]], Masks],
    ratios: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Units that each of several things keeps, so that a budget is met.

    Args:
        alive: {name: bool [units]}: those that are there.
        budget: what is kept of the dense net.
        cost: the cost model of the net.
        masks_of: masks of the net from masks by name; which units they keep does not matter for the
            cost, only how many.
        ratios: how much of its units one keeps over what another keeps; None: all the same. `inf`
            keeps all while any other has units to give.

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
    model = Measuring(lambda given: cost(masks_of(given)), getattr(cost, "measures", "macs"))
    allocator = allocate.global_topk if len({*shares.values()}) > 1 else allocate.uniform
    chosen: Any = allocator(scores, budget, model)
    return {name: int(np.sum(chosen[name])) for name in alive}


def _ranks(alive: np.ndarray, ratio: float) -> np.ndarray:
    """Synthetic scores: their global top-k keeps the same fraction x ratio of each layer."""
    ranks = np.arange(len(alive))
    return np.where(ranks < alive.sum(), -(ranks + 0.5) / (len(alive) * ratio), -np.inf)


def fraction_of(weights: Masks, budget: Budget, cost: CostModel) -> float:
    """The k at which a budget of weights is met, every layer keeping the same fraction of its own.

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
    first = lambda k: price(jax.tree.map(lambda leaf: keep_first(leaf.shape, k), weights))
    goal = float(budget.value) + 1e-9
    if (least := first(1e-9)) > goal:
        raise errors.BudgetError(
            f"Budget({budget.kind}={budget.value}) cannot be met: one weight in every layer is "
            f"{least:.4f} of the dense net. Ask for more."
        )
    return max(allocate.largest(first, goal), 1e-9)


def keep_first(shape: tuple[int, ...], k: float) -> np.ndarray:
    """A mask that keeps the first weights: which ones makes no difference to the cost."""
    size = int(np.prod(shape))
    return (np.arange(size) < kept_of(size, k)).reshape(shape)

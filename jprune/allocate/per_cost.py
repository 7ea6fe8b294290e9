"""Damage per cost: what a unit is worth, divided by what it costs."""

import numpy as np

from jprune import errors
from jprune.allocate.budgets import are_units
from jprune.base import CostModel, Scores


def per_cost(scores: Scores, cost_model: CostModel, field: str = "macs") -> dict[str, np.ndarray]:
    """Scores of units divided by the cost of one more unit of their group, beside those alive.

    Where all groups compete, raw damages take units of wide late layers first, which cost few MACs:
    a budget in MACs then empties them. Damage a MAC weighs what is lost against what is won.

    Args:
        scores: {group: [units]}; -inf is gone, and stays so, as does +inf.
        cost_model: of the net.
        field: "macs" or "params": the cost.

    Returns:
        {group: [units]}, in double precision. The order within a group is that of the scores.

    Raises:
        ArgumentError: scores of weights.

    Example:
        >>> from jprune.base import Cost
        >>> model = lambda masks: Cost(0, 4.0 * masks["a"].sum() + masks["b"].sum(), 0, {})
        >>> found = per_cost({"a": np.array([2.0, 8.0]), "b": np.array([1.0, 3.0])}, model)
        >>> {name: score.tolist() for name, score in found.items()}
        {'a': [0.5, 2.0], 'b': [1.0, 3.0]}
    """
    if not are_units({name: np.asarray(leaf) for name, leaf in scores.items()}):
        raise errors.ArgumentError(
            "damage per cost is of units, and these are scores of weights: a weight of any layer "
            "costs one parameter. Write global_topk."
        )
    values = {name: np.asarray(score, float) for name, score in scores.items()}
    alive = {name: score > -np.inf for name, score in values.items()}
    whole = float(getattr(cost_model(alive), field))
    return {
        name: score / _price(cost_model, alive, name, field, whole)
        for name, score in values.items()
    }


def _price(
    model: CostModel, alive: dict[str, np.ndarray], name: str, field: str, whole: float
) -> float:
    """C(alive) - C(alive without one unit of the group); 1 where that costs nothing."""
    there = np.flatnonzero(alive[name])
    if not there.size:
        return 1.0
    fewer = alive[name].copy()
    fewer[there[-1]] = False
    price = whole - float(getattr(model({**alive, name: fewer}), field))
    return price if price > 0 else 1.0

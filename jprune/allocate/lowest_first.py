"""Lowest first: units go one after another, of all groups together, until a budget is met."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune.allocate.budgets import (
    MISSED,
    floor_of,
    kept_count,
    price_of,
    spent,
    step_of,
    widths,
)
from jprune.base import Budget, CostModel

Units = Mapping[str, Any]
"""{group: [units]}."""

SLACK = 1e-7
"""Of costs in single precision, as fractions of the dense net."""


def lowest_first(
    sizes: Mapping[str, int],
    budget: Budget,
    cost_model: CostModel | None = None,
    adjust: Callable[[Units, Units], Units] | None = None,
) -> Callable[..., dict[str, Any]]:
    """A function that removes units by their scores, a few at a time; jittable.

    A group goes down by the budget's multiples, its worst units together, at their mean score. A
    removal that would end more than two points below the budget is the last choice, so that wide
    steps do not waste it. Scores that are NaN count as +inf, and a group without scores stays.

    Args:
        sizes: {group: number of its units}.
        budget: what is kept; `min_units`, `multiple_of` and floors hold. A density is one of all
            units.
        cost_model: for budgets in anything but density.
        adjust: `(scores, alive) -> scores`, jittable: what becomes of the scores before they are
            compared, asked anew for every removal.

    Returns:
        `remove(scores, alive, units=1, share=0.0) -> alive`, all {group: [units]}. At least `units`
        are taken away, and more until the cost is at most 1 - share (1 - budget) of the dense net;
        none where the budget is met.

    Raises:
        ArgumentError: no cost model, or one that does not count what the budget is about.

    Example:
        >>> remove = lowest_first({"a": 3, "b": 2}, Budget(density=0.6))
        >>> scores = {"a": jnp.array([3.0, 1.0, 4.0]), "b": jnp.array([2.0, 9.0])}
        >>> alive = {"a": jnp.ones(3, bool), "b": jnp.ones(2, bool)}
        >>> alive = remove(scores, alive)
        >>> alive["a"].tolist(), remove(scores, alive)["b"].tolist()
        ([True, False, True], [False, True])
    """
    price, goal = priced(sizes, budget, cost_model)
    names, most = (*sizes,), max(sizes.values(), default=0)
    # Groups are rows of one matrix: a single sort serves all of them.
    stacked = lambda by_name, rest: jnp.stack(
        [jnp.pad(by_name[n], (0, most - sizes[n]), constant_values=rest) for n in names]
    )
    apart = lambda rows: {name: row[: sizes[name]] for name, row in zip(names, rows)}
    lower = jnp.asarray(_narrower(sizes, budget))

    def candidates(scores: Units, alive: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(which units would go, their mean score, whether they may), each a row per group."""
        if adjust is not None:
            scores = adjust(scores, apart(alive))
        nothing = {name: jnp.zeros(size) for name, size in sizes.items()}
        values = stacked({**nothing, **scores}, 0.0)
        order = jnp.where(alive & ~jnp.isnan(values), values, jnp.inf)
        rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
        width = alive.sum(1)
        narrower = jnp.take_along_axis(lower, width[:, None], axis=1)[:, 0]
        may = (narrower >= 0) & jnp.asarray([name in scores for name in names])
        going = alive & (rank < (width - narrower)[:, None]) & may[:, None]
        mean = jnp.where(going, order, 0).sum(1) / jnp.maximum(going.sum(1), 1)
        return going, mean, may

    def one(scores: Units, alive: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The units after one more removal, and whether there was one."""
        going, mean, may = candidates(scores, alive)
        without = lambda row: price(apart(alive & ~(going & row[:, None])))
        after = jax.vmap(without)(jnp.eye(len(names), dtype=bool))
        near = may & (after >= goal - MISSED)
        by_score = jnp.argmin(jnp.where(near, mean, jnp.inf))
        by_waste = jnp.argmax(jnp.where(may, after, -jnp.inf))
        row = jnp.arange(len(names)) == jnp.where(near.any(), by_score, by_waste)
        return alive & ~(going & row[:, None]), may.any()

    def remove(scores: Units, alive: Units, units: Any = 1, share: Any = 0.0) -> dict[str, Any]:
        due = 1 - (1 - goal) * share

        def wanted(carry: Any) -> Any:
            rows, done, more = carry
            now = price(apart(rows))
            return more & ((now > due + SLACK) | ((done < units) & (now > goal + SLACK)))

        def another(carry: Any) -> Any:
            rows, more = one(scores, carry[0])
            return rows, carry[1] + 1, more

        start = (stacked(alive, False), jnp.zeros((), jnp.int32), jnp.array(True))
        return apart(jax.lax.while_loop(wanted, another, start)[0])

    return remove


def priced(
    sizes: Mapping[str, int], budget: Budget, model: CostModel | None
) -> tuple[Callable[[Units], Any], float]:
    """What masks keep of the dense net, in a budget's unit, for methods that ask inside a step.

    Args:
        sizes: {group: number of its units}.
        budget: whose unit.
        model: for budgets in anything but density.

    Returns:
        (`{group: bool [units]} -> fraction`, jittable; the fraction that meets the budget).

    Raises:
        ArgumentError: no cost model, or one that does not count what the budget is about.

    Example:
        >>> price, goal = priced({"a": 4}, Budget(density=0.5), None)
        >>> float(price({"a": jnp.arange(4) < 3})), goal
        (0.75, 0.5)
    """
    if budget.kind == "density":
        total = sum(sizes.values())
        goal = int(kept_count(total, float(budget.value))) / max(total, 1)
        return lambda alive: sum(mask.sum() for mask in alive.values()) / total, goal
    ones = {name: np.ones(size, bool) for name, size in sizes.items()}
    price_of(ones, budget, model)  # refuses a model that does not count what it is about
    assert model is not None
    dense = float(spent(model(ones), budget))
    return lambda alive: spent(model(alive), budget) / dense, float(budget.value)


def _narrower(sizes: Mapping[str, int], budget: Budget) -> np.ndarray:
    """[groups, width]: the next narrower width that is allowed; -1 where there is none."""
    table = np.full((len(sizes), max(sizes.values(), default=0) + 1), -1)
    for number, (name, size) in enumerate(sizes.items()):
        allowed = widths(size, floor_of(name, size, budget), step_of(size, budget))
        for width in range(size + 1):
            table[number, width] = max((each for each in allowed if each < width), default=-1)
    return table

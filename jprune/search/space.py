"""The space of a search: genes with a few options each, and a window on a candidate's cost."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jprune import errors

STEPS = 4
"""Moves of a random candidate towards the window, at most, times the number of all options."""
DRAWS = 512
"""Candidates that are drawn before a window is taken to be empty."""


class Space(NamedTuple):
    """Candidates are rows of genes; a larger gene costs more.

    Attributes:
        options: gene g is one of 0 .. options[g] - 1.
        cost: `cost(genes [p, genes]) -> [p]`, as fractions of the whole.
        high: the budget.
        low: the window is low <= cost <= high.
    """

    options: tuple[int, ...]
    cost: Callable[[np.ndarray], np.ndarray]
    high: float
    low: float = 0.0

    def inside(self, genes: np.ndarray) -> np.ndarray:
        """Bool [p]: which candidates are in the window."""
        cost = self.cost(genes) if len(genes) else np.zeros(0)
        return (cost >= self.low - 1e-6) & (cost <= self.high + 1e-6)


def draw(space: Space, rng: np.random.Generator, count: int) -> np.ndarray:
    """Random members: drawn uniformly, then moved gene by gene until the cost is in the window.

    Each move picks a gene uniformly among those that can move. Candidates that are in the window
    from the start are not moved.

    Args:
        space: what is drawn from.
        rng: source of the draws.
        count: how many are drawn; those that do not reach the window are left out.

    Returns:
        Int [at most count, genes].
    """
    options = np.asarray(space.options)
    genes = rng.integers(0, options, (count, len(options)))
    for _ in range(STEPS * int(options.sum())):
        # Too expensive: a gene goes down by 1; too cheap: up by 1. All candidates move at once.
        cost = space.cost(genes)
        step = np.where(cost > space.high + 1e-6, -1, np.where(cost < space.low - 1e-6, 1, 0))
        moved = genes + step[:, None]
        free = (moved >= 0) & (moved < options) & (step != 0)[:, None]
        if not free.any():
            break
        # The largest of uniform numbers picks one free gene of every candidate uniformly.
        chosen = np.where(free, rng.random(genes.shape), -1).argmax(axis=1)
        rows = np.flatnonzero(free.any(axis=1))
        genes[rows, chosen[rows]] += step[rows]
    return genes[space.inside(genes)]


def check(space: Space) -> None:
    """Refuses a space that has no member.

    Raises:
        BudgetError: the cheapest candidate is above the budget; or none was found in the window.

    Example:
        >>> check(Space((2, 2), lambda genes: 0.5 + genes.sum(axis=1) / 4, high=0.4))
        Traceback (most recent call last):
        jprune.errors.BudgetError: the search space has no member under the budget 0.4: its cheapest
        candidate costs 0.5000. ...
    """
    least = float(space.cost(np.zeros((1, len(space.options)), int))[0])
    if least > space.high + 1e-6:
        raise errors.BudgetError(
            f"the search space has no member under the budget {space.high:g}: its cheapest "
            f"candidate costs {least:.4f}. Ask for {np.ceil(least * 1000) / 1000:.3f} or more, or "
            "allow narrower layers (a smaller `least`, multiple_of or min_units)."
        )
    # Generators of its own, so that this check does not change the search's draws.
    drawn = draw(space._replace(low=0.0), np.random.default_rng(0), DRAWS)
    if not space.inside(drawn).any() and not len(draw(space, np.random.default_rng(1), DRAWS)):
        nearest = float(space.cost(drawn).max())
        raise errors.BudgetError(
            f"the search space has no member that costs {space.low:.4f} to {space.high:.4f} (of "
            f"{DRAWS} draws); the nearest below costs {nearest:.4f}. Write a larger window, or a "
            "smaller multiple_of."
        )

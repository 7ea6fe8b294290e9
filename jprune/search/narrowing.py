"""Widths that shrink one group at a time until a net is cheap enough; the best proposal goes on.

References:
    Yang, Howard, Chen, Zhang, Go, Sandler, Sze, Adam, NetAdapt: platform-aware neural network
    adaptation for mobile applications, 2018, arXiv 1804.03230.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.allocate.budgets import MISSED
from jprune.base import Searcher


class NarrowingState(NamedTuple):
    """The widths that have won last.

    Attributes:
        widths: int [groups].
        level: their score.
        round: rounds so far.
        met: those of them in which a proposal met the target.
        tried: proposals that have a score.
    """

    widths: jax.Array
    level: jax.Array
    round: jax.Array
    met: jax.Array
    tried: jax.Array


def narrowing(
    menu: Sequence[Sequence[int]],
    price: Callable[[np.ndarray], float],
    goal: float,
    step: float = 0.025,
    decay: float = 0.96,
    level: float | None = None,
) -> Searcher:
    """A round proposes every group narrowed alone, by as few units as meet the round's target.

    The target is step * decay^n below the present price, n rounds having met theirs, and never
    below the goal. Where no group meets it alone, every group is proposed at its smallest width.
    The best score wins, of equal ones the lowest price, but what ends more than two points below
    the goal is the last choice; the next round begins with the winner. Nothing is proposed once the
    price is at most the goal.

    Args:
        menu: for every group the widths that it may have, rising; the search begins at the last.
        price: `widths [groups] -> number`, which falls with every width. It is asked for many.
        goal: the highest price.
        step: what the first round takes off the price.
        decay: what a round takes off, as a fraction of the one before.
        level: score of the whole net. With it, proposals win that lose the least score for what
            they take off the price; None: those of the highest score.

    Returns:
        The searcher: `ask` has all proposals of a round, at most one a group, and `best` is the
        last winner. The key is not used.

    Raises:
        ArgumentError: a number out of range.
        BudgetError: the smallest widths, or all steps together, do not come to the goal.

    Example:
        >>> price = lambda widths: (widths[0] + 2 * widths[1]) / 24
        >>> searcher = narrowing([range(1, 9), range(1, 9)], price, goal=0.5, step=0.125, decay=1)
        >>> state = searcher.init(jax.random.key(0))
        >>> searcher.ask(state).tolist()
        [[5, 8], [8, 6]]
        >>> while len(widths := searcher.ask(state)):
        ...     state = searcher.tell(state, widths, -((widths - [2, 6]) ** 2).sum(axis=1))
        >>> searcher.best(state)[0].tolist()
        [2, 5]
    """
    errors.check_numbers(
        "the narrowing of widths",
        ("step", step, step > 0, "above 0"),
        ("decay", decay, 0 < decay <= 1, "in (0, 1]"),
    )
    smallest, whole = (np.array([widths[place] for widths in menu]) for place in (0, -1))
    if (least := price(smallest)) > goal:
        raise errors.BudgetError(
            f"the smallest widths cost {least:.4f}, and {goal:.4f} was asked for. Ask for more, or "
            "lower the floors."
        )
    rounds_to(price(whole) - goal, step, decay)  # refuses steps that end above the goal

    def init(key: jax.Array) -> NarrowingState:
        del key
        zero, start = jnp.zeros((), jnp.int32), -np.inf if level is None else level
        return NarrowingState(jnp.asarray(whole, jnp.int32), jnp.array(start), zero, zero, zero)

    def target(state: NarrowingState) -> float:
        # R_i = R_{i-1} - dR decay^(i-1), R_{i-1} being that of the winner
        return max(goal, price(np.asarray(state.widths)) - step * decay ** int(state.met))

    def ask(state: NarrowingState) -> np.ndarray:
        widths = np.asarray(state.widths)
        if price(widths) <= goal:
            return np.zeros((0, len(menu)), int)
        most, meeting, others = target(state), [], []
        for group, allowed in enumerate(menu):
            # The group at all smaller widths, the widest first.
            narrowed = np.repeat(widths[None], len(allowed), axis=0)
            narrowed[:, group] = np.sort(allowed)[::-1]
            narrowed = narrowed[narrowed[:, group] < widths[group]]
            # The first of them that meets the target, by halves: the price falls.
            place = bisect_left(narrowed, True, key=lambda one: price(one) <= most)
            if place < len(narrowed):
                meeting.append(narrowed[place])
            elif len(narrowed):
                others.append(narrowed[-1])
        return np.array(meeting or others)

    def tell(state: NarrowingState, candidates: np.ndarray, scores: np.ndarray) -> NarrowingState:
        scores = np.nan_to_num(np.asarray(scores, float), nan=-np.inf, neginf=-np.inf)
        if not len(candidates) or not np.isfinite(scores).any():
            return state
        prices = np.array([price(widths) for widths in candidates])
        merits = scores
        if level is not None:
            # the authors' code: least (A_{i-1} - A) / (R_{i-1} - R)
            saved = price(np.asarray(state.widths)) - prices
            merits = -(float(state.level) - scores + 1e-6) / (saved + 1e-5)
        # Wide steps waste a budget: what ends far below the goal is the last choice.
        near = np.isfinite(scores) & (prices >= goal - MISSED)
        merits = np.where(near, merits, -np.inf) if near.any() else merits
        winner = max(range(len(scores)), key=lambda place: (merits[place], -prices[place]))
        return NarrowingState(
            widths=jnp.asarray(candidates[winner], jnp.int32),
            level=jnp.asarray(scores[winner], jnp.float32),
            round=state.round + 1,
            met=state.met + int(prices[winner] <= target(state)),
            tried=state.tried + len(candidates),
        )

    def best(state: NarrowingState) -> tuple[np.ndarray, float]:
        return np.asarray(state.widths), float(state.level)

    return Searcher(init, ask, tell, best)


def rounds_to(distance: float, step: float, decay: float) -> int:
    """How many rounds that meet their targets take so much off the price.

    Raises:
        BudgetError: all of them together take less.

    Example:
        >>> rounds_to(0.5, 0.025, 0.96), rounds_to(0.5, 0.1, 1.0)
        (40, 5)
    """
    if distance <= 0:
        return 0
    if decay == 1:
        return math.ceil(distance / step - 1e-9)
    # sum over i < n of dR decay^i = dR (1 - decay^n) / (1 - decay) >= distance
    left = 1 - distance * (1 - decay) / step
    if left <= 0:
        raise errors.BudgetError(
            f"steps of {step} that fall by {decay} take less than {step / (1 - decay):.4f} in all, "
            f"and {distance:.4f} are to go. Write a larger step or decay."
        )
    return math.ceil(math.log(left) / math.log(decay) - 1e-9)

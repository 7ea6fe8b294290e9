"""Search by a partial order: what is contained in a net that has lost already is not tried.

A net that is narrower and less deep everywhere than another one is taken to be no better. So every
candidate with a score bounds all that it contains, and those of them that cost no less than a
candidate with that score or a better one cannot be on the frontier of cost and score.

References:
    Li, Zhou, Pan, Feng, Partial order pruning: for best speed/accuracy trade-off in neural
    architecture search, 2019, arXiv 1903.03777 [26].
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jprune import errors
from jprune.base import Searcher
from jprune.search.history import SearchState, begun, draws, told
from jprune.search.space import Space, draw

POOL = 4096
"""Members of a space that are looked at; of larger ones so many are drawn."""


class OrderState(NamedTuple):
    """What was tried, and what may be.

    Attributes:
        history: candidates with their scores.
        pool: int [members, genes].
    """

    history: SearchState
    pool: np.ndarray

    @property
    def tried(self) -> int:
        """How many candidates have a score."""
        return int(self.history.tried)

    @property
    def genes(self) -> np.ndarray:
        """[tried, genes]."""
        return np.asarray(self.history.genes)[: self.tried]

    @property
    def scores(self) -> np.ndarray:
        """[tried]; -inf where a score was not finite."""
        return np.asarray(self.history.scores, float)[: self.tried]


def contained(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bool [p, q]: whether shape a[p] is narrower than b[q], or as wide, everywhere.

    Example:
        >>> contained(np.array([[16, 32], [32, 16]]), np.array([[16, 64]]))[:, 0].tolist()
        [True, False]
    """
    # a <= b where a_i <= b_i for all i
    return (np.asarray(a)[:, None] <= np.asarray(b)[None]).all(-1)


def cannot_win(
    sizes: np.ndarray,
    costs: np.ndarray,
    tried: np.ndarray,
    tried_costs: np.ndarray,
    scores: np.ndarray,
    slack: float = 0.0,
) -> np.ndarray:
    """Bool [p]: candidates that cannot be better than what was tried and costs no more.

    Args:
        sizes: [p, k]: widths and depths of candidates.
        costs: [p].
        tried: [q, k]: those of what was tried.
        tried_costs: [q].
        scores: [q]; what is not finite bounds nothing.
        slack: how far a bound has to be beaten: twice the error of scores that are not exact.

    Example:
        >>> tried = np.array([[32, 32], [64, 64]])  # of accuracies 0.75 and 0.74
        >>> cannot_win(np.array([[48, 48]]), np.array([7.0]), tried, np.array([5.0, 9.0]),
        ...            np.array([0.75, 0.74])).tolist()
        [True]
    """
    known = np.isfinite(scores)
    if not known.any():
        return np.zeros(len(sizes), bool)
    scores, bounds = np.asarray(scores)[known], contained(sizes, np.asarray(tried)[known])
    no_dearer = np.asarray(tried_costs)[known][None] <= np.asarray(costs)[:, None] + 1e-9
    # The best u with Lat(u) <= Lat(w)
    best = np.where(no_dearer, scores, -np.inf).max(axis=1)
    # P = {w: w <= v and Lat(u) <= Lat(w) and Acc(u) >= Acc(v) + slack for some u, v}
    return (bounds & (scores + slack <= best[:, None])).any(axis=1)


def frontier(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Numbers of the candidates that no other one beats in cost and score, by rising cost.

    Example:
        >>> frontier(np.array([3.0, 1.0, 2.0]), np.array([0.9, 0.5, 0.4])).tolist()
        [1, 0]
    """
    best, members = -np.inf, []
    # Of equal costs the better one comes first.
    for place in np.lexsort((-np.asarray(scores), costs)):
        if scores[place] > best:
            best, members = scores[place], [*members, int(place)]
    return np.array(members, int)


def members(
    space: Space,
    sizes_of: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    most: int = POOL,
) -> np.ndarray:
    """Int [members, genes] of a space, one of all that have the same sizes.

    All of them where the space has no more than `most` candidates, and else so many draws.
    """
    if math.prod(space.options) <= most:
        genes = np.array([*itertools.product(*map(range, space.options))], int)
        genes = genes[space.inside(genes)]
    else:
        genes = draw(space, rng, most)
    _, first = np.unique(sizes_of(genes), axis=0, return_index=True)
    return genes[np.sort(first)]


class PartialOrder(NamedTuple):
    """The search by a partial order.

    Attributes:
        space: of the candidates.
        sizes_of: `sizes_of(genes [p, genes]) -> [p, k]`: widths and depths, which are compared; 0
            for what is not there.
        evaluations: candidates that are tried, at most.
        slack: see `cannot_win`.
        most: members that are looked at.
    """

    space: Space
    sizes_of: Callable[[np.ndarray], np.ndarray]
    evaluations: int = 16
    slack: float = 0.0
    most: int = POOL

    def searcher(self) -> Searcher:
        """One random candidate at a time, of those that were not tried and can win.

        None is left where all members were tried or cannot win. The best one is the best that was
        tried, of equal ones the cheapest.

        Raises:
            ArgumentError: no evaluation, or a slack below 0.

        Example:
            >>> space = Space((4, 4), lambda genes: (genes + 1.0).prod(axis=1) / 16, high=1.0)
            >>> search = PartialOrder(space, lambda genes: genes + 1, evaluations=16)
            >>> searcher = search.searcher()
            >>> state = searcher.init(jax.random.key(0))
            >>> while len(genes := searcher.ask(state)):  # only the first gene is of use
            ...     state = searcher.tell(state, genes, genes[:, 0] + 1.0)
            >>> searcher.best(state)[0].tolist(), search.left(state), search.spared(state) > 5
            ([3, 0], 0, True)
        """
        errors.check_numbers(
            "the search by a partial order",
            ("evaluations", self.evaluations, self.evaluations >= 1, "1 or more"),
            ("slack", self.slack, self.slack >= 0, "0 or more"),
        )
        return Searcher(self._init, self._ask, self._tell, self._best)

    def _init(self, key: jax.Array) -> OrderState:
        history = begun(key, self.evaluations, len(self.space.options))
        pool = members(self.space, self.sizes_of, draws(history), self.most)
        return OrderState(history, pool.astype(np.int32))

    def _tell(self, state: OrderState, candidates: np.ndarray, scores: np.ndarray) -> OrderState:
        return state._replace(history=told(state.history, candidates, scores))

    def _ask(self, state: OrderState) -> np.ndarray:
        # w of S \ P
        open_ = np.flatnonzero(~self._tried(state) & ~self._cut(state))
        if not len(open_) or state.tried >= self.evaluations:
            return np.zeros((0, len(self.space.options)), int)
        return np.asarray(state.pool)[[draws(state.history).choice(open_)]]

    def _best(self, state: OrderState) -> tuple[np.ndarray, float]:
        if not state.tried:
            return np.asarray(state.pool)[0], -np.inf
        place = np.lexsort((self.space.cost(state.genes), -state.scores))[0]
        return state.genes[place], float(state.scores[place])

    def _tried(self, state: OrderState) -> np.ndarray:
        pool, tried = self.sizes_of(np.asarray(state.pool)), self.sizes_of(state.genes)
        return (pool[:, None] == tried[None]).all(-1).any(axis=1)

    def _cut(self, state: OrderState) -> np.ndarray:
        if not state.tried:
            return np.zeros(len(state.pool), bool)
        pool, cost = np.asarray(state.pool), self.space.cost
        return cannot_win(
            self.sizes_of(pool), cost(pool), self.sizes_of(state.genes), cost(state.genes),
            state.scores, self.slack,
        )  # fmt: skip

    def spared(self, state: OrderState) -> int:
        """How many members are not tried because they cannot win."""
        return int((self._cut(state) & ~self._tried(state)).sum())

    def left(self, state: OrderState) -> int:
        """How many members were not tried and may win."""
        return int((~self._cut(state) & ~self._tried(state)).sum())

    def frontier(self, state: OrderState) -> list[tuple[float, float]]:
        """(cost, score) of what no other candidate beats, by rising cost."""
        costs = self.space.cost(state.genes)
        return [(float(costs[n]), float(state.scores[n])) for n in frontier(costs, state.scores)]

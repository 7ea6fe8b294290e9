"""Search by a partial order: what is contained in a net that has lost already is not tried.

A net that is narrower and less deep everywhere than another one is taken to be no better. So every
candidate with a score bounds all that it contains, and those of them that cost no less than a
candidate with that score or a better one cannot be on the frontier of cost and score.

References:
    Li, Zhou, Pan, Feng, Partial order pruning: for best speed/accuracy trade-off in neural
    architecture search, 2019, arXiv 1903.03777 [26].
"""

import functools
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


def contained(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bool [p, q]: whether shape a[p] is narrower than b[q], or as wide, everywhere.

    Example:
        >>> contained(np.array([[16, 32], [32, 16]]), np.array([[16, 64]]))[:, 0].tolist()
        [True, False]
    """
    # a <= b where a_i <= b_i for all i
    return np.all(np.asarray(a)[:, None] <= np.asarray(b)[None], axis=-1)


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
            >>> searcher.best(state)[0].tolist(), search.left(state), search.spared(state) > 0
            ([3, 0], 0, True)
        """
        errors.check_numbers(
            "the search by a partial order",
            ("evaluations", self.evaluations, self.evaluations >= 1, "1 or more"),
            ("slack", self.slack, self.slack >= 0, "0 or more"),
        )
        return Searcher(self._init, self._ask, told, self._best)

    def _init(self, key: jax.Array) -> SearchState:
        return begun(key, self.evaluations, len(self.space.options))

    def pool(self, state: SearchState) -> np.ndarray:
        """Int [members, genes]: what is looked at, a function of the key alone."""
        return _pool(self, tuple(np.asarray(state.seed).tolist()))

    def _ask(self, state: SearchState) -> np.ndarray:
        # w of S \ P
        open_ = np.flatnonzero(~self._tried(state) & ~self._cut(state))
        if not len(open_) or int(state.tried) >= self.evaluations:
            return np.zeros((0, len(self.space.options)), int)
        return self.pool(state)[[draws(state).choice(open_)]]

    def _best(self, state: SearchState) -> tuple[np.ndarray, float]:
        genes, scores = _told(state)
        if not len(genes):
            return self.pool(state)[0], -np.inf
        place = np.lexsort((self.space.cost(genes), -scores))[0]
        return genes[place], float(scores[place])

    def _tried(self, state: SearchState) -> np.ndarray:
        pool, tried = self.sizes_of(self.pool(state)), self.sizes_of(_told(state)[0])
        return (pool[:, None] == tried[None]).all(-1).any(axis=1)

    def _cut(self, state: SearchState) -> np.ndarray:
        (genes, scores), pool, cost = _told(state), self.pool(state), self.space.cost
        if not len(genes):
            return np.zeros(len(pool), bool)
        sizes = self.sizes_of
        return cannot_win(
            sizes(pool), cost(pool), sizes(genes), cost(genes), scores, self.slack
        )  # fmt: skip

    def spared(self, state: SearchState) -> int:
        """How many members are not tried because they cannot win."""
        return int((self._cut(state) & ~self._tried(state)).sum())

    def left(self, state: SearchState) -> int:
        """How many members were not tried and may win."""
        return int((~self._cut(state) & ~self._tried(state)).sum())

    def frontier(self, state: SearchState) -> list[tuple[float, float]]:
        """(cost, score) of what no other candidate beats, by rising cost."""
        genes, scores = _told(state)
        costs = self.space.cost(genes)
        return [(float(costs[n]), float(scores[n])) for n in frontier(costs, scores)]


def _told(state: SearchState) -> tuple[np.ndarray, np.ndarray]:
    """[tried, genes] and [tried]: what was tried, and its scores."""
    count = int(state.tried)
    return np.asarray(state.genes)[:count], np.asarray(state.scores, float)[:count]


@functools.lru_cache(maxsize=8)
def _pool(search: PartialOrder, seed: tuple[int, ...]) -> np.ndarray:
    # Not in the state, which is made where nothing is computed yet; drawn once for each search.
    return members(search.space, search.sizes_of, np.random.default_rng([*seed]), search.most)

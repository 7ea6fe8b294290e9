"""Regularised evolution of real numbers: of a queue of candidates, the oldest one dies.

References:
    Real, Aggarwal, Huang, Le, Regularized evolution for image classifier architecture search, 2019,
    arXiv 1802.01548. Offsets a layer: Chin, Zhang, Marculescu, 2018, arXiv 1810.00518 [25]; numbers
    as in the code of Chin, Ding, Zhang, Marculescu, 2020, arXiv 1904.12368.
"""

import jax
import numpy as np

from jprune import errors
from jprune.base import Searcher
from jprune.search.history import SearchState, begun, best, draws, told


def aging(
    layers: int,
    kinds: int = 1,
    evaluations: int = 400,
    population: int = 64,
    tournament: int = 16,
    mutated: float = 0.1,
    falling: tuple[int, ...] = (),
) -> Searcher:
    """One mutant of the best of some of the youngest at a time; what is oldest leaves the queue.

    A candidate is [kinds * layers]: a number of every kind for every layer, in units of its own
    noise, and 0 where nothing was changed. The first round has the whole population: normal draws,
    and last of all zeros. Every later round has one candidate: of the `population` that were tried
    last, `tournament` are drawn with replacement, and the best of them is changed in some layers,
    in all kinds, by normal draws.

    Args:
        layers: how many there are.
        kinds: of numbers a layer.
        evaluations: candidates in all.
        population: length of the queue; all evaluations make it random search.
        tournament: how many are drawn of it.
        mutated: fraction of the layers that a mutation changes, one at least; drawn with
            replacement, as they are in the authors' code.
        falling: kinds whose noise shrinks as the search goes on.

    Returns:
        The searcher. `best` is the best of all evaluations, alive or not.

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> searcher = aging(2, evaluations=200, population=20, tournament=5)
        >>> state = searcher.init(jax.random.key(0))
        >>> while len(candidates := searcher.ask(state)):
        ...     state = searcher.tell(state, candidates, -((candidates - 1) ** 2).sum(axis=1))
        >>> bool(np.abs(searcher.best(state)[0] - 1).max() < 0.2)
        True
    """
    errors.check_numbers(
        "aging",
        ("layers", layers, layers >= 1, "1 or more"),
        ("kinds", kinds, kinds >= 1, "1 or more"),
        ("evaluations", evaluations, evaluations >= 1, "1 or more"),
        ("population", population, population >= 1, "1 or more"),
        ("tournament", tournament, tournament >= 1, "1 or more"),
        ("mutated", mutated, 0 < mutated <= 1, "in (0, 1]"),
    )
    queue = min(population, evaluations)
    # int(0.1 L) is 0 for fewer than ten layers, and then nothing would ever change.
    count = max(1, int(mutated * layers))

    def noise(rng: np.random.Generator, number: int) -> np.ndarray:
        """[kinds, layers] of the candidate of a number, counted from 0."""
        # sigma_i = 1 - i / (1.25 N) for the kinds whose noise falls, and 1 for the others
        sizes = np.ones(kinds)
        sizes[list(falling)] = 1 - number / (1.25 * evaluations)
        return sizes[:, None] * rng.normal(size=(kinds, layers))

    def init(key: jax.Array) -> SearchState:
        return begun(key, evaluations, kinds * layers, float)

    def ask(state: SearchState) -> np.ndarray:
        rng, tried = draws(state), int(state.tried)
        if tried >= evaluations:
            return np.zeros((0, kinds * layers))
        if tried < queue:
            drawn = [noise(rng, number).ravel() for number in range(tried, queue - 1)]
            return np.stack([*drawn, np.zeros(kinds * layers)])
        # The queue: what was tried last. The oldest leaves it, and not the worst.
        genes = np.asarray(state.genes)[tried - queue : tried]
        scores = np.asarray(state.scores)[tried - queue : tried]
        drawn = rng.integers(0, queue, tournament)
        parent = genes[drawn[np.argmax(scores[drawn])]].reshape(kinds, layers)
        touched = np.isin(np.arange(layers), rng.integers(0, layers, count))
        return (parent + touched * noise(rng, tried)).reshape(1, -1)

    return Searcher(init, ask, told, best)

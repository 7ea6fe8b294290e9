"""Evolutionary search under a hard budget; without parents it is random search.

References:
    Liu, Mu, Zhang, Guo, Yang, Cheng, Sun, MetaPruning: meta learning for automatic neural network
    channel pruning, 2019, arXiv 1903.10258, algorithm 1, with the numbers of the authors' code.
"""

from collections.abc import Callable

import jax
import numpy as np

from jprune import errors
from jprune.base import Searcher
from jprune.search.history import SearchState, begun, best, draws, told
from jprune.search.space import Space, check, draw

TRIES = 40
"""Blocks of offspring that are drawn before unfilled places go to random candidates."""


def evolution(
    space: Space,
    generations: int = 20,
    population: int = 50,
    parents: int = 10,
    mutants: int = 25,
    crossovers: int = 25,
    probability: float = 0.1,
) -> Searcher:
    """Mutants and crossovers of the best so far; random members fill the places that remain.

    A mutant is a parent whose genes are each shifted, with a probability, by 1 .. options - 1
    modulo options, so that a mutated gene always changes. A crossover takes every gene from one of
    two parents. Offspring outside of the window, or tried before, is drawn again.

    Args:
        space: the space of candidates.
        generations: rounds that the state has room for.
        population: candidates in a round.
        parents: the best so far that have offspring.
        mutants: how many in a round, at most.
        crossovers: the same.
        probability: that a gene of a mutant is shifted.

    Returns:
        The searcher. With no mutants and no crossovers it is random search under the same window.

    Raises:
        ArgumentError: a number out of range.
        BudgetError: the space has no member.

    Example:
        >>> space = Space((10, 10), lambda genes: genes.sum(axis=1) / 18, high=0.5)
        >>> searcher = evolution(space, 9, population=8, parents=3, mutants=4, crossovers=2)
        >>> state = searcher.init(jax.random.key(0))
        >>> for _ in range(9):
        ...     genes = searcher.ask(state)
        ...     state = searcher.tell(state, genes, genes[:, 0] - genes[:, 1])
        >>> searcher.best(state)[0].tolist()
        [9, 0]
    """
    if min(generations, population, parents) < 1 or min(mutants, crossovers) < 0:
        raise errors.ArgumentError(
            f"evolution(generations={generations}, population={population}, parents={parents}, "
            f"mutants={mutants}, crossovers={crossovers}); the first three are at least 1, the "
            "others at least 0."
        )
    if mutants + crossovers > population or not 0 < probability <= 1:
        raise errors.ArgumentError(
            f"evolution(mutants={mutants}, crossovers={crossovers}, population={population}, "
            f"probability={probability}); offspring is at most the population, and the "
            "probability is in (0, 1]."
        )
    check(space)
    options = np.asarray(space.options)

    def init(key: jax.Array) -> SearchState:
        return begun(key, generations * population, len(options))

    def ask(state: SearchState) -> np.ndarray:
        genes, scores, count = np.asarray(state.genes), np.asarray(state.scores), int(state.tried)
        room = min(population, len(genes) - count)
        rng = draws(state)
        taken = {tuple(row) for row in genes[:count].tolist()}
        top = genes[np.argsort(-scores[:count], kind="stable")[:parents]]
        offspring: list[list[int]] = []

        def take(blocks: Callable[[], np.ndarray], wanted: int) -> None:
            # Drawn in blocks, because most draws miss the window; it ends after TRIES blocks.
            goal = min(room, len(offspring) + wanted)
            for _ in range(TRIES):
                if len(offspring) >= goal:
                    return
                block = blocks()
                for row in block[space.inside(block)].tolist():
                    if len(offspring) < goal and tuple(row) not in taken:
                        taken.add(tuple(row))
                        offspring.append(row)

        # Random members also take the places of offspring that missed the window or was not new.
        if count:
            take(lambda: mutated(top, options, probability, rng, 2 * population), mutants)
            take(lambda: crossed(top, rng, 2 * population), crossovers)
        take(lambda: draw(space, rng, 2 * population), room)
        return np.asarray(offspring, int).reshape(-1, len(options))

    return Searcher(init, ask, told, best)


def mutated(
    parents: np.ndarray,
    options: np.ndarray,
    probability: float,
    rng: np.random.Generator,
    count: int,
) -> np.ndarray:
    """Copies of parents [n, genes], drawn uniformly, with genes shifted at random.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> bool((mutated(np.array([[3, 0]]), np.array([4, 2]), 1.0, rng, 9) != [3, 0]).all())
        True
    """
    chosen = parents[rng.integers(0, len(parents), count)]
    # gene <- (gene + shift) mod options, shift in 1 .. options - 1, with the probability given.
    shift = rng.integers(1, np.maximum(options, 2), chosen.shape)
    return np.where(rng.random(chosen.shape) < probability, (chosen + shift) % options, chosen)


def crossed(parents: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Children of parents [n, genes]: every gene from one of two, both drawn uniformly."""
    # [2, count, genes]: two parents per child; a gene comes from either with probability 1/2.
    pairs = parents[rng.integers(0, len(parents), (2, count))]
    return np.where(rng.random(pairs[0].shape) < 0.5, *pairs)

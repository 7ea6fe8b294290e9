"""Particles: candidates that are resampled by their scores, then crossed and mutated.

What a particle is, is a `Kind` (see `genes.py`): a subset of fixed size, or offsets of strided
taps. What is pruned is conserved by all that is done to a particle.

References:
    Anwar, Hwang, Sung, Structured pruning of deep convolutional neural networks, 2017, arXiv
    1512.08571 [12]. Systematic resampling: Kitagawa, 1996.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Searcher


class Kind(Protocol):
    """What particles of a search are: rows of genes."""

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random particles, int [count, genes]."""
        ...

    def cross(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A child of each pair [n, genes]."""
        ...

    def mutate(self, genes: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
        """The particles [n, genes], each changed in at least one place, if it can be."""
        ...


def systematic(weights: np.ndarray, start: float) -> np.ndarray:
    """Parents of the next particles, drawn with replacement in proportion to their weights.

    Args:
        weights: [n], 0 or more.
        start: in [0, 1), drawn evenly: one number for all draws.

    Returns:
        Int [n] numbers of parents, rising: a particle with the share w of the weights has w n
        children, rounded up or down.

    Raises:
        ArgumentError: weights that are negative, or not finite, or all 0.

    Example:
        >>> systematic(np.array([0.9, 0.6, 0.3, 0.2]), 0.5).tolist()
        [0, 0, 1, 2]
    """
    weights = np.asarray(weights, float)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise errors.ArgumentError(
            f"weights of particles are {weights.tolist()}; they are finite, 0 or more, and not all "
            "0."
        )
    # parent_i = the first whose cumulative share is above (i + u) / N
    shares = np.cumsum(weights) / weights.sum()
    points = (np.arange(len(weights)) + start) / len(weights)
    return np.minimum(np.searchsorted(shares, points, side="right"), len(weights) - 1)


def likelihoods(scores: np.ndarray, temperature: float = 0.0) -> np.ndarray:
    """Weights of particles from their scores.

    Args:
        scores: [n]; NaN counts as the worst.
        temperature: 0: the scores themselves, 1 - the rate of errors as in the paper; they hardly
            differ, so that resampling hardly selects. Above 0: softmax(standardised scores /
            temperature). Scores below 0 (minus a loss) are no rates, and are weighed as at 1.

    Example:
        >>> likelihoods(np.array([0.98, 0.97])).tolist()
        [0.98, 0.97]
        >>> likelihoods(np.array([0.98, 0.97]), 1.0).round(3).tolist()
        [0.881, 0.119]
    """
    scores = np.asarray(scores, float)
    if not np.isfinite(scores).any():
        return np.ones(len(scores))
    scores = np.where(np.isfinite(scores), scores, scores[np.isfinite(scores)].min())
    if temperature <= 0 and (scores >= 0).all() and scores.sum() > 0:
        return scores
    spread = scores.std()
    sharp = (scores - scores.max()) / ((spread if spread > 0 else 1.0) * (temperature or 1.0))
    weights = np.exp(sharp)
    return weights / weights.sum()


class Particles(NamedTuple):
    """A population and its scores.

    Attributes:
        seed: [k] bits of the key.
        round: number of the generation, from 0.
        genes: int [particles, genes]: those that were scored last; the best so far comes first.
        scores: [particles]; -inf where there is none yet.
    """

    seed: jax.Array
    round: jax.Array
    genes: jax.Array
    scores: jax.Array


def particle_filter(
    kind: Kind,
    genes: int,
    particles: int = 32,
    rate: float = 0.1,
    crossover: float = 0.5,
    temperature: float = 0.0,
) -> Searcher:
    """Search by a particle filter: resample by the scores, cross, mutate; the best one stays.

    Args:
        kind: what particles are: `search.Subsets` or `search.Offsets`.
        genes: in a particle.
        particles: in a generation.
        rate: the share of genes that a mutation changes.
        crossover: probability that a child has two parents.
        temperature: see `likelihoods`.

    Returns:
        The searcher. `ask` gives all particles at first, and then one less: the best so far keeps
        its score. A particle can come again. One generation alone is random search.

    Raises:
        ArgumentError: less than two particles, or a number out of range.

    Example:
        >>> from jprune.search import Subsets
        >>> wanted = np.arange(12) % 3 == 0
        >>> searcher = particle_filter(Subsets((True,) * 12, 4), 12, temperature=0.5)
        >>> state = searcher.init(jax.random.key(0))
        >>> for _ in range(12):
        ...     asked = searcher.ask(state)
        ...     state = searcher.tell(state, asked, asked @ wanted)
        >>> searcher.best(state)[0].nonzero()[0].tolist()
        [0, 3, 6, 9]
    """
    if particles < 2 or not (0 < rate <= 1 and 0 <= crossover <= 1 and temperature >= 0):
        raise errors.ArgumentError(
            f"particle_filter(particles={particles}, rate={rate}, crossover={crossover}, "
            f"temperature={temperature}); particles are 2 or more, the rate in (0, 1], the "
            "crossover in [0, 1], the temperature 0 or more."
        )

    def init(key: jax.Array) -> Particles:
        zeros = jnp.zeros((particles, genes), jnp.int32)
        none = jnp.full(particles, -jnp.inf)
        return Particles(jnp.ravel(jax.random.key_data(key)), jnp.zeros((), jnp.int32), zeros, none)

    def ask(state: Particles) -> np.ndarray:
        # Draws depend on (seed, round) alone: a search that is resumed proposes the same.
        rng = np.random.default_rng([*np.asarray(state.seed).tolist(), int(state.round)])
        if not int(state.round):
            return kind.draw(rng, particles)
        before, scores = np.asarray(state.genes), np.asarray(state.scores)
        parents = before[systematic(likelihoods(scores, temperature), rng.random())]
        # A partner by the same weights, in another order.
        pairs = kind.cross(parents, parents[rng.permutation(particles)], rng)
        crossed = np.where(rng.random((particles, 1)) < crossover, pairs, parents)
        return kind.mutate(crossed, rate, rng)[1:]

    def tell(state: Particles, asked: np.ndarray, scores: np.ndarray) -> Particles:
        values = np.nan_to_num(np.asarray(scores, float), nan=-np.inf, neginf=-np.inf)
        asked = np.asarray(asked)
        if int(state.round):
            # The best so far stays, with its score: the elite.
            asked = np.concatenate([np.asarray(state.genes)[:1], asked])
            values = np.concatenate([np.asarray(state.scores)[:1], values])
        first = int(np.argmax(values))
        order = [first, *(n for n in range(len(values)) if n != first)]
        return state._replace(
            round=state.round + 1,
            genes=jnp.asarray(asked[order], jnp.int32),
            scores=jnp.asarray(values[order], jnp.float32),
        )

    def best(state: Particles) -> tuple[np.ndarray, float]:
        return np.asarray(state.genes)[0], float(state.scores[0])

    return Searcher(init, ask, tell, best)

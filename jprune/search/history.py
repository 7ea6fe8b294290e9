"""What a search has tried: candidates and their scores, in arrays of fixed size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class SearchState(NamedTuple):
    """All candidates tried so far, in arrays of fixed size.

    Attributes:
        seed: [k] bits of the key.
        round: number of the round, from 0.
        tried: how many candidates have a score.
        genes: int or float [most that can be tried, genes].
        scores: [most that can be tried]; -inf where there is none yet.
    """

    seed: jax.Array
    round: jax.Array
    tried: jax.Array
    genes: jax.Array
    scores: jax.Array


def begun(key: jax.Array, size: int, genes: int, dtype: type = int) -> SearchState:
    """The state of a search that has tried nothing.

    Args:
        key: of all draws.
        size: candidates that there is room for.
        genes: of a candidate.
        dtype: of genes, int or float.
    """
    zero = jnp.zeros((), jnp.int32)
    table = jnp.zeros((size, genes), jnp.int32 if dtype is int else jnp.float32)
    seed = jnp.ravel(jax.random.key_data(key))
    return SearchState(seed, zero, zero, table, jnp.full(size, -jnp.inf))


def told(state: SearchState, candidates: np.ndarray, scores: np.ndarray) -> SearchState:
    """The state with the candidates' scores added; NaN counts as the worst score."""
    count, new = int(state.tried), len(candidates)
    values = jnp.nan_to_num(jnp.asarray(scores, jnp.float32), nan=-jnp.inf, neginf=-jnp.inf)
    rows = jnp.asarray(candidates, state.genes.dtype)
    genes, old = jnp.asarray(state.genes), jnp.asarray(state.scores)
    return state._replace(
        round=state.round + 1,
        tried=state.tried + new,
        genes=genes.at[count : count + new].set(rows),
        scores=old.at[count : count + new].set(values),
    )


def best(state: SearchState) -> tuple[np.ndarray, float]:
    """The best candidate and its score; of equal ones the first."""
    place = int(np.argmax(np.asarray(state.scores)))
    return np.asarray(state.genes)[place], float(state.scores[place])


def draws(state: SearchState) -> np.random.Generator:
    """The generator of a round: of (seed, round) alone, so that a resumed search goes on alike."""
    return np.random.default_rng([*np.asarray(state.seed).tolist(), int(state.round)])

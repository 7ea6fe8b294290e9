"""Random: the baseline that every criterion must beat.

References:
    Mittal, Bhardwaj, Khapra, Ravindran, Recovering from random pruning, 2018, arXiv 1801.10447.
"""

import jax
import numpy as np

from jprune.base import Criterion
from jprune.graph.shrink.concrete import on_host
from jprune.masks import map_parameters


def random(key: jax.Array) -> Criterion:
    """Uniform scores in [0, 1), one per parameter: a tree like the variables, None for statistics.

    Pooled with `to_units(..., within="max")` or any other way, units are in random order too.

    Args:
        key: PRNG key; the same key gives the same scores.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> scores = jprune.run_criterion(random(jax.random.key(0)), {"w": jnp.ones(3)}, ())
        >>> scores["w"].shape
        (3,)
    """

    def score(state, variables):
        del state
        sizes = jax.tree.leaves(map_parameters(np.size, variables))
        # One draw for all: XLA compiles a program for every number of draws.
        drawn, ends = jax.random.uniform(key, (sum(sizes),)), iter(np.cumsum(sizes).tolist())

        def part(leaf):
            end = next(ends)
            cut = lambda xnp, numbers: numbers[end - np.size(leaf) : end].reshape(np.shape(leaf))
            return on_host(cut)(drawn)

        return map_parameters(part, variables)

    return Criterion(lambda variables: (), lambda state, variables, batch: state, score, False)

"""Random: the baseline that every criterion must beat.

References:
    Mittal, Bhardwaj, Khapra, Ravindran, Recovering from random pruning, 2018, arXiv 1801.10447.
"""

import itertools

import jax

from jprune.base import Criterion
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
        # Every leaf has a key of its own: equal shapes would otherwise get equal scores.
        numbers = itertools.count()
        draw = lambda leaf: jax.random.uniform(jax.random.fold_in(key, next(numbers)), leaf.shape)
        return map_parameters(draw, variables)

    return Criterion(lambda variables: (), lambda state, variables, batch: state, score, False)

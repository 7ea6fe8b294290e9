"""Random: the baseline that every criterion must beat.

References:
    Mittal, Bhardwaj, Khapra, Ravindran, Recovering from random pruning, 2018, arXiv 1801.10447.
"""

import itertools

import jax
import jax.numpy as jnp

from jprune.base import Criterion, Groups
from jprune.masks import map_parameters


def random(key: jax.Array, groups: Groups | None = None) -> Criterion:
    """Uniform scores in [0, 1): one a unit, or one a parameter.

    For units pass the groups. Numbers of weights, pooled to units, are no random order of them:
    sums grow with the fan-in, means of many numbers stay near 1/2, so that a global allocation
    takes the one or the other layer first.

    Args:
        key: PRNG key; the same key gives the same scores.
        groups: from `trace`: scores are {group: [units]}; None: a tree like the variables, None
            for statistics.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> scores = jprune.run_criterion(random(jax.random.key(0)), {"w": jnp.ones(3)}, ())
        >>> scores["w"].shape
        (3,)
        >>> groups = jprune.trace(lambda v, x: x @ v["a"] @ v["b"],
        ...                       {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 4))}, jnp.ones((1, 2)))
        >>> scores = jprune.run_criterion(random(jax.random.key(0), groups), {}, ())
        >>> {name: score.shape for name, score in scores.items()}
        {'a': (3,)}
    """
    units = None if groups is None else {n: jnp.zeros(size) for n, size in groups.sizes.items()}

    def score(state, variables):
        del state
        variables = variables if units is None else units
        # Every leaf has a key of its own: equal shapes would otherwise get equal scores.
        numbers = itertools.count()
        draw = lambda leaf: jax.random.uniform(jax.random.fold_in(key, next(numbers)), leaf.shape)
        return map_parameters(draw, variables)

    return Criterion(lambda variables: (), lambda state, variables, batch: state, score, False)

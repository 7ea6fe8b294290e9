"""Random: the baseline that every criterion must beat.

References:
    Mittal, Bhardwaj, Khapra, Ravindran, Recovering from random pruning, 2018, arXiv 1801.10447.
"""

import jax
import numpy as np

from jprune.base import Criterion, Groups
from jprune.graph.shrink.concrete import on_host
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
    units = None if groups is None else {n: np.zeros(size) for n, size in groups.sizes.items()}

    def score(state, variables):
        del state
        variables = variables if units is None else units
        sizes = jax.tree.leaves(map_parameters(np.size, variables))
        # One draw for all: XLA compiles a program for every number of draws.
        drawn, ends = jax.random.uniform(key, (sum(sizes),)), iter(np.cumsum(sizes).tolist())

        def part(leaf):
            end = next(ends)
            cut = lambda xnp, numbers: numbers[end - np.size(leaf) : end].reshape(np.shape(leaf))
            return on_host(cut)(drawn)

        return map_parameters(part, variables)

    return Criterion(lambda variables: (), lambda state, variables, batch: state, score, False)

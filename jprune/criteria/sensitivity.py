"""Sensitivity: how strongly the loss reacts to switching a connection off, as a share of all.

References:
    Lee, Ajanthan, Torr, SNIP: single-shot network pruning based on connection sensitivity, 2019,
    arXiv 1810.02340 [46].
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jprune.base import Criterion
from jprune.criteria._average import add, start, value_of
from jprune.curvature import parameters_of, weights_of
from jprune.curvature.products import gradient_of


def sensitivity(
    fn: Callable[..., Any], loss: Callable[..., Any], has_aux: bool = False
) -> Criterion:
    """|g w| of every parameter over the sum of all, g the gradient of the mean loss.

    g w is the gradient in a switch c = 1 on the connection, dE(c w)/dc. It is averaged over all
    examples, signs included, and its size taken at the end: examples that disagree cancel. The sum
    runs over all parameters; it changes no order. A weight of 0, such as a bias as it begins,
    scores 0.

    Args:
        fn: `fn(variables, batch["image"])`.
        loss: `loss(out, batch) -> [batch]`; E is its mean, weighted by batch["weight"] if there is
            one. A penalty on the weights is no part of it.
        has_aux: `fn` returns `(out, statistics)`: a net in training mode, whose norms use the
            batch's own statistics.

    Returns:
        A criterion; scores are a tree like the variables, None for statistics. They sum to 1,
        unless all are 0.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: x @ v["w"]
        >>> loss = lambda out, batch: 0.5 * (out[:, 0] - batch["label"]) ** 2
        >>> batch = {"image": jnp.array([[1.0, 1.0, 2.0]]), "label": jnp.ones(1)}
        >>> variables = {"w": jnp.array([[1.0], [-2.0], [0.5]])}
        >>> jprune.run_criterion(sensitivity(fn, loss), variables, [batch])["w"][:, 0]
        Array([0.25, 0.5 , 0.25], dtype=float32)
    """
    run = (lambda variables, x: fn(variables, x)[0]) if has_aux else fn

    def init(variables: Any) -> Any:
        return start(parameters_of(variables).values)

    @jax.jit
    def update(state: Any, variables: Any, batch: Any) -> Any:
        parameters = parameters_of(variables)
        gradient = gradient_of(run, loss, parameters, batch)(parameters.values)
        # dE(c * w)/dc at c = 1 is g w
        slopes = [g * w for g, w in zip(gradient, parameters.values)]
        # Weighed by the examples: the mean over all of them, whatever the batches.
        return add(state, slopes, None, 1, weights_of(batch).sum())

    def score(state: Any, variables: Any) -> Any:
        return parameters_of(variables).tree(_shares(value_of(state, None)))

    return Criterion(init, update, score)


@jax.jit
def _shares(slopes: list[jax.Array]) -> list[jax.Array]:
    sizes = [jnp.abs(slope) for slope in slopes]
    total = sum((size.sum() for size in sizes), jnp.zeros(()))
    # s_j = |g_j| / sum_k |g_k|
    return [size / jnp.where(total > 0, total, 1) for size in sizes]

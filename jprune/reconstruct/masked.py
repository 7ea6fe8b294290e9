"""Least squares under a mask that is data: one compiled function refits a layer to any choice."""

from typing import Any

import jax.numpy as jnp
import jax.scipy.linalg

RIDGE = 1e-4
"""Of float32: smaller ones are lost in it."""


def masked_refit(gram: Any, weight: Any, keep: Any, ridge: float = RIDGE) -> Any:
    """Weights over the inputs that stay which come nearest to the outputs of all of them.

    They minimise ||X W - X_S W'||^2 + ridge * mean(diag(X^T X)) * ||W' - W_S||^2 over W', S being
    the inputs that stay: `least_squares` with the layer's own outputs as targets, from X^T X alone.
    The shapes do not depend on the choice, so that it can be traced, and mapped over choices.

    Args:
        gram: [n, n]: X^T X of the layer's inputs.
        weight: [n, outputs]: W.
        keep: bool or float [n]: which inputs stay.
        ridge: above 0.

    Returns:
        [n, outputs]: W', 0 where inputs are gone.

    Example:
        >>> x = jnp.array([[1.0, 2.0], [2.0, 4.0]])  # x_1 = 2 x_0
        >>> masked_refit(x.T @ x, jnp.ones((2, 1)), jnp.array([True, False])).round(2).tolist()
        [[3.0], [0.0]]
    """
    gram = jnp.asarray(gram)
    keep = jnp.asarray(keep, gram.dtype)
    size = jnp.diagonal(gram).mean()
    damping = ridge * jnp.where(size > 0, size, 1)
    # (G_SS + ridge I) D = G_S (W - W_S); where inputs are gone, D = 0
    damped = keep[:, None] * gram * keep + jnp.diag(damping * keep + (1 - keep))
    missing = keep[:, None] * (gram @ ((1 - keep)[:, None] * weight))
    change = jax.scipy.linalg.solve(damped, missing, assume_a="pos")
    # W' = W_S + D
    return keep[:, None] * (weight + change)

"""An L1 penalty, decoupled from the gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Params, Schedule


def l1_decay(strength: float, rate: Schedule) -> optax.GradientTransformation:
    """Takes rate * strength off |w| of every kernel in a step, down to 0 and not beyond.

    Stands behind the step, where momentum does not gather it. Biases and norms are left alone.

    Args:
        strength: of the penalty `strength * sum |w|`.
        rate: learning rate at a step.

    Raises:
        ArgumentError: a negative strength.

    References:
        Tibshirani, Regression shrinkage and selection via the lasso, 1996. As a proximal step:
        Parikh, Boyd, Proximal algorithms, 2014.

    Example:
        >>> tx = l1_decay(0.5, lambda step: 0.1)
        >>> params = {"w": jnp.array([[1.0, -0.01]])}
        >>> updates, _ = tx.update({"w": jnp.zeros((1, 2))}, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["w"]
        Array([[0.95, 0.  ]], dtype=float32)
    """
    if strength < 0:
        raise errors.ArgumentError(f"l1_decay(strength={strength}); it is 0 or more.")

    def init(params: Params) -> jax.Array:
        del params
        return jnp.zeros((), jnp.int32)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "l1_decay needs the parameters: call tx.update(gradients, state, params)."
            )
        off = rate(state) * strength

        def one(change: jax.Array, weight: jax.Array) -> jax.Array:
            if jnp.ndim(weight) < 2:
                return change
            moved = weight + change
            return jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - off, 0) - weight

        return jax.tree.map(one, updates, params), state + 1

    return optax.GradientTransformation(init, update)

"""An L1 penalty, decoupled from the gradient.

    E(W) = E_D(W) + lambda sum |w|

References:
    Tibshirani, Regression shrinkage and selection via the lasso, 1996. As a proximal step: Parikh,
    Boyd, Proximal algorithms, 2014.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Params, Schedule
from jprune.blocks.members import Blocks, leaves_of


def l1_decay(
    blocks: Blocks, strength: float, rate: float | Schedule
) -> optax.GradientTransformation:
    """Takes rate * strength off |w| of every weight in a step, down to 0 and not beyond.

    Place it behind the optimizer, so that momentum does not accumulate the penalty. With momentum m
    and rate = learning rate / (1 - m), weights come to rest at a minimum of loss + penalty.

    Args:
        blocks: whose leaves are penalised, as a whole: `blocks.weights(groups)` are all kernels.
            Biases and norms are none of them.
        strength: of the penalty `strength * sum |w|`.
        rate: size of a step, or step -> size.

    Returns:
        An optax transformation whose state is the number of the step.

    Raises:
        ArgumentError: a negative strength; `update` without parameters.
        StructureError: parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> params = {"b": jnp.array([0.01]), "w": jnp.array([[1.0], [-0.01]])}
        >>> groups = jprune.trace(lambda v, x: x @ v["w"] + v["b"], params, jnp.ones(2))
        >>> tx = l1_decay(blocks.weights(groups), strength=0.5, rate=0.1)
        >>> still = jax.tree.map(jnp.zeros_like, params)
        >>> updates, _ = tx.update(still, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["w"].tolist()
        [[0.949999988079071], [0.0]]
    """
    if strength < 0:
        raise errors.ArgumentError(f"l1_decay(strength={strength}); it is 0 or more.")

    def init(params: Params) -> jax.Array:
        # Refuses parameters of another net now, and not in a step.
        leaves_of(blocks, params)
        return jnp.zeros((), jnp.int32)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "l1_decay needs the parameters: call tx.update(gradients, state, params)."
            )
        step_size = rate(state) if callable(rate) else rate
        changes = leaves_of(blocks, updates)
        weights = leaves_of(blocks, params)
        for path in blocks.counted & {*changes}:
            moved = weights[path] + changes[path]
            # w <- sign(w) max(|w| - t lambda, 0)
            size = jnp.maximum(jnp.abs(moved) - step_size * strength, 0)
            changes[path] = jnp.sign(moved) * size - weights[path]
        return jax.tree.unflatten(jax.tree.structure(updates), list(changes.values())), state + 1

    return optax.GradientTransformation(init, update)

"""An L1 penalty, as a step of its own or in the gradient.

    E(W) = E_D(W) + lambda sum |w|

References:
    Tibshirani, Regression shrinkage and selection via the lasso, 1996. As a proximal step: Parikh,
    Boyd, Proximal algorithms, 2014.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.base import Params, Schedule
from jprune.blocks.members import Blocks, along, leaves_of


def l1_decay(
    blocks: Blocks, strength: float, rate: float | Schedule
) -> optax.GradientTransformation:
    """Takes rate * strength off |w| of every weight in a step, down to 0 and not beyond.

    Place it behind the optimizer, so that momentum does not accumulate the penalty. With momentum m
    and rate = learning rate / (1 - m), weights come to rest at a minimum of loss + penalty.

    Args:
        blocks: whose weights are penalised: `blocks.weights(groups)` are all kernels and no biases
            or norms, `blocks.scales(groups)` the scales of norms that a unit can lose.
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
            shrunk = jnp.sign(moved) * size - weights[path]
            changes[path] = jnp.where(standing(blocks, path, moved.shape), shrunk, changes[path])
        return jax.tree.unflatten(jax.tree.structure(updates), list(changes.values())), state + 1

    return optax.GradientTransformation(init, update)


def l1_gradient(blocks: Blocks, strength: float) -> optax.GradientTransformation:
    """Adds strength * sign(w) to the gradient of every weight, 0 where the weight is 0.

    Place it before the optimizer, whose momentum then gathers it: with SGD, weights swing around
    the minimum of loss + penalty, and none becomes exactly 0. `l1_decay` makes zeros.

    Args:
        blocks: whose weights are penalised, as for `l1_decay`.
        strength: of the penalty `strength * sum |w|`.

    Returns:
        An optax transformation without a state.

    Raises:
        ArgumentError: a negative strength; `update` without parameters.
        StructureError: parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> params = {"w": jnp.array([[0.5], [-0.2], [0.0]])}
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], params, jnp.ones(3))
        >>> tx = l1_gradient(blocks.weights(groups), strength=0.25)
        >>> still = jax.tree.map(jnp.zeros_like, params)
        >>> tx.update(still, tx.init(params), params)[0]["w"].tolist()
        [[0.25], [-0.25], [0.0]]
    """
    if strength < 0:
        raise errors.ArgumentError(f"l1_gradient(strength={strength}); it is 0 or more.")

    def init(params: Params) -> optax.EmptyState:
        leaves_of(blocks, params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "l1_gradient needs the parameters: call tx.update(gradients, state, params)."
            )
        gradients, weights = leaves_of(blocks, updates), leaves_of(blocks, params)
        for path in blocks.counted & {*gradients}:
            inside = standing(blocks, path, weights[path].shape)
            # g <- g + lambda sign(w), with sign(0) = 0
            gradients[path] += jnp.where(inside, strength, 0.0) * jnp.sign(weights[path])
        return jax.tree.unflatten(jax.tree.structure(updates), list(gradients.values())), state

    return optax.GradientTransformation(init, update)


def standing(blocks: Blocks, path: str, shape: tuple[int, ...]) -> Any:
    """Where the groups of blocks stand in a leaf: True for all of it, or what broadcasts to it."""
    inside: Any = np.False_
    for block in blocks.values():
        for member in block.members:
            if member.path == path:
                if member.units is None or (member.units >= 0).all():
                    return np.True_
                # Positions of no unit, such as those of frozen channels, have no penalty.
                inside = inside | along(member, shape, np.ones(block.size, bool), False)
    return inside

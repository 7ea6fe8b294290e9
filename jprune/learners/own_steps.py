"""Steps of their own for what is trained beside a net's weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def beside(
    inner: optax.GradientTransformation, own: optax.GradientTransformation, name: str = "gates"
) -> optax.GradientTransformationExtraArgs:
    """`own` moves `params[name]`, `inner` all other parameters.

    Args:
        inner: sees slopes of 0 for `name`, so that a norm of the whole gradient is one of the
            others.
        own: sees `params[name]` alone.
        name: a key of the parameters.

    Returns:
        A transformation whose state is (that of inner, that of own).

    Example:
        >>> params = {"net": jnp.ones(2), "gates": {"a": jnp.ones(3)}}
        >>> tx = beside(optax.sgd(0.1), optax.sgd(1.0))
        >>> updates, _ = tx.update(params, tx.init(params), params)
        >>> updates["net"].tolist(), updates["gates"]["a"].tolist()
        ([-0.10000000149011612, -0.10000000149011612], [-1.0, -1.0, -1.0])
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:
        return inner.init(params), own.init(params[name])

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        still = {**updates, name: jax.tree.map(jnp.zeros_like, updates[name])}
        moves: Any
        moves, of_inner = inner.update(still, state[0], params, **extra)
        steps, of_own = own.update(
            updates[name], state[1], None if params is None else params[name]
        )
        return {**moves, name: steps}, (of_inner, of_own)

    return optax.GradientTransformationExtraArgs(init, update)

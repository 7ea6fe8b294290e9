"""From the first update that is not finite on, nothing moves: the last good parameters stay."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune.graph.shrink.concrete import at_once


class GuardState(NamedTuple):
    """State of `guarded`.

    Attributes:
        good: False once an update was not finite.
        inner: state of the optimizer.
    """

    good: jax.Array
    inner: Any


def guarded(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Stops for good at the first update that is not finite: parameters keep their last state.

    Example:
        >>> tx = guarded(optax.sgd(0.1))
        >>> state = tx.init(jnp.ones(2))
        >>> updates, state = tx.update(jnp.array([1.0, jnp.nan]), state)
        >>> updates.tolist(), bool(state.good)
        ([0.0, 0.0], False)
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        moves, after = inner.update(updates, state.inner, params, **extra)
        # Of the updates and not of the gradients: an optimizer can divide by 0.
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(moves)]
        good = state.good & jnp.stack(finite).all()
        # `where`, not a product: 0 times NaN is NaN.
        moves = jax.tree.map(lambda move: jnp.where(good, move, jnp.zeros_like(move)), moves)
        return moves, GuardState(good, after)

    return optax.GradientTransformationExtraArgs(
        lambda params: GuardState(jnp.ones((), bool), at_once(inner.init)(params)), update
    )

"""Parameters that stay in an interval: what an update would take out of it ends on its border."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.base import PyTree
from jprune.masks import keep_best


def box(
    low: float = 0.0, high: float = 1.0, floors: PyTree | None = None
) -> optax.GradientTransformationExtraArgs:
    """Clips parameters into [low, high] behind a step, so that those at `low` are exactly there.

    Args:
        low: the smallest value.
        high: the largest value.
        floors: a tree like the parameters, of how many entries of a leaf never fall to `low`: the
            largest ones then stay at their last value above it. None: 0 everywhere.

    Returns:
        An optax transformation that needs the parameters, last in a chain.

    Raises:
        ArgumentError: an empty interval; `update` was called without the parameters.

    Example:
        >>> tx, gates = box(), jnp.array([0.1, 0.9, 0.5])
        >>> updates, _ = tx.update(jnp.array([-0.3, 0.3, 0.1]), tx.init(gates), gates)
        >>> optax.apply_updates(gates, updates).round(6).tolist()
        [0.0, 1.0, 0.6000000238418579]
    """
    if not low < high:
        raise errors.ArgumentError(f"box(low={low}, high={high}); low is below high.")

    def one(change: jax.Array, old: jax.Array, floor: int) -> jax.Array:
        moved = old + change
        after = jnp.clip(moved, low, high)
        if floor:
            # What is closed and stays so saves nothing: it takes no place among the largest.
            rank = jnp.where((after > low) | (old > low), moved, -jnp.inf)
            spared = keep_best(rank, min(floor, int(np.size(moved)))) & (after <= low)
            after = jnp.where(spared, old, after)
        # old + (after - old) is exactly 0 where `after` is.
        return after - old

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        if params is None:
            raise errors.ArgumentError(
                "box needs the parameters: call tx.update(updates, state, params)."
            )
        fewest = jax.tree.map(lambda _: 0, params) if floors is None else floors
        return jax.tree.map(one, updates, params, fewest), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

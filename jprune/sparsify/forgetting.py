"""Rows that forget: of some rows of a matrix only a penalty moves, and it moves them to 0.

    G_i <- m_i dL/dQ_i + lambda Q_i / ||Q_i||,   m_i = 0 for rows that shall go

For a row with m_i = 0 the loss has no say: it shrinks by the same length in every step. The others
have their whole gradient beside the penalty, and stay where the loss needs them.

References:
    Ding, Hao, Tan, Liu, Han, Guo, Ding, ResRep: lossless CNN pruning via decoupling remembering and
    forgetting, 2021, arXiv 2007.03260.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import PyTree, Schedule
from jprune.graph.shrink.concrete import full

HOW = ("prox", "subgradient")


class ForgettingState(NamedTuple):
    """State of `forgetting`.

    Attributes:
        step: how many were taken.
        velocity: of the momentum.
        masks: {name: bool [rows]}: m.
    """

    step: jax.Array
    velocity: PyTree
    masks: dict[str, jax.Array]


def row_norms(matrices: Mapping[str, Any]) -> dict[str, jax.Array]:
    """{name: [rows]}: t_i = ||Q_i||, of arrays [rows, ...].

    Example:
        >>> row_norms({"a": jnp.array([[3.0, 4.0], [0.0, 0.0]])})["a"].tolist()
        [5.0, 0.0]
    """
    # A root of 0 has no slope; nothing is differentiated here.
    wide = {
        name: jnp.asarray(q, jnp.promote_types(q.dtype, jnp.float32))
        for name, q in matrices.items()
    }
    return {name: jnp.sqrt((q**2).sum(tuple(range(1, q.ndim)))) for name, q in wide.items()}


def _along(values: jax.Array, q: jax.Array) -> jax.Array:
    """[rows, 1, ...]: a number for each row, in the shape that an array is multiplied by."""
    return values.reshape(-1, *(1,) * (q.ndim - 1)).astype(
        values.dtype if values.dtype == bool else q.dtype
    )


def forgetting(
    rate: Schedule,
    strength: float,
    choose: Callable[[dict[str, jax.Array], Any, dict[str, jax.Array]], Mapping[str, Any]],
    momentum: float = 0.99,
    how: str = "prox",
) -> optax.GradientTransformation:
    """Steps of arrays {name: [rows, ...]}, of whose rows chosen ones shrink to 0.

    Args:
        rate: learning rate at a step.
        strength: lambda, of the penalty on the length of all rows.
        choose: `choose(lengths, step, masks) -> masks`, jittable, before every step: False for the
            rows that shall go.
        momentum: of the gradient.
        how: "prox": behind the momentum rows become shorter by rate strength / (1 - momentum), and
            exactly 0; "subgradient": the penalty's gradient goes through the momentum, and rows end
            near 0.

    Raises:
        ArgumentError: another `how`, or a number out of range; `update` without parameters.

    Example:
        >>> rows = lambda lengths, step, masks: {"a": jnp.array([True, False])}
        >>> tx = forgetting(lambda step: 0.1, 0.05, rows, momentum=0.9)
        >>> params = {"a": jnp.eye(2)}
        >>> state = tx.init(params)
        >>> for _ in range(20):
        ...     grads = jax.grad(lambda p: jnp.sum((p["a"] - jnp.eye(2)) ** 2))(params)
        ...     updates, state = tx.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params["a"][1].tolist(), bool(params["a"][0, 0] > 0.9)
        ([0.0, 0.0], True)
    """
    errors.check_words("forgetting", ("how", how, HOW))
    errors.check_numbers(
        "forgetting",
        ("strength", strength, strength >= 0, "0 or more"),
        ("momentum", momentum, 0 <= momentum < 1, "in [0, 1)"),
    )

    def init(params: Any) -> ForgettingState:
        ones = {name: full((len(q),), True) for name, q in params.items()}
        still = {name: full(q.shape, 0, q.dtype) for name, q in params.items()}
        return ForgettingState(full((), 0, jnp.int32), still, ones)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise errors.ArgumentError(
                "forgetting needs the parameters: call tx.update(gradients, state, params)."
            )
        lengths, eta = row_norms(params), rate(state.step)
        masks = {**state.masks, **choose(lengths, state.step, state.masks)}
        # lambda Q_i / ||Q_i||, and 0 where the row is
        pull = {
            name: strength * q / _along(jnp.maximum(lengths[name], 1e-12), q)
            for name, q in params.items()
        }
        # G_i = m_i dL/dQ_i (+ lambda Q_i / ||Q_i||)
        gradient = {n: jnp.where(_along(masks[n], q), updates[n], 0) for n, q in params.items()}
        if how == "subgradient":
            gradient = jax.tree.map(jnp.add, gradient, pull)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, state.velocity, gradient)
        after = jax.tree.map(lambda q, v: q - eta * v, dict(params), velocity)
        if how == "prox":
            far = eta * strength / (1 - momentum)
            # Q_i <- max(0, 1 - far / ||Q_i||) Q_i
            after = {
                name: q * _along(jnp.maximum(0, 1 - far / jnp.maximum(length, 1e-12)), q)
                for (name, q), length in zip(after.items(), row_norms(after).values())
            }
        moves = jax.tree.map(jnp.subtract, after, dict(params))
        return moves, ForgettingState(state.step + 1, velocity, masks)

    return optax.GradientTransformation(init, update)

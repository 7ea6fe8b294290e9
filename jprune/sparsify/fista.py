"""FISTA: a gradient step from a point ahead, then the L1 penalty's proximal step: exact zeros."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.base import Params, PyTree, Schedule
from jprune.graph.shrink.concrete import copied
from jprune.masks import keep_best

HALVINGS = 30
"""Halvings of the interval in which the least strength is searched."""


class FistaState(NamedTuple):
    """State of `fista`.

    Attributes:
        before: the parameters one step ago.
        pace: the paper's a_k (t_k); 0 before the first step.
        step: how many steps were taken.
    """

    before: PyTree
    pace: jax.Array
    step: jax.Array


def fista(
    rate: float | Schedule,
    strength: float | Schedule,
    *,
    positive: bool = True,
    restart: int = 0,
    floors: PyTree | None = None,
    enough: Callable[[Params], jax.Array] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimises f(m) + strength |m|_1; the updates lead to parameters with exact zeros.

        a_{k+1} = (1 + sqrt(1 + 4 a_k^2)) / 2,   a_1 = 1
        y = m_k + (a_k - 1) / a_{k+1} (m_k - m_{k-1})
        v = y - rate g
        m_{k+1} = sign(v) max(|v| - rate strength, 0), and 0 where that is negative

    The first two steps have factor 0. The gradient g is the one that `update` gets: taken at y, it
    is the textbook's method; taken at m_k, it saves a backward pass.

    Args:
        rate: size of a step, or step -> size.
        strength: of the penalty, or step -> strength.
        positive: what comes out negative becomes 0.
        restart: a_k is 1 again after every so many steps; 0: never.
        floors: a tree like the parameters, of how many entries of a leaf no penalty touches: those
            with the largest v are not shrunk. None: 0 everywhere.
        enough: `enough(parameters) -> bool`, whether there are enough zeros. Once there are, the
            parameters do not move any more. The step that gets there is taken without momentum and
            with the least strength that suffices; if even the full strength does not suffice
            without momentum, a later step gets there.

    Returns:
        An optax transformation that needs the parameters. It is a whole step, learning rate
        included: it stands alone or last in a chain.

    Raises:
        ArgumentError: a negative restart; `update` was called without the parameters.

    References:
        Beck, Teboulle, A fast iterative shrinkage-thresholding algorithm for linear inverse
        problems, 2009.

    Example:
        >>> tx, m = fista(rate=0.1, strength=0.5), jnp.array([0.2, 0.04, -0.1])
        >>> updates, _ = tx.update(jnp.array([0.5, 0.0, 0.0]), tx.init(m), m)
        >>> optax.apply_updates(m, updates).round(6).tolist()
        [0.10000000149011612, 0.0, 0.0]
    """
    if restart < 0:
        raise errors.ArgumentError(f"fista(restart={restart}); it is 0 (never) or more.")

    def init(params: Params) -> FistaState:
        return FistaState(copied(params), jnp.zeros(()), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        if params is None:
            raise errors.ArgumentError(
                "fista needs the parameters: call tx.update(gradients, state, params)."
            )
        pace = state.pace
        if restart:
            again = (state.step > 0) & (state.step % restart == 0)
            pace = jnp.where(again, 1.0, pace)
        # a_{k+1} = (1 + sqrt(1 + 4 a_k^2)) / 2
        following = (1 + jnp.sqrt(1 + 4 * pace**2)) / 2
        # (a_k - 1) / a_{k+1}
        factor = jnp.maximum(pace - 1, 0) / following
        size = rate(state.step) if callable(rate) else rate
        fewest = jax.tree.map(lambda _: 0, params) if floors is None else floors

        def at(force: Any, factor: Any = factor) -> Params:
            def one(m: jax.Array, old: jax.Array, g: jax.Array, floor: int) -> jax.Array:
                # v = m_k + (a_k - 1) / a_{k+1} (m_k - m_{k-1}) - rate g
                moved = m + factor * (m - old) - size * g
                return _shrunk(m, moved, size * force, positive, floor)

            return jax.tree.map(one, params, state.before, updates, fewest)

        force = strength(state.step) if callable(strength) else strength
        force = jnp.asarray(force, jnp.float32)
        after = at(force)
        if enough is not None:
            met = enough
            # The momentum alone may go too far: the step that gets there does without.
            last = lambda: at(_least(lambda force: met(at(force, 0)), force), 0)
            after = jax.lax.cond(enough(after), last, lambda: after)
            rests = enough(params)
            after = jax.tree.map(lambda m, new: jnp.where(rests, m, new), params, after)
        changes = jax.tree.map(lambda new, m: new - m, after, params)
        return changes, FistaState(params, following, state.step + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _shrunk(
    m: jax.Array, moved: jax.Array, threshold: jax.Array, positive: bool, floor: int
) -> jax.Array:
    """The proximal step on one leaf; the `floor` largest entries stay as they are."""
    # m_{k+1} = sign(v) max(|v| - rate strength, 0), and 0 where that is negative
    result = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - threshold, 0)
    result = jnp.maximum(result, 0) if positive else result
    if not floor:
        return result
    spared = keep_best(moved if positive else jnp.abs(moved), min(floor, int(np.size(moved))))
    # A spared entry may grow with its gradient, but is not brought below what it was.
    return jnp.where(spared, jnp.maximum(result, m) if positive else m, result)


def _least(met: Callable[[jax.Array], jax.Array], most: jax.Array) -> jax.Array:
    """The least number in [0, most] at which `met` holds; about `most` where none is."""

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        # As if `met` rose once from False to True: more
        # strength makes more zeros, but for rounding.
        holds = met(middle)
        return jnp.where(holds, low, middle), jnp.where(holds, middle, high)

    return jax.lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(most), most))[1]

"""Pruning that leaves a leaf alone when it has become sparse enough, or cannot become so.

    density <= x_min: its zeros stay as they are;   x >= x_max and steady: its dense values return

References:
    Park, Li, Wen, Tang, Li, Chen, Dubey, Faster CNNs with direct sparse convolutions and guided
    pruning, 2017, arXiv 1608.01409 [11].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Params, PyTree, Schedule, is_none
from jprune.graph.shrink.concrete import at_once
from jprune.masks import HoldState, held
from jprune.sparsify.surgery import FIXED, SurgeryState

PRUNED, STOPPED, RESTORED = 0, 1, 2
"""What a leaf is: still pruned, stopped at its zeros, or dense again."""


class RangeState(NamedTuple):
    """State of `within_range`.

    Attributes:
        step: how many were taken.
        strength: of the L1 penalty; 0 around surgery.
        dense: values of the leaves at the beginning; None where nothing is pruned.
        last: densities at the last look, likewise.
        phase: int, `PRUNED`, `STOPPED` or `RESTORED`, likewise.
        hold: the masks, read by `masks_of`; None around surgery, whose state has them.
        inner: state of the optimizer, or of the surgery.
    """

    step: jax.Array
    strength: jax.Array
    dense: PyTree
    last: PyTree
    phase: PyTree
    hold: PyTree
    inner: PyTree


def within_range(
    inner: optax.GradientTransformation,
    useful: PyTree,
    rate: float | Schedule,
    *,
    strength: float = 0.0,
    every: int,
    begin: int = 0,
    tolerance: float = 0.01,
) -> optax.GradientTransformationExtraArgs:
    """Prunes leaves by an L1 penalty, or by surgery, as long as their density is in a useful range.

    Every `every` steps the density x of each leaf that is still pruned, the fraction of its weights
    that are not 0, is compared with its range. At x <= x_min the leaf has the zeros it has from
    then on. At x >= x_max, if x has hardly changed since the last look, the leaf gets back the
    values that it had at the beginning, and trains on without a mask or penalty.

    Args:
        inner: the optimizer, or `dynamic_surgery` around it, whose masks are of the same leaves.
        useful: a tree like the parameters, (x_min, x_max) as an array [2]; None: never pruned.
        rate: size of a step, or step -> size, for the penalty.
        strength: of the penalty `strength * sum |w|`, a proximal step behind the optimizer, which
            makes zeros that may come back; 0 around surgery.
        every: steps from one look to the next.
        begin: step before which no leaf gets back its values: pruning takes a while to show.
        tolerance: by how much a steady density changes at most between two looks.

    Returns:
        An optax transformation, for `tx.update(gradients, state, params)`.

    Raises:
        ArgumentError: a number out of range; `update` without parameters.

    Example:
        >>> params = {"w": jnp.array([0.3, -0.1, 0.1, 0.9])}
        >>> tx = within_range(
        ...     optax.sgd(1.0), {"w": jnp.array([0.5, 0.8])}, 0.2, strength=1.0, every=1)
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": jnp.zeros(4)}, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> [round(float(x), 1) for x in params["w"]]  # stopped at half of the weights
        [0.1, 0.0, 0.0, 0.7]
    """
    if every < 1 or begin < 0 or strength < 0 or not 0 <= tolerance < 1:
        raise errors.ArgumentError(
            f"within_range(every={every}, begin={begin}, strength={strength}, "
            f"tolerance={tolerance}); every is 1 or more, begin and strength 0 or more, tolerance "
            "in [0, 1)."
        )
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> RangeState:
        of_inner = at_once(inner.init)(params)

        def first(params: Params) -> tuple[Any, ...]:
            each = lambda make: jax.tree.map(
                lambda x, p: None if x is None else make(p), useful, params, is_leaf=is_none
            )
            return (
                each(jnp.copy), each(lambda p: jnp.ones(())),
                each(lambda p: jnp.full((), PRUNED)), each(lambda p: jnp.ones(p.shape, bool)),
                jnp.zeros((), jnp.int32), jnp.asarray(strength, float),
            )  # fmt: skip

        dense, last, phase, masks, step, by = at_once(first)(params)
        hold = None if isinstance(of_inner, SurgeryState) else HoldState(masks)
        return RangeState(step, by, dense, last, phase, hold, of_inner)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "within_range needs the parameters: call tx.update(gradients, state, params)."
            )
        moves, of_inner = inner.update(updates, state.inner, params, **extra)
        size = rate(state.step) if callable(rate) else rate
        if state.hold is not None:
            moves = jax.tree.map(
                lambda phase, move, p: move if phase is None
                else jnp.where(phase == PRUNED, _shrunk(p + move, size * state.strength) - p, move),
                state.phase, moves, params, is_leaf=is_none,
            )  # fmt: skip
            # What the penalty brings to 0 is exactly 0: w + (-w), as `held` does it.
            moves = held(
                held(moves, params, _alive(state, moves, params)), params, state.hold.masks
            )
        step = state.step + 1
        of_inner, moves, after = jax.lax.cond(
            step % every == 0,
            lambda: _looked(state, step >= begin, useful, tolerance, moves, params, of_inner),
            lambda: (of_inner, moves, (state.last, state.phase, state.hold)),
        )
        last, phase, hold = after
        return moves, RangeState(step, state.strength, state.dense, last, phase, hold, of_inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _shrunk(weight: Any, by: Any) -> Any:
    # w <- sign(w) max(|w| - t lambda, 0)
    return jnp.sign(weight) * jnp.maximum(jnp.abs(weight) - by, 0)


def _alive(state: Any, moves: PyTree, params: Params) -> PyTree:
    """Which weights the step does not bring to 0, of leaves that are pruned."""
    one = lambda phase, move, p: None if phase is None else (p + move != 0) | (phase != PRUNED)
    return jax.tree.map(one, state.phase, moves, params, is_leaf=is_none)


def _looked(
    state: Any,
    late: Any,
    useful: PyTree,
    tolerance: float,
    moves: PyTree,
    params: Params,
    inner: Any,
) -> tuple[Any, PyTree, tuple[Any, Any, Any]]:
    """(inner state, updates, (densities, phases, masks)) after a look at all densities."""
    tree = lambda one, *trees: jax.tree.map(
        lambda phase, *leaves: None if phase is None else one(phase, *leaves),
        state.phase, *trees, is_leaf=is_none,
    )  # fmt: skip
    # x, the fraction of weights that are not 0
    now = tree(lambda phase, move, p: jnp.mean(p + move != 0), moves, params)

    def decided(phase: Any, x: Any, before: Any, ends: Any) -> Any:
        stop = x <= ends[0]
        back = late & (x >= ends[1]) & (jnp.abs(x - before) <= tolerance)
        new = jnp.where(stop, STOPPED, jnp.where(back, RESTORED, PRUNED))
        return jnp.where(phase == PRUNED, new, phase)

    phase = tree(decided, now, state.last, useful)
    fresh = tree(lambda old, new: (old == PRUNED) & (new == RESTORED), phase)
    moves = jax.tree.map(
        lambda new, move, p, dense: move if new is None else jnp.where(new, dense - p, move),
        fresh, moves, params, state.dense, is_leaf=is_none,
    )  # fmt: skip
    if state.hold is not None:
        masks = tree(
            lambda old, new, mask, move, p: jnp.where(
                (old == PRUNED) & (new == STOPPED), p + move != 0, mask
            ),
            phase, state.hold.masks, moves, params,
        )  # fmt: skip
        return inner, moves, (now, phase, HoldState(masks))
    # Surgery revises no leaf that is over; one that is dense again has no mask and nothing hidden.
    thresholds = tree(
        lambda old, new, t: jnp.where(new == PRUNED, t, FIXED), phase, inner.thresholds
    )
    masks = tree(lambda old, new, mask: mask | new, fresh, inner.hold.masks)
    hidden = tree(lambda old, new, value: jnp.where(new, 0, value), fresh, inner.hidden)
    inner = inner._replace(thresholds=thresholds, hold=HoldState(masks), hidden=hidden)
    return inner, moves, (now, phase, None)

"""Pruning with feedback: a mask that is revised from time to time, and dense weights behind it.

    g_t = dL/dw at m_t * w_t;   w_{t+1} = w_t - tau g_t, all of it;   every p steps m is taken anew

With the error e_t = m_t * w_t - w_t this is w_{t+1} = w_t - tau g(w_t + e_t): what pruning has done
wrong is fed back, and a weight that was pruned by mistake grows until it is back.

References:
    Lin, Stich, Barba, Dmitriev, Jaggi, Dynamic model pruning with feedback, 2020, arXiv 2006.07253
    [45].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Masks, Params, PyTree
from jprune.graph.shrink.concrete import as_array, at_once, full
from jprune.sparsify.hidden import changes, hidden_of, whole
from jprune.sparsify.rules import Rule


class FeedbackState(NamedTuple):
    """State of `feedback`.

    Attributes:
        step: how many were taken.
        masks: under which the net runs; None where nothing is pruned.
        hidden: values of the masked weights, 0 where a weight is alive; None likewise.
        back: how many weights have come back in all revisions, a float.
        inner: state of the optimizer.
    """

    step: jax.Array
    masks: Masks
    hidden: PyTree
    back: jax.Array
    inner: PyTree


def feedback(
    inner: optax.GradientTransformation, rule: Rule, *, every: int = 16, stop: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose parameters are w * m at all times; m is revised as w moves.

    The net runs on w * m, so its gradient is that at the masked weights, and `inner` applies it to
    *all* weights w: momentum and weight decay are of all weights too. The rule looks at all of w,
    at steps 0, every, 2 every, ..., and nowhere else: between them a step costs a few passes over
    the parameters more than one of `inner`.

    The first masks are made in `init`: where they are not all True, begin with `apply_masks(params,
    state.masks)`. `hidden.whole(state.masks, params, state.hidden)` is w.

    Args:
        inner: the optimizer of w.
        rule: makes the masks, from `masks_by`.
        every: steps from one revision to the next, the paper's p.
        stop: step from which on the masks stay; None: they never do.

    Returns:
        An optax transformation, for `tx.update(gradients, state, params)`; `state.masks` are the
        masks.

    Raises:
        ArgumentError: `every` below 1 or `stop` below 0; `update` without parameters.

    Example:
        >>> from jprune import allocate, criteria, schedules
        >>> from jprune.sparsify import masks_by
        >>> rule = masks_by(criteria.magnitude(), allocate.global_topk, schedules.one_shot(0.5))
        >>> tx = feedback(optax.sgd(0.1), rule, every=1)
        >>> params, goal = {"w": jnp.array([1.0, 0.0])}, jnp.array([0.2, 1.0])
        >>> state = tx.init({"w": jnp.array([1.0, 0.1])})
        >>> for _ in range(6):
        ...     gradient = {"w": params["w"] - goal}
        ...     updates, state = tx.update(gradient, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> [[round(float(x), 3) for x in both["w"]] for both in (params, state.hidden)]
        [[0.0, 0.7], [0.625, 0.0]]
    """
    if every < 1 or (stop is not None and stop < 0):
        raise errors.ArgumentError(
            f"feedback(every={every}, stop={stop}); every is 1 or more, stop is 0 or more, or None."
        )
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> FeedbackState:
        step = full((), 0, jnp.int32)
        masks = jax.tree.map(as_array, rule(params, step))
        hidden = hidden_of(masks, params)
        return FeedbackState(step, masks, hidden, full((), 0.0), at_once(inner.init)(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "feedback needs the parameters: call tx.update(gradients, state, params)."
            )
        old, step = state.masks, state.step + 1
        weights = whole(old, params, state.hidden)
        # w <- w - tau g(m * w): the gradient is not multiplied by m
        moves, inner_state = inner.update(updates, state.inner, weights, **extra)
        moved = optax.apply_updates(weights, moves)
        due = step % every == 0
        due = due if stop is None else due & (step < stop)
        # m <- the largest |w|, every p steps
        new, back = jax.lax.cond(
            due, lambda: _revised(rule(moved, step, **extra), old), lambda: (old, jnp.zeros(()))
        )
        hidden = hidden_of(new, moved)
        after = FeedbackState(step, new, hidden, state.back + back, inner_state)
        return changes(new, old, params, moves, moved), after

    return optax.GradientTransformationExtraArgs(init, update)


def _revised(new: Masks, old: Masks) -> tuple[Masks, jax.Array]:
    """New masks, and how many weights come back with them."""
    back = jax.tree.map(lambda mask, before: jnp.sum(mask & ~before, dtype=jnp.float32), new, old)
    return new, sum(jax.tree.leaves(back), jnp.zeros(()))


def hidden_fraction(weights: Params, masks: Masks) -> jax.Array:
    """The fraction ||w - m * w||^2 / ||w||^2 of the weights that is hidden.

    In [0, 1]; the paper's bound on what pruning costs grows with it.

    Example:
        >>> w = {"w": jnp.array([3.0, 1.0, -2.0, 0.5])}
        >>> print(hidden_fraction(w, {"w": jnp.array([True, False, True, False])}).round(7))
        0.0877193
    """
    hidden = jax.tree.leaves(hidden_of(masks, weights))
    taken = jax.tree.leaves(hidden_of(jax.tree.map(jnp.zeros_like, masks), weights))
    square = lambda leaves: sum((jnp.sum(leaf**2) for leaf in leaves), jnp.zeros(()))
    return square(hidden) / square(taken)

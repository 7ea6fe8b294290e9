"""Movement: weights are scored while they train, and those that move away from 0 stay.

References:
    Sanh, Wolf, Rush, Movement pruning: adaptive sparsity by fine-tuning, 2020, arXiv 2005.07683.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Masks, Params, PyTree, Schedule, Scores, is_none
from jprune.graph.shrink.concrete import at_once, full
from jprune.masks import HoldState, as_masks
from jprune.sparsify.hidden import changes, hidden_of, whole


class MovementState(NamedTuple):
    """State of `movement`.

    Attributes:
        step: how many were taken.
        scores: S of every weight that may go, float32; None elsewhere.
        hidden: values of the masked weights, 0 where a weight is alive; None where nothing is
            masked.
        hold: the masks, read by `masks_of`.
        learned: state of the scores' optimizer.
        inner: state of the weights' optimizer.
    """

    step: jax.Array
    scores: Scores
    hidden: PyTree
    hold: HoldState
    learned: PyTree
    inner: PyTree


def movement(
    inner: optax.GradientTransformation,
    learn: optax.GradientTransformation,
    choose: Callable[[Scores, Any], Masks],
    prunable: Masks,
    *,
    strength: float | Schedule = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose parameters are w * m(S) at all times, S being scores that are learned.

    The net runs on w * m. Scores get the gradient of the masked product straight through the
    choice, dL/dS = dL/d(w m) w, those of masked weights too: S falls where a step of the weight
    goes towards 0 and rises where it goes away from it. Weights get m dL/d(w m): a masked one keeps
    its value (but for momentum and decay in `inner`), and has it again when it comes back.

    Args:
        inner: the optimizer of w.
        learn: the optimizer of S, such as `optax.sgd(0.01)`; S begins at 0.
        choose: `(scores, step) -> masks`, jittable; step counts from 0, at which nothing has moved.
        prunable: tree like the parameters, bool; a None leaf is not pruned.
        strength: lambda of a penalty on the mean of sigmoid(S) over the weights of a leaf, in the
            mean over leaves (soft movement pruning); or step -> lambda.

    Returns:
        An optax transformation, for `tx.update(gradients, state, params)`. Begin with
        `apply_masks(params, masks_of(state))`.

    Raises:
        ArgumentError: a negative strength; `update` without parameters.
        StructureError: `prunable` does not fit the parameters (in `init`).

    Example:
        >>> params = {"w": jnp.array([2.0, -1.0])}
        >>> best = lambda scores, step: jax.tree.map(lambda s: s == s.max(), scores)
        >>> tx = movement(optax.sgd(0.1), optax.sgd(0.01), best, {"w": jnp.ones(2, bool)})
        >>> _, state = tx.update({"w": jnp.array([0.5, 0.5])}, tx.init(params), params)
        >>> state.scores["w"].round(4).tolist(), state.hold.masks["w"].tolist()
        ([-0.009999999776482582, 0.004999999888241291], [False, True])
    """
    if not callable(strength) and not strength >= 0:
        raise errors.ArgumentError(f"movement(strength={strength}); it is 0 or more.")
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> MovementState:
        zeros = lambda mask: None if mask is None else full(mask.shape, 0, jnp.float32)
        scores = jax.tree.map(zeros, as_masks(prunable, params), is_leaf=is_none)
        step = jnp.zeros((), jnp.int32)
        masks = as_masks(choose(scores, step), params)
        hold, hidden = HoldState(masks), hidden_of(masks, params)
        return MovementState(
            step, scores, hidden, hold, at_once(learn.init)(scores), at_once(inner.init)(params)
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "movement needs the parameters: call tx.update(gradients, state, params)."
            )
        old, step = state.hold.masks, state.step + 1
        weights = whole(old, params, state.hidden)
        rate = strength(state.step) if callable(strength) else strength
        count = max(1, len(jax.tree.leaves(old)))

        def slope(mask: Any, gradient: Any, weight: Any, score: Any) -> Any:
            if mask is None:
                return None
            # d/dS of lambda mean sigmoid(S) = lambda sigmoid(S) (1 - sigmoid(S)) / n
            chance = jax.nn.sigmoid(score)
            penalty = rate * chance * (1 - chance) / (max(1, score.size) * count)
            # dL/dS = dL/d(w m) w
            return (gradient * weight).real.astype(score.dtype) + penalty

        slopes = jax.tree.map(slope, old, updates, weights, state.scores, is_leaf=is_none)
        steps, learned = learn.update(slopes, state.learned, state.scores)
        scores = optax.apply_updates(state.scores, steps)
        # dL/dw = m dL/d(w m)
        alone = lambda mask, gradient: gradient if mask is None else jnp.where(mask, gradient, 0)
        seen = jax.tree.map(alone, old, updates, is_leaf=is_none)
        moves, inner_state = inner.update(seen, state.inner, weights, **extra)
        moved = optax.apply_updates(weights, moves)
        new = choose(scores, step)
        hold, hidden = HoldState(new), hidden_of(new, moved)
        after = MovementState(step, scores, hidden, hold, learned, inner_state)
        return changes(new, old, params, moves, moved), after

    return optax.GradientTransformationExtraArgs(init, update)

"""The refined straight-through estimator: masks follow the weights, masked weights are drawn to 0.

References:
    Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun, Li, Learning N:M fine-grained structured sparse neural
    networks from scratch, 2021, arXiv 2102.04010 (SR-STE).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Masks, Params, PyTree, is_none
from jprune.graph.shrink.concrete import at_once
from jprune.masks import HoldState, as_masks
from jprune.sparsify.hidden import changes, hidden_of, whole


class RefinedState(NamedTuple):
    """State of `refined_ste`.

    Attributes:
        hidden: values of the masked weights, 0 where a weight is alive; None where nothing is
            masked.
        hold: the masks, read by `masks_of`.
        inner: state of the optimizer.
    """

    hidden: PyTree
    hold: HoldState
    inner: PyTree


def refined_ste(
    inner: optax.GradientTransformation,
    choose: Callable[[Params], Masks],
    strength: float = 2e-4,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose parameters are w * m at all times; m is chosen anew of w in every step.

    The net runs on w * m, so its gradient is that at the masked weights, and `inner` applies it to
    *all* weights w (straight-through), with strength * w more where a weight is masked: what is
    masked falls towards 0, and the masks change less and less.

    The first choice happens in `init`, so begin with `apply_masks(params, masks_of(state))`.

    Args:
        inner: the optimizer of w; weight decay in it acts on all weights.
        choose: `weights -> masks`, jittable: bool masks like the parameters, None where a leaf is
            not pruned.
        strength: of the pull on masked weights; 0 is the plain straight-through estimator.

    Returns:
        An optax transformation, for `tx.update(gradients, state, params)`.

    Raises:
        ArgumentError: a negative strength; `update` without parameters.
        StructureError: masks that do not fit the parameters (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> params = {"w": jnp.array([[0.1], [-0.4], [0.3], [0.2]])}
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], params, jnp.ones(4))
        >>> two_of_four = lambda v: blocks.n_of_m(groups, jax.tree.map(jnp.abs, v), 2, 4)
        >>> tx = refined_ste(optax.sgd(0.1), two_of_four)
        >>> print(jprune.apply_masks(params, jprune.masks_of(tx.init(params)))["w"][:, 0])
        [ 0.  -0.4  0.3  0. ]
    """
    if not strength >= 0:
        raise errors.ArgumentError(f"refined_ste(strength={strength}); it is 0 or more.")
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> RefinedState:
        masks = as_masks(choose(params), params)
        return RefinedState(hidden_of(masks, params), HoldState(masks), at_once(inner.init)(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "refined_ste needs the parameters: call tx.update(gradients, state, params)."
            )
        old = state.hold.masks
        weights = whole(old, params, state.hidden)

        def pulled(mask: Any, gradient: Any, weight: Any) -> Any:
            # g(w m) + lambda (1 - m) w
            return gradient if mask is None else gradient + strength * jnp.where(mask, 0, weight)

        pull = jax.tree.map(pulled, old, updates, weights, is_leaf=is_none)
        moves, inner_state = inner.update(pull, state.inner, weights, **extra)
        moved = optax.apply_updates(weights, moves)
        new = choose(moved)
        after = RefinedState(hidden_of(new, moved), HoldState(new), inner_state)
        return changes(new, old, params, moves, moved), after

    return optax.GradientTransformationExtraArgs(init, update)

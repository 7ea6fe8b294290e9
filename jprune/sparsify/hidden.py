"""Weights behind a mask: the parameters are w * m, and what the mask hides is kept beside them.

What `dynamic_surgery` and `feedback` share: both move all of w by the gradient at w * m.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune.base import Masks, Params, PyTree, is_none


def whole(masks: Masks, params: Params, hidden: PyTree) -> Params:
    """w: the parameters where they are alive, and the hidden values of the masked ones.

    Example:
        >>> masks = {"w": jnp.array([True, False])}
        >>> params, hidden = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}
        >>> whole(masks, params, hidden)["w"].tolist()
        [1.0, 2.0]
    """
    one = lambda mask, param, worth: param if mask is None else jnp.where(mask, param, worth)
    return jax.tree.map(one, masks, params, hidden, is_leaf=is_none)


def hidden_by(masks: Masks, weights: Params) -> PyTree:
    """The values of the masked weights, 0 where a weight is alive; None where nothing is masked."""
    one = lambda mask, weight: None if mask is None else jnp.where(mask, 0, weight)
    return jax.tree.map(one, masks, weights, is_leaf=is_none)


def updates_to(new: Masks, old: Masks, params: Params, moves: PyTree, moved: Params) -> PyTree:
    """Updates that bring the parameters w * m to the moved weights under new masks.

    Args:
        new: masks after the step.
        old: masks before it.
        params: w * m before the step.
        moves: of all weights, by the optimizer.
        moved: all weights after the step.
    """

    def one(mask: Any, before: Any, param: Any, move: Any, weight: Any) -> Any:
        if mask is None:
            return move
        # A weight that stays takes the very step that the optimizer says, to the last bit.
        return jnp.where(mask, jnp.where(before, move, weight), -param)

    return jax.tree.map(one, new, old, params, moves, moved, is_leaf=is_none)

"""Values of masked weights, kept in the state of an optimizer whose parameters are w * m.

Shared by the transformations whose masked weights come back as what they have become.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune.base import Masks, Params, PyTree, is_none
from jprune.graph.shrink.concrete import on_host


def whole(masks: Masks, params: Params, hidden: PyTree) -> PyTree:
    """w: the parameters where they are alive, and the hidden values of the masked ones.

    Example:
        >>> whole({"w": jnp.array([True, False])}, {"w": jnp.array([3.0, 0.0])},
        ...       {"w": jnp.array([0.0, 5.0])})["w"].tolist()
        [3.0, 5.0]
    """
    one = lambda m, p, h: p if m is None else jnp.where(m, p, h)
    return jax.tree.map(one, masks, params, hidden, is_leaf=is_none)


def hidden_of(masks: Masks, weights: PyTree) -> PyTree:
    """Values of the masked weights, 0 where a weight is alive; None where nothing is masked.

    Example:
        >>> hidden_of({"w": jnp.array([True, False])}, {"w": jnp.array([3.0, 5.0])})["w"].tolist()
        [0.0, 5.0]
    """
    hide = on_host(lambda xnp, m, w: xnp.where(m, xnp.zeros((), w.dtype), w))
    one = lambda m, w: None if m is None else hide(m, w)
    return jax.tree.map(one, masks, weights, is_leaf=is_none)


def changes(new: Masks, old: Masks, params: Params, moves: PyTree, moved: PyTree) -> PyTree:
    """Updates that bring parameters w * m to the moved weights under new masks.

    Args:
        new: masks after the step.
        old: masks before it.
        params: w * m.
        moves: of the weights w, as the optimizer says.
        moved: w + moves.
    """

    def one(mask: Any, before: Any, param: Any, move: Any, weight: Any) -> Any:
        if mask is None:
            return move
        # A weight that stays takes the very step that the optimizer says, to the last bit.
        return jnp.where(mask, jnp.where(before, move, weight), -param)

    return jax.tree.map(one, new, old, params, moves, moved, is_leaf=is_none)

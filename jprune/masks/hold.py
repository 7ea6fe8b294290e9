"""Keeps pruned weights exactly zero: the last link of an optax chain."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Masks, Params, PyTree, is_none
from jprune.graph.shrink.concrete import as_array, on_host


class HoldState(NamedTuple):
    """Masks in an optimizer state: arrays like any other, so a new mask does not recompile.

    Attributes:
        masks: like the parameters; stand-ins where `optax.masked` gives stand-ins for them.
    """

    masks: Masks


def _is_stand_in(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def as_masks(masks: Masks, params: Params) -> Masks:
    """Masks as bool arrays of the parameters' structure and shapes.

    Raises:
        StructureError: another structure, a leaf of another shape, or masks that are not bool.
    """

    def one(path: Any, mask: Any, param: Any) -> Any:
        if mask is None or _is_stand_in(mask):
            return mask
        mask = as_array(mask)
        if mask.shape != jnp.shape(param) or mask.dtype != jnp.bool_:
            raise errors.StructureError(
                f"the mask at {jax.tree_util.keystr(path, simple=True, separator='/')} has shape "
                f"{mask.shape} and type {mask.dtype}; the parameter has shape {jnp.shape(param)}, "
                "and masks are bool, True keeps."
            )
        return mask

    try:
        # `optax.masked` and `optax.multi_transform` give some parameters only, and stand-ins for
        # the others: what is not there is not held.
        if any(map(_is_stand_in, jax.tree.leaves(params, is_leaf=_is_stand_in))):
            absent = lambda param, mask: param if _is_stand_in(param) else mask
            masks = jax.tree.map(absent, params, masks, is_leaf=_is_stand_in)
        return jax.tree_util.tree_map_with_path(one, masks, params, is_leaf=is_none)
    except errors.StructureError:
        raise
    # JAX's message names the branches that differ; the remedy is for the common mistake.
    except (ValueError, TypeError) as error:
        raise errors.StructureError(
            f"the masks are not a tree like the parameters: {error} If the optimizer trains "
            'variables["params"], write hold(expand(groups, masks)["params"]).'
        ) from None


def held(updates: PyTree, params: Params, masks: Masks) -> PyTree:
    """Updates that bring masked parameters to exactly zero."""
    # w + (-w) = 0 exactly, where (m - 1) w would leave what the optimizer adds.
    back = on_host(
        lambda xnp, mask, update, param: xnp.where(mask, update, -param.astype(update.dtype))
    )

    def one(mask: Any, update: Any, param: Any) -> Any:
        return update if mask is None else back(mask, update, param)

    return jax.tree.map(one, masks, updates, params, is_leaf=is_none)


def hold(masks: Masks) -> optax.GradientTransformationExtraArgs:
    """Keeps pruned weights at exactly 0: returns minus the parameter where the mask is False.

    It must be the last link of the chain: a transformation behind it would move the zeros. The
    chain may stand inside `optax.masked`, `optax.multi_transform`, `optax.MultiSteps` and other
    wrappers. Pruned weights still have a gradient, which whatever looks at all of a leaf or a net
    counts (a clipped global norm, a trust ratio, a line search); differentiate
    `loss(apply_masks(variables, masks))`, and they have none.

    Args:
        masks: tree like the trained parameters, bool, True keeps; a None leaf is not prunable.

    Returns:
        An optax transformation with the masks in its state; see `with_masks` for new ones.

    Raises:
        StructureError: masks that do not fit the parameters (in `init`).
        ArgumentError: `update` was called without the parameters.

    Example:
        >>> params = {"w": jnp.array([1.0, 2.0])}
        >>> tx = optax.chain(optax.sgd(0.1, 0.9), hold({"w": jnp.array([True, False])}))
        >>> updates, _ = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["w"]
        Array([0.9, 0. ], dtype=float32)
    """

    def init(params: Params) -> HoldState:
        return HoldState(as_masks(masks, params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        if params is None:
            raise errors.ArgumentError(
                "hold needs the parameters: call tx.update(gradients, state, params)."
            )
        return held(updates, params, state.masks), state

    return optax.GradientTransformationExtraArgs(init, update)


def _is_hold(node: Any) -> bool:
    return isinstance(node, HoldState)


def masks_of(opt_state: PyTree) -> Masks:
    """The masks in an optimizer state; None where it holds none.

    Raises:
        StructureError: the state holds no masks, or several for one leaf.
    """
    states = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_hold) if _is_hold(node)]

    def one(*masks: Any) -> Any:
        # Of the parts of `optax.multi_transform` one holds a leaf; the others have a stand-in.
        own = [mask for mask in masks if not _is_stand_in(mask)]
        if len(own) > 1:
            raise ValueError
        return own[0] if own else None

    try:
        trees = (state.masks for state in states)
        return jax.tree.map(one, *trees, is_leaf=lambda node: node is None or _is_stand_in(node))
    except (ValueError, TypeError):
        raise errors.StructureError(
            f"the optimizer state has {len(states)} sets of masks; masks_of needs one, or one for "
            "each leaf. End the chain with one hold(masks)."
        ) from None


def with_masks(opt_state: PyTree, masks: Masks) -> PyTree:
    """The optimizer state with other masks of the same structure; nothing recompiles.

    Raises:
        StructureError: the state holds no masks or several, or the new ones do not fit the old
            ones.
    """
    masks_of(opt_state)
    return jax.tree.map(
        lambda node: _renewed(node, masks) if _is_hold(node) else node,
        opt_state,
        is_leaf=_is_hold,
    )


def _renewed(state: HoldState, masks: Masks) -> HoldState:
    before, after = state.masks, as_masks(masks, state.masks)
    # None is no leaf for JAX: without `is_none` trees with None at other places look alike.
    places = [jax.tree.structure(tree, is_leaf=is_none) for tree in (before, after)]
    if jax.tree.structure(before) != jax.tree.structure(after) or places[0] != places[1]:
        raise errors.StructureError(
            "the new masks have None where the old ones have arrays, or the other way round; write "
            "masks of ones where nothing is pruned yet."
        )
    return HoldState(after)

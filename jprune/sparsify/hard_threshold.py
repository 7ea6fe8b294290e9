"""Iterative hard thresholding: sparse phases, and short dense ones between them.

    sparse: W <- H_k(W), then steps of the k weights that are left;   dense: steps of all weights

H_k keeps the k largest |w| of every layer. The support that it finds changes in the dense phases,
in which weights at 0 begin to move again.

References:
    Jin, Yuan, Feng, Yan, Training skinny deep neural networks with iterative hard thresholding
    methods, 2016, arXiv 1607.05423 [16].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Masks, Params, PyTree, is_none
from jprune.graph.shrink.concrete import as_array, at_once
from jprune.sparsify.rules import Rule


class HardThresholdState(NamedTuple):
    """State of `hard_threshold`.

    Attributes:
        step: how many were taken.
        masks: what may move: the support in a sparse phase, everything in a dense one; None where
            nothing is pruned.
        inner: state of the optimizer.
    """

    step: jax.Array
    masks: Masks
    inner: PyTree


def is_sparse(step: Any, sparse_steps: int, dense_steps: int, steps: int) -> Any:
    """Whether a step is in a sparse phase: the first one is, and so are the last `sparse_steps`.

    No dense phase begins that a whole sparse one could not follow; a training too short for two
    sparse phases has one.

    Args:
        step: from 0.
        sparse_steps: of a sparse phase.
        dense_steps: of a dense phase.
        steps: of the training.

    Example:
        >>> "".join("sd"[not is_sparse(step, 3, 2, 14)] for step in range(14))
        'sssddsssddssss'
    """
    cycle = sparse_steps + dense_steps
    # The last sparse phase goes on to the end.
    last = max(steps - sparse_steps, 0) // cycle * cycle
    return (step % cycle < sparse_steps) | (step >= last)


def hard_threshold(
    inner: optax.GradientTransformation,
    rule: Rule,
    *,
    sparse_steps: int,
    dense_steps: int,
    steps: int,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer of k-sparse parameters, with dense phases in which the support can change.

    In a sparse phase what is outside of the support is exactly 0 after every step, whatever
    momentum and weight decay do: `inner` sees zeros there, as gradient and as weight, and its
    moments are set to 0 when the phase begins. In the dense phase all of them move, from 0. The
    training ends in a sparse phase.

    The first support is found in `init`: begin with `apply_masks(params, state.masks)`, or leave
    it to the first step.

    Args:
        inner: the optimizer. Its moments are found as trees like the parameters.
        rule: makes the support, from `masks_by`, at a constant density.
        sparse_steps: of a sparse phase.
        dense_steps: of a dense phase. It must be short: run to the dense minimum, the weights that
            were cut come back small, and the support never changes.
        steps: of the training; `is_sparse` says how they are divided.

    Returns:
        An optax transformation, for `tx.update(gradients, state, params)`; `state.masks` is the
        support in the end.

    Raises:
        ArgumentError: a phase without steps; `update` without parameters.

    Example:
        >>> from jprune import allocate, criteria, schedules
        >>> from jprune.sparsify import masks_by
        >>> rule = masks_by(criteria.magnitude(), allocate.uniform, schedules.one_shot(0.5))
        >>> tx = hard_threshold(optax.sgd(0.5), rule, sparse_steps=1, dense_steps=1, steps=3)
        >>> params = {"w": jnp.array([1.0, 0.5])}
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     gradient = {"w": params["w"] - jnp.array([0.4, 2.0])}
        ...     updates, state = tx.update(gradient, state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print([round(float(x), 3) for x in params["w"]])
        [0.7, 0.0]
        [0.0, 1.0]
        [0.0, 1.5]
    """
    if sparse_steps < 1 or dense_steps < 1 or steps < 1:
        raise errors.ArgumentError(
            f"hard_threshold(sparse_steps={sparse_steps}, dense_steps={dense_steps}, "
            f"steps={steps}); each is 1 or more."
        )
    inner = optax.with_extra_args_support(inner)
    sparse = lambda step: is_sparse(step, sparse_steps, dense_steps, steps)

    def init(params: Params) -> HardThresholdState:
        step = jnp.zeros((), jnp.int32)
        masks = jax.tree.map(as_array, rule(params, step))
        return HardThresholdState(step, masks, at_once(inner.init)(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "hard_threshold needs the parameters: call tx.update(gradients, state, params)."
            )
        masks, step = state.masks, state.step + 1
        now, then = sparse(state.step), sparse(step)
        seen = (_only(masks, tree) for tree in (updates, params))
        gradient, weights = seen
        moves, inner_state = inner.update(gradient, state.inner, weights, **extra)
        moved = optax.apply_updates(weights, moves)
        # m <- supp(H_k(W)) where a sparse phase begins, everything where a dense one does
        new = jax.lax.cond(
            then & ~now,
            lambda: rule(moved, step, **extra),
            lambda: jax.tree.map(lambda mask: mask | (now & ~then), masks),
        )
        # W <- H_k(W); what was outside before stays at 0 in this step.
        both = jax.tree.map(lambda mask, before: mask & before, new, masks)
        arrive = lambda m, p, u: u if m is None else jnp.where(m, u, -p)
        result = jax.tree.map(arrive, both, params, moves, is_leaf=is_none)
        inner_state = _moments(lambda tree: _only(both, tree), inner_state, params)
        return result, HardThresholdState(step, new, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _only(masks: Masks, tree: PyTree) -> PyTree:
    """A tree like the parameters, 0 outside of the masks."""
    one = lambda mask, leaf: leaf if mask is None else jnp.where(mask, leaf, jnp.zeros_like(leaf))
    return jax.tree.map(one, masks, tree, is_leaf=is_none)


def _moments(function: Any, state: PyTree, params: Params) -> PyTree:
    """An optimizer's state with its trees like the parameters mapped: moments, not masks."""
    structure, shapes = jax.tree.structure(params), [jnp.shape(p) for p in jax.tree.leaves(params)]

    def is_like(node: Any) -> bool:
        if jax.tree.structure(node) != structure:
            return False
        leaves = jax.tree.leaves(node)
        floats = all(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves)
        return floats and [jnp.shape(leaf) for leaf in leaves] == shapes

    return jax.tree.map(
        lambda node: function(node) if is_like(node) else node, state, is_leaf=is_like
    )

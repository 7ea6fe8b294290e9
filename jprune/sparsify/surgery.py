"""Dynamic network surgery: masks are revised while the net trains, so weights can come back.

References:
    Guo, Yao, Chen, Dynamic network surgery for efficient DNNs, 2016, arXiv 1608.04493 [7]; details
    as in the authors' Caffe code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Masks, Params, PyTree, is_none
from jprune.graph.shrink.concrete import at_once
from jprune.masks import HoldState, as_masks
from jprune.sparsify.hidden import changes, hidden_of, whole
from jprune.sparsify.thresholds import leaves_by_layer, thresholds_of

CUT, BACK = 0.9, 1.1
"""A weight goes at |w| <= CUT t and comes back at |w| > BACK t (the paper's a and b)."""


class SurgeryState(NamedTuple):
    """State of `dynamic_surgery`.

    Attributes:
        step: how many were taken.
        key: uint32, so that checkpoints can hold it.
        thresholds: t of every masked leaf, fixed at the beginning; None elsewhere.
        hidden: values of the masked weights, 0 where a weight is alive; None where nothing is
            masked.
        hold: the masks, read by `masks_of`.
        inner: state of the optimizer.
    """

    step: jax.Array
    key: jax.Array
    thresholds: PyTree
    hidden: PyTree
    hold: HoldState
    inner: PyTree


def dynamic_surgery(
    inner: optax.GradientTransformation,
    masks: Masks,
    c_rate: PyTree,
    key: jax.Array,
    *,
    gamma: float = 1e-4,
    power: float = 1.0,
    stop: int,
    splice: bool = True,
    layers: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose parameters are w * m at all times; m is revised as w moves.

    The net runs on w * m, so its gradient is that at the masked weights, and `inner` applies it to
    *all* weights w (straight-through): those of masked ones are kept in the state. A layer has one
    threshold t = max(mu + c sd, 0), mu and sd being those of |w| over its weights that are not 0,
    before the first step. In iteration i < stop, with probability (1 + gamma i)^-power and by
    layer, weights with |w| <= 0.9 t go and masked ones with |w| > 1.1 t come back.

    The first revision happens in `init`, so begin with `apply_masks(params, masks_of(state))`.

    Args:
        inner: the optimizer of w; weight decay in it acts on all weights.
        masks: tree like the parameters, bool, True to begin with; a None leaf is not pruned.
        c_rate: c of all layers, or a tree like the masks with a number per leaf.
        key: for the draws.
        gamma: how fast revisions become rare.
        power: of the same.
        stop: iteration from which the masks are fixed.
        splice: False is the control that never brings a weight back: masked ones take no gradient.
        layers: a tree like the masks, the number of its layer at every leaf (`layer_numbers` has
            them for the variables of a net); None: every leaf is a layer by itself.

    Returns:
        An optax transformation, for `tx.update(gradients, state, params)`.

    Raises:
        ArgumentError: negative `gamma`, `power` or `stop`; `update` without parameters.
        StructureError: masks that do not fit the parameters (in `init`).

    Example:
        >>> from jprune import apply_masks, masks_of
        >>> params = {"w": jnp.array([0.2, 0.5, 1.0, 2.0])}
        >>> masks = {"w": jnp.ones(4, bool)}
        >>> tx = dynamic_surgery(optax.sgd(0.1), masks, 0.0, jax.random.key(0), stop=10)
        >>> state = tx.init(params)
        >>> apply_masks(params, masks_of(state))["w"]
        Array([0., 0., 1., 2.], dtype=float32)
    """
    if gamma < 0 or power < 0 or stop < 0:
        raise errors.ArgumentError(
            f"dynamic_surgery(gamma={gamma}, power={power}, stop={stop}); all three are 0 or more."
        )
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SurgeryState:
        start = as_masks(masks, params)
        data = key if key.dtype == jnp.uint32 else jax.random.key_data(key)
        step = jnp.zeros((), jnp.int32)
        state = SurgeryState(step, data, None, None, HoldState(start), at_once(inner.init)(params))
        return begun(state, params, start, c_rate, layers, revise=stop > 0)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "dynamic_surgery needs the parameters: call tx.update(gradients, state, params)."
            )
        old, step = state.hold.masks, state.step + 1
        # w: the parameters where they are alive, and the hidden values of the masked ones
        weights = whole(old, params, state.hidden)
        moves, inner_state = inner.update(updates, state.inner, weights, **extra)
        moved = optax.apply_updates(weights, moves)
        if not splice:
            moved = jax.tree.map(_alone, old, moved, is_leaf=is_none)
        # sigma(i), the probability of a revision in iteration i; 0 from iteration `stop` on
        chance = jnp.where(step < stop, revision_chance(step, gamma, power), 0.0)
        # Of the step's number: a run that was stopped and
        # resumed draws what an undisturbed one does.
        of_step = jax.random.fold_in(jax.random.wrap_key_data(state.key), step)
        new = _revise(old, moved, state.thresholds, chance, of_step, layers)
        hidden = hidden_of(new, moved)
        after = SurgeryState(step, state.key, state.thresholds, hidden, HoldState(new), inner_state)
        return changes(new, old, params, moves, moved), after

    return optax.GradientTransformationExtraArgs(init, update)


def begun(
    state: SurgeryState,
    params: Params,
    masks: Masks,
    c_rate: PyTree,
    layers: PyTree = None,
    revise: bool = True,
) -> SurgeryState:
    """A state of `dynamic_surgery` with other masks, before the first step; nothing recompiles.

    Args:
        state: of the same transformation.
        params: all of them, masked or not.
        masks: tree like the parameters, True to begin with; a None leaf is not pruned.
        c_rate: as `dynamic_surgery` takes it.
        layers: as `dynamic_surgery` takes them.
        revise: whether the first revision happens here.
    """

    def first(params: Params, masks: Masks) -> tuple[PyTree, Masks]:
        thresholds = thresholds_of(params, masks, c_rate, layers)
        if revise:
            masks = jax.tree.map(_revised, masks, params, thresholds, is_leaf=is_none)
        return thresholds, masks

    thresholds, masks = at_once(first)(params, masks)
    hidden = hidden_of(masks, params)
    return state._replace(thresholds=thresholds, hidden=hidden, hold=HoldState(masks))


def revision_chance(step: Any, gamma: float, power: float) -> jax.Array:
    """sigma(i) = (1 + gamma i)^-power.

    Example:
        >>> [round(float(revision_chance(i, 1e-4, 1.0)), 6) for i in (0, 1000, 10000, 14000)]
        [1.0, 0.909091, 0.5, 0.416667]
    """
    return (1.0 + gamma * jnp.asarray(step, jnp.float32)) ** -power


def _revise(
    masks: Masks, weights: PyTree, thresholds: PyTree, chance: Any, key: Any, layers: PyTree
) -> Masks:
    """New masks of the layers that a draw chooses; the others keep theirs."""
    structure = jax.tree.structure(masks, is_leaf=is_none)
    trees = [structure.flatten_up_to(tree) for tree in (masks, weights, thresholds)]
    new_masks = list(trees[0])
    for layer, numbers in enumerate(leaves_by_layer(masks, layers)):
        parts = [[leaves[number] for leaves in trees] for number in numbers]
        # A draw for every layer, as in the authors' code.
        drawn = jax.random.bernoulli(jax.random.fold_in(key, layer), chance)
        chosen = jax.lax.cond(
            drawn,
            lambda parts: [_revised(*leaf) for leaf in parts],
            lambda parts: [leaf[0] for leaf in parts],
            parts,
        )
        for number, mask in zip(numbers, chosen):
            new_masks[number] = mask
    return structure.unflatten(new_masks)


def _revised(mask: Any, weight: Any, threshold: Any) -> Any:
    """A leaf's new mask; between the two thresholds it does not change (hysteresis)."""
    if mask is None:
        return None
    size = jnp.abs(weight)
    # m <- 0 where |w| <= a t;  m <- 1 where |w| > b t;  m as it was between them
    return jnp.where(mask, size > CUT * threshold, size > BACK * threshold)


def _alone(mask: Any, weight: Any) -> Any:
    return weight if mask is None else jnp.where(mask, weight, 0)

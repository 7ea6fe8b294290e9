"""Drop and grow: a sparse net whose weights move to other places while it trains.

References:
    At random: Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta, Scalable training of artificial
    neural networks with adaptive sparse connectivity, 2018, arXiv 1707.04780. By the gradient:
    Evci, Gale, Menick, Castro, Elsen, Rigging the lottery, 2020, arXiv 1911.11134; details as in
    the authors' code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Masks, Params, PyTree, is_none
from jprune.graph.shrink.concrete import at_once
from jprune.masks import HoldState, as_masks, held, keep_best

GROW = ("gradient", "random")
ANNEAL: dict[str, Callable[[Any], Any]] = {
    # f_t = (alpha / 2) (1 + cos(pi t / T_end))
    "cosine": lambda time: (1 + jnp.cos(jnp.pi * time)) / 2,
    "constant": lambda time: jnp.ones_like(time),
}


class DropGrowState(NamedTuple):
    """State of `drop_and_grow`.

    Attributes:
        step: how many were taken, those without a step of the weights included.
        key: uint32, so that checkpoints can hold it.
        hold: the masks, read by `masks_of`.
        inner: state of the optimizer.
    """

    step: jax.Array
    key: jax.Array
    hold: HoldState
    inner: PyTree


def drop_and_grow(
    inner: optax.GradientTransformation,
    masks: Masks,
    key: jax.Array,
    *,
    every: int,
    stop: int,
    begin: int = 0,
    fraction: float = 0.3,
    grow: str = "gradient",
    anneal: str = "cosine",
    noise: float = 1e-5,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer under masks that move: as many weights come back as go, in every leaf.

    At steps begin, begin + every, ... < stop, a fraction f_t of the weights of each leaf is
    dropped, the smallest |w|; as many grow where no weight has stayed, those just dropped included.
    A weight that grows begins at 0, with 0 in the accumulators of `inner`; one that was dropped and
    grows again at once goes on as if nothing had been. Weights take no step then. At all other
    steps `inner` moves the weights that are there, and sees no gradient of the others.

    The gradient has to be that of the masked weights, not multiplied by the mask: at masked weights
    it says what they would be worth. `jax.grad(loss)(params)` is, for masked parameters are 0.

    Args:
        inner: the optimizer. Those of its accumulators that are trees like the parameters begin
            anew with a weight.
        masks: tree like the parameters, bool, True keeps; a None leaf is not pruned.
        key: for what is drawn.
        every: steps from one exchange to the next.
        stop: step from which the masks are fixed, T_end.
        begin: step of the first exchange.
        fraction: of the weights of a leaf that go at first, alpha.
        grow: "gradient" (the largest |g|, RigL) or "random" (SET).
        anneal: of the fraction until `stop`: "cosine" or "constant".
        noise: standard deviation of what is added to |w|, so that equal ones go in no order.

    Returns:
        An optax transformation, for `tx.update(gradients, state, params)`; parameters begin masked.

    Raises:
        ArgumentError: another word, a number out of range; `update` without parameters.
        StructureError: masks that do not fit the parameters (in `init`).

    Example:
        >>> params, masks = {"w": jnp.array([3.0, 0.1, 0.0])}, {"w": jnp.array([True, True, False])}
        >>> tx = drop_and_grow(
        ...     optax.sgd(0.1), masks, jax.random.key(0), every=10, stop=100, fraction=0.5)
        >>> _, state = tx.update({"w": jnp.array([1.0, 1.0, 9.0])}, tx.init(params), params)
        >>> state.hold.masks["w"].tolist()
        [True, False, True]
    """
    _check(every, stop, begin, fraction, grow, anneal, noise)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> DropGrowState:
        data = key if key.dtype == jnp.uint32 else jax.random.key_data(key)
        hold = HoldState(as_masks(masks, params))
        return DropGrowState(jnp.zeros((), jnp.int32), data, hold, at_once(inner.init)(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "drop_and_grow needs the parameters: call tx.update(gradients, state, params)."
            )
        old, step = state.hold.masks, state.step
        seen = jax.tree.map(_alone, old, updates, is_leaf=is_none)
        moves, after = inner.update(seen, state.inner, params, **extra)

        def exchanged() -> tuple[PyTree, Masks, PyTree]:
            ratio = fraction * ANNEAL[anneal](step / stop)
            of_step = jax.random.fold_in(jax.random.wrap_key_data(state.key), step)
            new = _exchanged(old, params, updates, ratio, of_step, grow, noise)
            born = jax.tree.map(
                lambda now, before: None if now is None else now & ~before,
                new, old, is_leaf=is_none,
            )  # fmt: skip
            still = held(jax.tree.map(jnp.zeros_like, moves), params, new)
            return still, new, _begun_anew(state.inner, after, born, params)

        moves, new, inner_state = jax.lax.cond(
            (step >= begin) & (step < stop) & ((step - begin) % every == 0),
            exchanged,
            lambda: (held(moves, params, old), old, after),
        )
        return moves, DropGrowState(step + 1, state.key, HoldState(new), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(
    every: int, stop: int, begin: int, fraction: float, grow: str, anneal: str, noise: float
) -> None:
    if grow not in GROW or anneal not in ANNEAL:
        raise errors.ArgumentError(
            f"drop_and_grow(grow={grow!r}, anneal={anneal!r}); grow is one of {', '.join(GROW)}, "
            f"anneal one of {', '.join(ANNEAL)}."
        )
    if every < 1 or stop < 1 or begin < 0 or not 0 < fraction <= 1 or not noise >= 0:
        raise errors.ArgumentError(
            f"drop_and_grow(every={every}, stop={stop}, begin={begin}, fraction={fraction}, "
            f"noise={noise}); every and stop are 1 or more, fraction is in (0, 1], begin and noise "
            "are 0 or more."
        )


def _alone(mask: Any, gradient: Any) -> Any:
    return gradient if mask is None else jnp.where(mask, gradient, 0)


def _exchanged(
    masks: Masks, params: Params, updates: PyTree, ratio: Any, key: Any, grow: str, noise: float
) -> Masks:
    """New masks; in each leaf as many weights grow as are dropped."""
    numbers = iter(range(len(jax.tree.leaves(masks))))

    def one(mask: Any, weight: Any, gradient: Any) -> Any:
        if mask is None:
            return None
        shaken, drawn = jax.random.split(jax.random.fold_in(key, next(numbers)))
        size = jnp.abs(weight) + noise * jax.random.normal(shaken, mask.shape)
        active = mask.sum()
        # floor(f_t k_l) go; in floats 0.7 * 10 is a hair below 7
        gone = jnp.floor(ratio * active * (1 + 1e-6)).astype(active.dtype)
        stays = keep_best(jnp.where(mask, size, -jnp.inf), active - gone)
        # the largest |g| where none has stayed
        worth = jnp.abs(gradient) if grow == "gradient" else jax.random.uniform(drawn, mask.shape)
        return stays | keep_best(jnp.where(stays, -jnp.inf, worth), gone)

    return jax.tree.map(one, masks, params, updates, is_leaf=is_none)


def _begun_anew(before: PyTree, after: PyTree, born: PyTree, params: Params) -> PyTree:
    """Accumulators of before, 0 where a weight is born; whatever else the state has, of after."""
    structure, shapes = jax.tree.structure(params), [*map(jnp.shape, jax.tree.leaves(params))]

    def like_params(node: Any) -> bool:
        same = jax.tree.structure(node) == structure
        return same and [*map(jnp.shape, jax.tree.leaves(node))] == shapes

    def one(old: Any, new: Any) -> Any:
        if not like_params(old):
            return new  # a count of steps: learning rates go on
        clear = lambda mask, leaf: leaf if mask is None else jnp.where(mask, 0, leaf)
        return jax.tree.map(clear, born, old, is_leaf=is_none)

    return jax.tree.map(one, before, after, is_leaf=like_params)

"""One unit after another is removed while the net trains, always the one of least score."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Batch, Criterion, Groups, Params, PyTree
from jprune.graph.shrink.concrete import full
from jprune.masks import HoldState, held
from jprune.sparsify.rules import as_params, as_variables, paths_in
from jprune.units import are_units, expand, to_units

Units = Mapping[str, Any]
"""{group: [units]}."""


class OneByOneState(NamedTuple):
    """State of `one_by_one`.

    Attributes:
        step: how many were taken.
        criterion: state of the criterion, gathered since the last removal.
        alive: {group: bool [units]}.
        hold: the same as masks of the parameters, read by `masks_of`.
    """

    step: jax.Array
    criterion: PyTree
    alive: dict[str, Any]
    hold: HoldState


def one_by_one(
    criterion: Criterion,
    groups: Groups,
    remove: Callable[..., Units],
    every: int = 10,
    units: int = 1,
    steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Removes units while training goes on, until a budget is met; what is gone stays 0.

    Every `every` steps the `units` lowest scores go, of all groups together, and the criterion
    starts anew. The last link of an optax chain. With `steps` the budget is met by then: where
    `units` at a time would not do, more go, as many as keep the cost on a straight line.

    Args:
        criterion: scores the units (or the parameters, summed over a unit); sees every batch.
        groups: traced with these very parameters, or with variables of which they are a collection.
        remove: `(scores, alive, units, share) -> alive`, jittable: takes units away until the
            budget is met; from `allocate.lowest_first`.
        every: steps from one removal to the next.
        units: how many go at a time, or more.
        steps: at which the budget is met; None: whenever `units` at a time have met it.

    Returns:
        An optax transformation; call `tx.update(gradients, state, params, batch=batch)`.

    Raises:
        ArgumentError: `every` or `units` below 1, fewer steps than `every`; `update` without
            parameters, or without the batch that the criterion needs.
        StructureError: groups of another net (in `init`).

    Example:
        A step hands over the slopes of gates, which its own backward pass has made.

        >>> import jprune
        >>> from jprune import allocate, criteria
        >>> fn = lambda params, x: jnp.maximum(x @ params["a"], 0) @ params["b"]
        >>> loss = lambda out, batch: (out[:, 0] - batch["label"]) ** 2
        >>> params = {"a": jnp.eye(3), "b": jnp.array([[1.0], [2.0], [0.1]])}
        >>> batch = {"image": jnp.ones((4, 3)), "label": jnp.ones(4)}
        >>> groups = jprune.trace(fn, params, batch["image"])
        >>> criterion = criteria.gate_slopes(fn, loss, groups, at="in")
        >>> remove = allocate.lowest_first(groups.sizes, jprune.Budget(density=0.7))
        >>> removal = one_by_one(criterion, groups, remove, every=1)
        >>> tx = optax.chain(optax.sgd(0.01), removal)
        >>> def total(params, gates):
        ...     return loss(jprune.gated(fn, groups)(params, gates, batch["image"]), batch).sum()
        >>> gradient, slopes = jax.grad(total, (0, 1))(params, {"a": jnp.ones((4, 3))})
        >>> updates, state = tx.update(
        ...     gradient, tx.init(params), params, batch={**batch, "slopes": slopes})
        >>> optax.apply_updates(params, updates)["b"][:, 0].round(2).tolist()[2]
        0.0
    """
    if every < 1 or units < 1 or (steps is not None and steps < every):
        raise errors.ArgumentError(
            f"one_by_one(every={every}, units={units}, steps={steps}): units are 1 or more, and go "
            "every 1 step or more, at least once in all steps."
        )

    def init(params: Params) -> OneByOneState:
        paths_in(groups, params)  # refuses parameters of another net
        masks = jax.tree.map(lambda leaf: full(jnp.shape(leaf), True), params)
        alive = {name: full((size,), True) for name, size in groups.sizes.items()}
        zero = jnp.zeros((), jnp.int32)
        return OneByOneState(zero, criterion.init(params), alive, HoldState(masks))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        batch = extra.get("batch")
        if params is None or (batch is None and criterion.needs_data):
            raise errors.ArgumentError(
                "one_by_one needs the parameters and the batch: call tx.update(gradients, state, "
                "params, batch=batch)."
            )
        gathered = state.criterion
        if criterion.needs_data:
            gathered = criterion.update(gathered, params, cast(Batch, batch))
        step = state.step + 1
        # A straight line down to the budget, in as many removals as there are.
        share = 0.0 if steps is None else jnp.minimum(1.0, step // every / (steps // every))

        def event(gathered: PyTree, alive: Units) -> tuple[PyTree, Units, PyTree]:
            scores = criterion.score(gathered, params)
            if not are_units(groups, scores):
                scores = to_units(groups, as_variables(groups, scores))
            alive = remove(scores, alive, units, share)
            masks = as_params(groups, expand(groups, alive), params)
            masks = jax.tree.map(jnp.logical_and, state.hold.masks, masks)
            return criterion.init(params), alive, masks

        gathered, alive, masks = jax.lax.cond(
            step % every == 0,
            event,
            lambda gathered, alive: (gathered, alive, state.hold.masks),
            gathered,
            state.alive,
        )
        return held(updates, params, masks), OneByOneState(step, gathered, alive, HoldState(masks))

    return optax.GradientTransformationExtraArgs(init, update)

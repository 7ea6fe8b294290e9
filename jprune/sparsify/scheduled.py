"""Pruning inside the optimizer, on a schedule."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import (
    Allocator,
    Batch,
    Budget,
    Criterion,
    Groups,
    Masks,
    Params,
    PyTree,
    Schedule,
    is_none,
)
from jprune.graph.shrink.concrete import full
from jprune.masks import HoldState, held
from jprune.sparsify.rules import as_params, as_variables, kernels_of, paths_in, unit_masks
from jprune.units import are_units


class ScheduledState(NamedTuple):
    """State of `scheduled_prune`.

    Attributes:
        step: how many were taken.
        criterion: state of the criterion, gathered since the last new masks.
        hold: the masks, read by `masks_of`.
    """

    step: jax.Array
    criterion: PyTree
    hold: HoldState


def scheduled_prune(
    criterion: Criterion,
    allocator: Allocator,
    schedule: Schedule,
    every: int,
    groups: Groups | None = None,
    per: str = "unit",
    pool: str = "sum",
    back: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Prunes every `every` steps to the density of a schedule, and holds the masks in between.

    At steps 0, every, 2 every, ... the criterion's scores are turned into masks at the density
    `schedule(step)`, and the criterion starts anew. The last link of an optax chain.

    Args:
        criterion: scores the parameters, or with groups their units; sees every batch.
        allocator: jittable at a traced density, such as `allocate.global_topk`.
        schedule: step -> density.
        every: steps from one new mask to the next.
        groups: traced with these very parameters, or with variables of which they are a part:
            then units are pruned, at all roles. None: single weights, of every leaf with scores.
        per: with groups, "unit" or "weight" (those of kernels alone).
        pool: how scores of weights become scores of units: "sum", or "mean" where units of unequal
            size compete.
        back: whether what was pruned may come back where its score is high enough again; False:
            new masks lie within the old ones, as in the paper's code.

    Returns:
        An optax transformation; call `tx.update(gradients, state, params, batch=batch)`.

    Raises:
        ArgumentError: `every` below 1; a criterion of two passes; `update` without parameters, or
            without the batch that the criterion needs.
        StructureError: groups of another net (in `init`).

    References:
        Zhu and Gupta, To prune, or not to prune, 2017, arXiv 1710.01878.

    Example:
        >>> from jprune import allocate, criteria, schedules
        >>> tx = scheduled_prune(
        ...     criteria.magnitude(), allocate.global_topk, schedules.one_shot(0.5), every=1)
        >>> params = {"w": jnp.array([3.0, 1.0])}
        >>> updates, state = tx.update({"w": jnp.zeros(2)}, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["w"]
        Array([3., 0.], dtype=float32)
    """
    if every < 1 or per not in ("unit", "weight"):
        raise errors.ArgumentError(
            f"scheduled_prune(every={every}, per={per!r}): masks change every 1 step or more; "
            "write per='unit' or 'weight'."
        )
    if criterion.again is not None:
        raise errors.ArgumentError(
            "scheduled_prune sees every batch once, and this criterion looks at its batches twice, "
            "on one net. Score with jprune.run_criterion between steps, or write another criterion."
        )

    def new_masks(scores: PyTree, params: Params, density: Any) -> Masks:
        budget = Budget(density=density)
        if groups is None:
            return allocator(scores, budget, None)
        if per == "weight":
            scores = as_params(groups, kernels_of(groups, scores), params)
            return allocator(scores, budget, None)
        # Groups know paths of the whole variables; an optimizer may get one collection of them.
        scores = scores if are_units(groups, scores) else as_variables(groups, scores)
        return unit_masks(groups, scores, allocator, budget, params, pool)

    def init(params: Params) -> ScheduledState:
        if groups is not None:
            paths_in(groups, params)  # refuses parameters of another net
        # Ones at every leaf, and no None: the structure of the state must not change in a step.
        masks = jax.tree.map(lambda leaf: full(jnp.shape(leaf), True), params)
        return ScheduledState(jnp.zeros((), jnp.int32), criterion.init(params), HoldState(masks))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        batch = extra.get("batch")
        if params is None or (batch is None and criterion.needs_data):
            raise errors.ArgumentError(
                "scheduled_prune needs the parameters and the batch: call tx.update(gradients, "
                "state, params, batch=batch)."
            )
        criterion_state = state.criterion
        if criterion.needs_data:
            criterion_state = criterion.update(criterion_state, params, cast(Batch, batch))

        def prune(criterion_state: PyTree, old: Masks) -> tuple[PyTree, Masks]:
            whole = params
            if groups is not None and per == "weight":
                whole = as_variables(groups, params)
            scores = criterion.score(criterion_state, whole)
            masks = new_masks(scores, params, schedule(state.step))
            # Leaves without scores keep their masks of ones.
            masks = jax.tree.map(
                lambda new, before: before if new is None else new if back else new & before,
                masks, old, is_leaf=is_none,
            )  # fmt: skip
            return criterion.init(params), masks

        criterion_state, masks = jax.lax.cond(
            state.step % every == 0,
            prune,
            lambda criterion_state, old: (criterion_state, old),
            criterion_state,
            state.hold.masks,
        )
        new_state = ScheduledState(state.step + 1, criterion_state, HoldState(masks))
        return held(updates, params, masks), new_state

    return optax.GradientTransformationExtraArgs(init, update)

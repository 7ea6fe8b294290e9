"""One budget for groups of several kinds: units, branches and patterns within kernels, together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jprune import blocks, errors
from jprune.allocate.budgets import fraction_kept, refuse_impossible
from jprune.base import Allocator, Budget, CostModel, Masks

Scores = Mapping[str, Mapping[str, np.ndarray]]
"""{kind: {block: [groups]}}, -inf where a group is gone."""

Alive = Mapping[str, Mapping[str, np.ndarray]]
"""{kind: {block: bool [groups]}}."""


def jointly(
    families: Sequence[blocks.Blocks],
    scores: Scores,
    budget: Budget,
    cost_model: CostModel,
    allocator: Allocator,
    before: Masks = None,
) -> Alive:
    """What stays alive under a budget, the best by their scores.

    Units and patterns are allocated together, at one density or by one threshold; branches go only
    where no other kind has anything to give, the lowest score first.

    Args:
        families: blocks of several kinds, from `jprune.blocks`.
        scores: of the groups that may go; one at -inf is gone. Blocks and kinds that are not named
            stay as they are.
        budget: that the masks of all kinds together meet.
        cost_model: of the net.
        allocator: `allocate.uniform` or `allocate.global_topk`.
        before: masks from before.

    Returns:
        {kind: {block: bool [groups]}}, which `blocks.masks(families, ...)` makes masks of.

    Raises:
        BudgetError: no masks of these kinds meet it.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import allocate
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.arange(8.0).reshape(2, 4), "second": jnp.ones((4, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> model = jprune.cost_model(fn, variables, jnp.zeros((1, 2)), groups=groups)
        >>> units = blocks.filters(groups)
        >>> scores = {"filter": blocks.norms(units, variables)}
        >>> jointly([units], scores, Budget(macs=0.5), model, allocate.uniform)
        {'filter': {'first': array([False, False,  True,  True])}}
    """
    named = {each.kind: each for each in families}
    # Numbers: JAX would compile a comparison for every size.
    scores = {k: {n: np.asarray(s) for n, s in of.items()} for k, of in scores.items()}
    per = {kind: named[kind].per for kind in scores}
    alive = {k: {n: s > -np.inf for n, s in of_kind.items()} for k, of_kind in scores.items()}

    def masks(changed: Alive) -> Masks:
        whole = {**alive, **changed}
        return blocks.masks([named[kind] for kind in whole], whole, before)

    if {*per.values()} == {"branch"}:
        ((kind, flat),) = scores.items()
        groups: Any = families[0].groups  # `masks` has refused what is of no net

        def price(branches: Mapping[str, np.ndarray]) -> float:
            return fraction_kept(groups, masks({kind: branches}), budget, cost_model)

        return {kind: _shallower(flat, alive[kind], budget, price)}
    open_ = {kind: dict(of_kind) for kind, of_kind in scores.items() if per[kind] != "branch"}
    if [per[kind] for kind in open_] == ["unit"]:  # flat: floors have names, and gaps are filled
        ((kind, flat),) = open_.items()
        flat = {name: score for name, score in flat.items() if (score > -np.inf).any()}
        model = lambda some: cost_model(masks({kind: {**alive[kind], **some}}))
        return {**alive, kind: {**alive[kind], **allocator(flat, budget, model)}}
    model = lambda some: cost_model(masks(some))
    return {**alive, **allocator(open_, budget.of_weights(), model)}


def refuse_impossible_jointly(
    families: Sequence[blocks.Blocks], scores: Scores, budget: Budget, cost_model: CostModel
) -> None:
    """Refuses a budget that `jointly` cannot meet, whatever the scores are.

    Args:
        families: blocks of several kinds.
        scores: of the groups that may go; shapes alone count.
        budget: to be met.
        cost_model: of the net.

    Raises:
        BudgetError: it cannot be.
    """

    def smallest(some: Any, budget: Budget, model: CostModel | None) -> Any:
        refuse_impossible(some, budget, model)
        return some

    whole = {k: {n: np.ones(np.shape(s)) for n, s in of.items()} for k, of in scores.items()}
    jointly(families, whole, budget, cost_model, smallest)


def _shallower(
    scores: Mapping[str, np.ndarray],
    alive: Mapping[str, np.ndarray],
    budget: Budget,
    price: Callable[[Mapping[str, np.ndarray]], float],
) -> dict[str, np.ndarray]:
    """Branches go one after the other until the budget is met.

    Args:
        scores: {branch: [1]}.
        alive: {branch: bool [1]} to begin with.
        budget: to be met.
        price: `{branch: bool [1]} -> fraction of the net that is kept`.
    """
    alive = dict(alive)
    for name in sorted(scores, key=lambda name: float(scores[name][0])):
        if price(alive) <= float(budget.value) + 1e-9:
            return alive
        alive[name] = np.zeros(1, bool)
    if (least := price(alive)) > float(budget.value) + 1e-9:
        raise errors.BudgetError(
            f"Budget({budget.kind}={budget.value}) cannot be met: without all {len(scores)} "
            f"branches {least:.4f} of the dense net are left. Ask for "
            f"{np.ceil(least * 1000) / 1000:.3f} or more, or write 'filter+depth'."
        )
    return alive

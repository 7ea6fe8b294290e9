"""Exact counts, and budgets in anything but density: a search for masks whose own cost fits.

A unit has no price of its own: MACs are products of neighbouring widths, so what a unit costs
depends on the units kept next to it. Therefore the cost model is asked about every candidate.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jprune import errors
from jprune.base import Budget, CostModel, Groups, Masks, Scores, is_none
from jprune.cost import spent
from jprune.graph.shrink.concrete import at_hand
from jprune.masks import best, density, keep_best
from jprune.units import ones

NEAR = 0.95
"""Fraction of a budget: if the masks cost less, masks narrowed from above are tried too."""
MISSED = 0.02
"""A budget is missed if so much less of the dense net is kept: two points."""


def price_of(scores: Scores, budget: Budget, model: CostModel | None) -> Callable[[Masks], float]:
    """`masks -> cost as a fraction of the dense net` in the budget's unit.

    Raises:
        ArgumentError: no cost model, or one that does not count what the budget is about.
    """
    if model is None:
        raise errors.ArgumentError(
            f"Budget({budget.kind}={budget.value}) needs a cost model: pass "
            "jprune.cost_model(fn, variables, x, groups=groups). Budget(density=...) needs none."
        )
    # Masks of ones: the dense net, counted by the same model.
    dense = spent(model(map_named(lambda _, leaf: np.ones(leaf.shape, bool), scores)), budget)
    return lambda masks: float(spent(model(masks), budget)) / float(dense)


def fraction_kept(groups: Groups, masks: Masks, budget: Budget, cost_model: CostModel) -> float:
    """What masks keep of the dense net, in the budget's unit.

    Args:
        groups: from `trace`.
        masks: of units, or of weights.
        budget: whose kind is asked for.
        cost_model: of the net.
    """
    if budget.kind == "density":
        return density(masks)
    return price_of(ones(groups), budget, cost_model)(masks)


def cheapest(scores: Scores, budget: Budget) -> Masks:
    """The masks that keep as little as allowed: every leaf at its floor."""
    return map_named(lambda name, leaf: keep_best(leaf, floor_of(name, leaf.size, budget)), scores)


def map_named(function: Callable[..., Any], scores: Scores, *others: Any) -> Any:
    """Maps over leaves with the name of the group (None for leaves of a weight tree)."""

    def one(path: Any, leaf: Any, *rest: Any) -> Any:
        if leaf is None:
            return None
        name = path[0].key if len(path) == 1 and hasattr(path[0], "key") else None
        return function(name, leaf, *rest)

    return jax.tree_util.tree_map_with_path(one, scores, *others, is_leaf=is_none)


def allocated(
    masks_at: Callable[[Scores, Any], Masks],
    scores: Scores,
    budget: Budget,
    model: CostModel | None,
) -> Masks:
    """The result of an allocator: masks at the budget's density, or at one found by search.

    Args:
        masks_at: `(scores, density) -> masks`; a larger density keeps more.
        scores: of units or weights; a density may be traced.
        budget: of any kind.
        model: for budgets in anything but density.
    """
    check_scores(scores)
    if budget.kind == "density":
        _check_floors(scores, budget)
        return masks_at(scores, budget.value)
    scores = map_named(lambda _, leaf: np.asarray(leaf, float), scores)
    return search(lambda density: masks_at(scores, density), scores, budget, model)


def refuse_impossible(scores: Scores, budget: Budget, model: CostModel | None) -> None:
    """Refuses a budget that no scores can meet; for what is asked before anything is trained.

    Args:
        scores: of units or weights, of which shapes alone count.
        budget: with `min_units`, `multiple_of` and `floors`.
        model: for budgets in anything but density.

    Raises:
        ArgumentError: no cost model, or one that does not count what the budget is about.
        BudgetError: the masks that keep as little as allowed cost more.
    """
    if budget.kind == "density":
        _check_floors(scores, budget)
    elif (least := smallest(scores, budget, model)) > float(budget.value) + 1e-9:
        raise _unmet(budget, f"costs {least:.4f} of the dense one", least)


def smallest(scores: Scores, budget: Budget, model: CostModel | None) -> float:
    """What the masks that keep as little as allowed are of the dense net, in the budget's unit.

    Args:
        scores: of units or weights, of which shapes alone count.
        budget: with `min_units`, `multiple_of` and `floors`.
        model: for budgets in anything but density.
    """
    if budget.kind == "density":
        total, least, _ = _entries(scores, budget)
        return least / total
    # Which entries they are costs nothing: the first ones, without sorting.
    first = lambda name, leaf: (np.arange(leaf.size) < floor_of(name, leaf.size, budget)).reshape(
        leaf.shape
    )
    return price_of(scores, budget, model)(map_named(first, scores))


def _entries(scores: Scores, budget: Budget) -> tuple[int, int, int]:
    """How many entries there are, how many stay at least, and in how many groups."""
    sizes = map_named(
        lambda name, leaf: np.array([np.size(leaf), floor_of(name, np.size(leaf), budget)]), scores
    )
    pairs = np.array(jax.tree.leaves(sizes), int).reshape(-1, 2)
    total, least = pairs.sum(axis=0).tolist()
    return total, least, len(pairs)


def _check_floors(scores: Scores, budget: Budget) -> None:
    """Refuses a density that floors and multiples make impossible, where it is a number.

    Raises:
        BudgetError: the smallest net allowed keeps more, beside the one entry that every group
            keeps by default.
    """
    if isinstance(budget.value, Tracer):
        return
    total, least, groups = _entries(scores, budget)
    if least > float(budget.value) * total + groups:
        raise _unmet(budget, f"keeps {least} of {total} entries", least / total)


def _unmet(budget: Budget, smallest: str, least: float) -> errors.BudgetError:
    return errors.BudgetError(
        f"Budget({budget.kind}={budget.value}) cannot be met: the smallest net allowed {smallest}. "
        f"Ask for {np.ceil(least * 1000) / 1000:.3f} or more, or lower "
        f"min_units={budget.min_units}, multiple_of={budget.multiple_of} and the floors."
    )


def largest(price: Callable[[float], float], goal: float, halvings: int = 40) -> float:
    """The largest x in [0, 1] whose price is at most the goal, to within 2^-40; 0 if none is.

    Args:
        price: rises with x; not called at 0.
        goal: the highest price allowed.
        halvings: how often the interval is halved; 40 make 2^-40.

    Example:
        >>> round(largest(lambda x: x**2, 0.25), 6), largest(lambda x: x, 2.0)
        (0.5, 1.0)
    """
    if price(1.0) <= goal:
        return 1.0
    # price(low) <= goal < price(high) throughout, taking price(0) as 0.
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if price(middle) <= goal else (low, middle)
    return low


def search(
    masks_at: Callable[[float], Masks],
    scores: Scores,
    budget: Budget,
    model: CostModel | None,
) -> Masks:
    """The largest density whose masks fit, then the best single steps that still fit.

    If the result costs less than `NEAR` of the budget (few groups or large multiples make wide
    steps), the masks of the smallest density that does not fit are narrowed by the worst single
    steps, and if that misses the budget by `MISSED`, by a step of any group and then the worst
    ones. The most expensive of the results is returned.

    Args:
        masks_at: density -> masks; a larger density keeps more.
        scores: host arrays.
        budget: in anything but density.
        model: the cost model.

    Raises:
        BudgetError: even the smallest allowed masks cost too much.
    """
    price = price_of(scores, budget, model)
    # The slack is for costs that equal the budget up to rounding.
    goal = float(budget.value) + 1e-9
    masks = cheapest(scores, budget)
    if (least := price(masks)) > goal:
        raise _unmet(budget, f"costs {least:.4f} of the dense one", least)
    # Bisection on the density: `masks` is the largest that fits, `above` the smallest that does
    # not. 30 halvings tell apart densities that differ by one entry in 10^9.
    low, high, above = 0.0, 1.0, None
    for _ in range(30):
        middle = (low + high) / 2
        candidate = masks_at(middle)
        if price(candidate) <= goal:
            low, masks = middle, candidate
        else:
            high, above = middle, candidate
    # Single weights cost next to nothing: only units are filled up and trimmed.
    if not are_units(scores):
        return masks
    masks = filled(masks, scores, budget, price, goal)
    if above is None or price(masks) >= NEAR * goal:
        return masks
    # The worst units first; where their groups have wide steps, a step of any other group first.
    starts = [above, *narrower(above, scores, budget).values()]
    others = (
        filled(trimmed(start, scores, budget, price, goal), scores, budget, price, goal)
        for start in starts
    )
    for other in others:
        masks = max((masks, other), key=price)
        if price(masks) >= goal - MISSED:
            break
    return masks


def are_units(scores: Scores) -> bool:
    """Whether scores are {group: [units]}, and not a tree of kernels."""
    one_axis = lambda leaf: isinstance(leaf, np.ndarray | jax.Array) and leaf.ndim == 1
    return isinstance(scores, dict) and all(one_axis(leaf) for leaf in scores.values())


def trimmed(
    masks: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
    budget: Budget,
    price: Callable[[Masks], float],
    goal: float,
) -> dict[str, np.ndarray]:
    """Narrows one group at a time, by its worst units, until the cost fits.

    As long as no step makes it fit, the group with the lowest score is narrowed; once some do, the
    one after which the most is left.
    """
    masks = dict(masks)
    while price(masks) > goal:
        candidates = narrower(masks, scores, budget)
        prices = {name: price(wanted) for name, wanted in candidates.items()}
        # The last step: of those that fit, the one that wastes least of the budget.
        fitting = [name for name in candidates if prices[name] <= goal]
        if fitting:
            return candidates[max(fitting, key=lambda name: prices[name])]
        masks = candidates[min(candidates, key=lambda name: scores[name][masks[name]].min())]
    return masks


def narrower(
    masks: dict[str, np.ndarray], scores: dict[str, np.ndarray], budget: Budget
) -> dict[str, dict[str, np.ndarray]]:
    """{group: the masks after its next narrower width}, for all groups that have one."""
    candidates = {}
    for name, mask in masks.items():
        # Units of score +inf are never pruned: they raise the floor.
        floor = max(floor_of(name, mask.size, budget), int(np.isposinf(scores[name]).sum()))
        allowed = widths(mask.size, floor, step_of(mask.size, budget))
        smaller = [width for width in allowed if width < mask.sum()]
        if smaller:
            # Units that are gone already rank last, so that none of them comes back.
            order = np.where(mask, scores[name], -np.inf)
            candidates[name] = {**masks, name: best(order, smaller[-1])}
    return candidates


def filled(
    masks: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
    budget: Budget,
    price: Callable[[Masks], float],
    goal: float,
) -> dict[str, np.ndarray]:
    """Widens one group at a time, by the best unused unit, as long as the cost fits.

    A group whose next step does not fit is closed: the cost only rises, so it will not fit later.
    """
    masks = dict(masks)
    open_groups = set(masks)
    while open_groups:
        candidates = {}
        for name in sorted(open_groups):
            mask, score = masks[name], np.asarray(scores[name], float)
            allowed = widths(mask.size, int(mask.sum()), step_of(mask.size, budget))
            larger = [width for width in allowed if width > mask.sum()]
            unused = score[~mask & (score > -np.inf)]
            if larger and unused.size >= larger[0] - mask.sum():
                # Kept units rank first, so that widening never swaps one out.
                order = np.where(mask, np.inf, score)
                candidates[name] = (unused.max(), best(order, larger[0]))
        open_groups &= set(candidates)
        for name in sorted(candidates, key=lambda n: -candidates[n][0]):
            wider = {**masks, name: candidates[name][1]}
            if price(wider) <= goal:
                masks = wider
                break
            open_groups.discard(name)
    return masks


def check_scores(scores: Scores) -> None:
    """Refuses NaN and empty scores, where they are concrete.

    Raises:
        ArgumentError: a NaN, with the name of its leaf; nothing to allocate.
    """
    leaves = jax.tree_util.tree_leaves_with_path(scores)
    if not leaves:
        raise errors.ArgumentError(
            "there is nothing to allocate: the scores have no leaf. Does the net have a group? See "
            "jprune.trace(...).frozen for the reasons."
        )
    for path, leaf in leaves:
        if not isinstance(leaf, Tracer) and np.isnan(np.asarray(leaf, float)).any():
            raise errors.ArgumentError(
                f"the scores at {jax.tree_util.keystr(path, simple=True, separator='/')} hold "
                "NaN. Write -inf for what is gone and +inf for what must stay; a NaN mostly comes "
                "from a loss that is not finite."
            )


def kept_count(size: int, density: Any) -> Any:
    """N - round((1 - density) n), halves to even; works on a traced density.

    Halves are judged by the decimal number that was written: in floats 1 - 0.9 is a little less
    than 0.1, but 1.5 of 15 are still rounded to 2.

    Example:
        >>> int(kept_count(10, 0.75)), int(kept_count(15, 0.9))
        (8, 13)
    """
    if isinstance(density, (int, float, np.floating)):
        # The inner rounding, to 9 digits, turns 1.4999999999999998 back into 1.5.
        return size - np.round(np.round((1 - density) * size, 9)).astype(int)
    # A density of a schedule, in single precision: NumPy, as JAX has it, where it is a number.
    numbers = at_hand(density)
    if numbers is not None:
        return size - np.round((1 - numbers) * size).astype(int)
    return size - jnp.round((1 - density) * size).astype(int)


def step_of(size: int, budget: Budget) -> int:
    """The step between allowed widths of a group of this size; the whole size is allowed too."""
    # A group smaller than the multiple keeps what divides both: 12 channels at multiples of 16 go
    # in steps of 4.
    multiple = budget.multiple_of
    return multiple if size >= multiple else math.gcd(size, multiple)


def floor_of(name: str | None, size: int, budget: Budget) -> int:
    """The smallest width that a group may keep, rounded up to its step."""
    wanted = max(budget.min_units, budget.floors.get(name, 0) if name is not None else 0)
    step = step_of(size, budget)
    return min(size, math.ceil(wanted / step) * step)


def rounded(count: Any, size: int, floor: int, step: int) -> Any:
    """The allowed width nearest to `count`: a multiple of `step`, or the whole size."""
    numbers = np if isinstance(count, (int, np.integer)) else jnp
    nearest = numbers.floor(count / step + 0.5).astype(int) * step
    # Where the whole size is no multiple, it is an allowed width above the last one: 4, 8, 10 for
    # size 10 and step 4; a count of 9 is half way between 8 and 10 and gives 10.
    last = (size // step) * step
    beyond = numbers.where(2 * count >= last + size, size, last)
    width = numbers.where(nearest >= last, numbers.where(count > last, beyond, nearest), nearest)
    return numbers.clip(width, floor, size)


def widths(size: int, floor: int, step: int) -> Sequence[int]:
    """All allowed widths of a group, in rising order."""
    multiples = [width for width in range(step, size + 1, step) if width >= floor]
    return sorted({*multiples, size})

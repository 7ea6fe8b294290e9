"""Searches how much of every layer goes, pruning at once; and cuts what is near 0 afterwards.

References:
    Liu, Ma, Xu, Wang, Tang, Ye, AutoCompress: an automatic DNN structured pruning framework for
    ultra-high compression rates, 2020, arXiv 1907.03141 [37].
"""

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jprune import blocks, errors
from jprune.allocate import fraction_kept
from jprune.allocate.budgets import floor_of, step_of, widths
from jprune.base import Budget, Learner, Masks, Pruned, Records, Searcher, Task
from jprune.blocks import Blocks
from jprune.blocks.kinds import least_of
from jprune.blocks.members import total
from jprune.learners import to_the_end
from jprune.masks import apply_masks, keep_best
from jprune.search.annealing import annealing
from jprune.stages.candidates import Trial, searching
from jprune.stages.frame import fractions, record
from jprune.stages.splitting import Counts, refuse_two_supports
from jprune.train.net import Net


@dataclasses.dataclass(frozen=True)
class Annealing:
    """Settings of the search; see `jprune.search.annealing`."""

    evaluations: int = 150
    hot: float = 0.05
    cold: float = 0.002
    cool: float = 0.9
    size: float | None = 0.35
    redraws: int = 10

    def searcher(
        self,
        genes: int,
        arrange: Callable[[np.ndarray], np.ndarray | None],
        from_zero: bool = False,
    ) -> Searcher:
        """The search over so many numbers."""
        return annealing(genes, arrange, **dataclasses.asdict(self), from_zero=from_zero)


@dataclasses.dataclass(frozen=True)
class Searched:
    """The counts that `SearchRates` has put into `extra`, as a constraint of `Admm` and `Cut`.

    Attributes:
        budget: what may be kept.
        kinds: "filter", "channel", "column"; projected in this order.

    Raises:
        ArgumentError: filters and channels at once.
    """

    budget: Budget
    kinds: tuple[str, ...] = ("filter",)

    def __post_init__(self):
        refuse_two_supports(self.kinds)

    def families(self, task: Task) -> tuple[Blocks, ...]:
        """The groups of every kind, filters with their scales and shifts.

        Raises:
            StructureError: a kind that the net does not have.
        """
        return blocks.of_kinds(
            Net(task).groups, self.kinds, scales=True, shifts=True, floors=self.budget.floors
        )

    def allowed(self, families: Sequence[Blocks]) -> dict[str, dict[str, Sequence[int]]]:
        """{kind: {block: numbers of groups that it may keep, rising}}."""
        if all(each.per == "unit" for each in families):
            steps = lambda name, size: widths(
                size, floor_of(name, size, self.budget), step_of(size, self.budget)
            )
            return {e.kind: {n: steps(n, block.size) for n, block in e.items()} for e in families}
        # Beside columns, multiples of units have no meaning: units without readers go as well.
        least = {each.kind: least_of(each, self.budget) for each in families}
        return {
            each.kind: {
                name: range(min(least[each.kind][name], block.size), block.size + 1)
                for name, block in each.items()
            }
            for each in families
        }

    def check(self, task: Task) -> None:
        """Refuses a budget that no rates meet.

        Raises:
            BudgetError: the fewest groups of all blocks cost more.
            StructureError: a kind that the net does not have.
        """
        net, families = Net(task), self.families(task)
        allowed = self.allowed(families)
        fewest = {
            each.kind: {n: np.arange(b.size) < allowed[each.kind][n][0] for n, b in each.items()}
            for each in families
        }
        masks = blocks.masks(families, fewest)
        left = fraction_kept(net.groups, masks, self.budget, net.cost)
        if left > float(self.budget.value) + 1e-9:
            raise errors.BudgetError(
                f"Budget({self.budget.kind}={self.budget.value}) cannot be met: the fewest groups "
                f"of all layers keep {left:.4f} of the dense net. Ask for "
                f"{np.ceil(left * 1000) / 1000:.3f} or more, or write smaller floors."
            )

    def counts(self, task: Task, pruned: Pruned) -> Counts:
        """{kind: {block: groups kept}}, as they were searched.

        Raises:
            ArgumentError: nothing has searched them.
        """
        del task
        if not pruned.extra or "counts" not in pruned.extra:
            raise errors.ArgumentError("Searched came without counts: put SearchRates before it.")
        return pruned.extra["counts"]


def by_size(
    sizes: np.ndarray,
    goal: float,
    kinds: np.ndarray | None = None,
    price: Callable[[np.ndarray], float] | None = None,
) -> Callable[[np.ndarray], np.ndarray | None]:
    """Rates for layers: larger ones for larger layers, scaled until the constraint holds.

    Args:
        sizes: [layers]: weights n_l.
        goal: S, the fraction that goes.
        kinds: [layers]: rates are sorted among layers of the same number alone; None: among all.
        price: `rates -> fraction that is left`, falling with the rates; None: the weights that go
            are sum n_l s_l.

    Returns:
        `rates -> rates`; None where one of them would be 1 or more: clipping would break the
        constraint.

    Example:
        >>> by_size(np.array([100, 400, 1600]), 0.5)(np.array([0.6, 0.2, 0.4])).round(4)
        array([0.1842, 0.3684, 0.5526])
    """
    numbers = np.zeros(len(sizes)) if kinds is None else np.asarray(kinds)

    def arrange(rates: np.ndarray) -> np.ndarray | None:
        ordered = np.array(rates, float)
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            # The prior of the paper: what has more weights bears a larger rate.
            ordered[places[np.argsort(sizes[places], kind="stable")]] = np.sort(ordered[places])
        if not ordered.max() > 0:
            return None
        if price is None:
            # s <- s S / (sum n_l s_l / sum n_l)
            scaled = ordered * goal / (sizes @ ordered / sizes.sum())
            return scaled if scaled.max() < 1 else None
        return _scaled(ordered, price, 1 - goal)

    return arrange


def _scaled(
    rates: np.ndarray, price: Callable[[np.ndarray], float], most: float
) -> np.ndarray | None:
    """Rates times the smallest factor whose price is at most so much."""
    low, high = 0.0, (1 - 1e-6) / rates.max()
    if price(high * rates) > most:
        return None
    # Counts are whole: 20 halvings tell apart rates that differ by one group in a million.
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if price(middle * rates) <= most else (middle, high)
    return high * rates


class _Blocks:
    """The blocks of all kinds in a row: their norms, sizes and masks."""

    def __init__(self, sets: Searched, pruned: Pruned, task: Task):
        self.net, self.sets, self.before = Net(task), sets, pruned.masks
        self.families = sets.families(task)
        norms = {each.kind: blocks.norms(each, pruned.variables) for each in self.families}
        weights = self.net.leaves(self.net.shapes)
        ones = {path: np.ones(leaf.shape) for path, leaf in weights.items()}
        # (kind, block, norms of its groups, numbers that it may keep, weights of all)
        self.rows = [
            (each.kind, name, norms[each.kind][name], allowed, total(each[name], ones, lambda x: x))
            for each in self.families
            for name, allowed in sets.allowed(self.families)[each.kind].items()
        ]
        if broken := [name for _, name, norm, _, _ in self.rows if not np.isfinite(norm).all()]:
            raise errors.ArgumentError(
                f"the weights of {broken[0]} hold NaN or infinity: training has diverged. Write a "
                "smaller --learning-rate."
            )
        numbers = {each.kind: number for number, each in enumerate(self.families)}
        self.kinds = np.array([numbers[kind] for kind, *_ in self.rows])
        # n_l: weights of the groups that are not gone already
        self.sizes = np.array([float(n[norm > 0].sum()) for _, _, norm, _, n in self.rows])

    def by_kind(self, values: list[Any]) -> dict[str, dict[str, Any]]:
        """{kind: {block: value}} of values in a row."""
        tree: dict[str, dict[str, Any]] = {each.kind: {} for each in self.families}
        for (kind, name, *_), value in zip(self.rows, values):
            tree[kind][name] = value
        return tree

    def counts(self, rates: np.ndarray) -> list[int]:
        """Groups that each block keeps at rates of what is left of it."""
        result = []
        for (_, _, norm, allowed, _), rate in zip(self.rows, _as_stored(rates)):
            alive = int((norm > 0).sum())
            # The largest that is allowed and not more, or the fewest.
            place = bisect.bisect_right(allowed, alive - round(rate * alive)) - 1
            result.append(min(allowed[max(0, place)], alive))
        return result

    def counts_above(self, thresholds: np.ndarray) -> list[int]:
        """Groups whose norm is at least a threshold times the mean of those left in their block."""
        result = []
        for (_, _, norm, allowed, _), limit in zip(self.rows, _as_stored(thresholds)):
            alive = norm[norm > 0]
            above = int((alive >= limit * alive.mean()).sum()) if alive.size else 0
            result.append(min(allowed[bisect.bisect_left(allowed, above)], alive.size))
        return result

    def largest(self, counts: list[int]) -> Masks:
        """Masks that keep so many of the largest groups of every block."""
        kept = [np.asarray(keep_best(row[2], count)) for row, count in zip(self.rows, counts)]
        return blocks.masks(self.families, self.by_kind(kept), self.before)

    def price(self, masks: Masks) -> float:
        """What masks keep of the dense net."""
        return fraction_kept(self.net.groups, masks, self.sets.budget, self.net.cost)


def _as_stored(numbers: np.ndarray) -> np.ndarray:
    """Numbers rounded to float32, as they are when they are read from a state."""
    return np.asarray(np.asarray(numbers, np.float32), float)


@dataclasses.dataclass(frozen=True)
class SearchRates:
    """Simulated annealing over the rates of all blocks; nothing is masked yet.

    A candidate is pruned at once, by the norms of the present weights, and scored without training.
    Rates are of what is left of a block; they rise with its size. Afterwards `extra` has `counts`,
    {kind: {block: groups kept}}, which `Searched` reads.

    Attributes:
        sets: which groups go, and the budget.
        trial: how candidates are scored.
        annealing: settings of the search.
        name: of the records.
    """

    sets: Searched
    trial: Trial = dataclasses.field(default_factory=Trial)
    annealing: Annealing = dataclasses.field(default_factory=Annealing)
    name: str = "search"

    def check(self, task: Task) -> None:
        """Refuses a budget that no rates meet, and statistics that cannot be taken anew.

        Raises:
            ArgumentError: nothing is prunable; what `Trial.check` raises.
            BudgetError: even the largest rates cost more than the budget.
        """
        self.sets.check(task)
        self.trial.check(task)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The search in steps of one candidate."""
        rows = _Blocks(self.sets, pruned, task)
        price = lambda rates: rows.price(rows.largest(rows.counts(rates)))
        goal = float(self.sets.budget.value) + 1e-9
        arrange = by_size(rows.sizes, 1 - goal, rows.kinds, price)
        searcher = self.annealing.searcher(len(rows.rows), arrange)
        score = self.trial.scorer(task, key)

        def judged(candidates: np.ndarray) -> np.ndarray:
            masks = [rows.largest(rows.counts(each)) for each in candidates]
            return self.trial.judged(pruned, masks, task, key, score)

        def finish(candidate: np.ndarray) -> Pruned:
            counts = rows.by_kind(rows.counts(candidate))
            return pruned._replace(extra={"counts": counts})

        steps = self.annealing.evaluations
        return searching(searcher, key, steps, steps, judged, finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Searches to the end, in memory; a record of the best score."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics, learner.steps)]


@dataclasses.dataclass(frozen=True)
class Purify:
    """Cuts groups whose norm is near 0, by thresholds that are searched; quality does not drop.

    A candidate has a threshold for every block, a fraction of the mean norm of the groups left in
    it. Its score is the fraction of the dense net that goes, and none where the quality on the
    held-out images is lower than before.

    Attributes:
        sets: which groups.
        trial: how the quality is measured.
        annealing: settings of the search, which begins at thresholds of 0.
        drop: of the quality, that is taken for none.
        name: of the records.
    """

    sets: Searched
    trial: Trial = dataclasses.field(default_factory=lambda: Trial(recalibrate=0))
    annealing: Annealing = dataclasses.field(default_factory=Annealing)
    drop: float = 0.0
    name: str = "purify"

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The search in steps of one candidate."""
        rows = _Blocks(self.sets, pruned, task)
        clipped = lambda numbers: np.minimum(numbers, 1.0)
        searcher = self.annealing.searcher(len(rows.rows), clipped, from_zero=True)
        score = self.trial.scorer(task, key)
        least = (
            score(pruned.variables, [rows.largest(rows.counts_above(np.zeros(len(rows.rows))))])[0]
            - self.drop
        )

        def judged(candidates: np.ndarray) -> np.ndarray:
            masks = [rows.largest(rows.counts_above(each)) for each in candidates]
            good = self.trial.judged(pruned, masks, task, key, score) >= least - 1e-7
            gone = np.array([1 - rows.price(each) for each in masks])
            return np.where(good, gone, -np.inf)

        def finish(candidate: np.ndarray) -> Pruned:
            masks = rows.largest(rows.counts_above(candidate))
            variables = apply_masks(pruned.variables, rows.net.weight_masks(masks))
            return pruned._replace(variables=variables, masks=masks)

        steps = self.annealing.evaluations
        return searching(searcher, key, steps, steps, judged, finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Searches to the end, in memory; a record of the last step and the fractions kept."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics | fractions(task, done.masks), learner.steps)]

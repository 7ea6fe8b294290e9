"""Searches how much of every layer goes, pruning at once; and cuts what is near 0 afterwards."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jprune import allocate, blocks, errors
from jprune.base import Learner, Masks, Pruned, Records, Searcher, Task
from jprune.blocks.kinds import least_of
from jprune.blocks.members import total
from jprune.learners import to_the_end
from jprune.masks import apply_masks, keep_best
from jprune.search.annealing import annealing
from jprune.search.rates import by_size
from jprune.stages.candidates import Trial, searching
from jprune.stages.frame import fractions, record
from jprune.stages.splitting import Sets
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


class _Blocks:
    """The blocks of all kinds in a row: their norms, sizes and masks."""

    def __init__(self, sets: Sets, pruned: Pruned, task: Task):
        self.net, self.sets, self.before = Net(task), sets, pruned.masks
        self.families = sets.families(task)
        norms = {each.kind: blocks.norms(each, pruned.variables) for each in self.families}
        weights = self.net.leaves(self.net.shapes)
        ones = {path: np.ones(leaf.shape) for path, leaf in weights.items()}
        # (kind, block, norms of its groups, the fewest that stay, weights of all)
        self.rows = [
            (each.kind, name, norms[each.kind][name], least, total(each[name], ones, lambda x: x))
            for each in self.families
            for name, least in least_of(each, sets.budget).items()
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
        # A state is float32: numbers are rounded as they will be when they are read from it.
        rates = np.asarray(np.asarray(rates, np.float32), float)
        alive = [int((norm > 0).sum()) for _, _, norm, _, _ in self.rows]
        return [
            max(min(least, n), n - round(rate * n))
            for (_, _, _, least, _), n, rate in zip(self.rows, alive, rates)
        ]

    def masks(self, kept: list[np.ndarray]) -> Masks:
        """Masks of the net from bools of the blocks' groups."""
        return blocks.masks(self.families, self.by_kind(kept), self.before)

    def largest(self, counts: list[int]) -> Masks:
        """Masks that keep so many of the largest groups of every block."""
        return self.masks(
            [np.asarray(keep_best(norm, n)) for (_, _, norm, _, _), n in zip(self.rows, counts)]
        )

    def near_zero(self, thresholds: np.ndarray) -> Masks:
        """Masks without groups whose norm is below a threshold times the mean of their block."""
        kept = []
        limits = np.asarray(np.asarray(thresholds, np.float32), float)
        for (_, _, norm, least, _), limit in zip(self.rows, limits):
            alive = norm > 0
            floor = np.asarray(keep_best(norm, max(1, least)))
            kept.append(
                alive & ((norm >= limit * norm[alive].mean() if alive.any() else alive) | floor)
            )
        return self.masks(kept)

    def price(self, masks: Masks) -> float:
        """What masks keep of the dense net."""
        return allocate.fraction_kept(self.net.groups, masks, self.sets.budget, self.net.cost)


@dataclasses.dataclass(frozen=True)
class SearchRates:
    """Simulated annealing over the rates of all blocks; nothing is masked yet.

    A candidate is pruned at once, by the norms of the present weights, and scored without training.
    Rates are of what is left of a block; they rise with its size. Afterwards `extra` has `counts`,
    {kind: {block: groups kept}}, which `Sets(spread="searched")` reads.

    Attributes:
        sets: which groups go, and the budget.
        trial: how candidates are scored.
        annealing: settings of the search.
        name: of the records.
    """

    sets: Sets
    trial: Trial = dataclasses.field(default_factory=Trial)
    annealing: Annealing = dataclasses.field(default_factory=Annealing)
    name: str = "search"

    def check(self, task: Task) -> None:
        """Refuses a budget that no rates meet, and statistics that cannot be taken anew.

        Raises:
            ArgumentError: nothing is prunable; what `Trial.check` raises.
            BudgetError: even the largest rates cost more than the budget.
        """
        families, net = self.sets.families(task), Net(task)
        sizes = {e.kind: {name: np.ones(b.size) for name, b in e.items()} for e in families}
        allocate.refuse_impossible_jointly(families, sizes, self.sets.budget, net.cost)
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

    sets: Sets
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
        least = score(pruned.variables, [rows.near_zero(np.zeros(len(rows.rows)))])[0] - self.drop

        def judged(candidates: np.ndarray) -> np.ndarray:
            masks = [rows.near_zero(each) for each in candidates]
            good = self.trial.judged(pruned, masks, task, key, score) >= least - 1e-7
            gone = np.array([1 - rows.price(each) for each in masks])
            return np.where(good, gone, -np.inf)

        def finish(candidate: np.ndarray) -> Pruned:
            masks = rows.near_zero(candidate)
            variables = apply_masks(pruned.variables, rows.net.weight_masks(masks))
            return pruned._replace(variables=variables, masks=masks)

        steps = self.annealing.evaluations
        return searching(searcher, key, steps, steps, judged, finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Searches to the end, in memory; a record of the last step and the fractions kept."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics | fractions(task, done.masks), learner.steps)]

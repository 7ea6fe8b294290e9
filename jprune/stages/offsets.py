"""Searches one offset a group, added to the scores of its units before all groups compete."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jprune import allocate, errors
from jprune.base import Budget, Learner, Pruned, Records, Searcher, Task
from jprune.learners import to_the_end
from jprune.search.aging import aging
from jprune.stages.candidates import Trial, searching
from jprune.stages.frame import check_prunable, fractions, record
from jprune.stages.prune import CriterionOf, Prune
from jprune.train.net import Net
from jprune.units import to_units

Units = Mapping[str, np.ndarray]
"""{group: [units]}."""


@dataclasses.dataclass(frozen=True)
class Aging:
    """Settings of the search; see `jprune.search.aging`.

    Attributes:
        evaluations: candidates in all.
        population: length of the queue.
        tournament: candidates drawn of it.
        mutated: fraction of the groups that a mutation changes.
        scale: whether every group has a factor too.
    """

    evaluations: int = 400
    population: int = 64
    tournament: int = 16
    mutated: float = 0.1
    scale: bool = False

    def searcher(self, groups: int) -> Searcher:
        """The search over so many groups."""
        return aging(
            groups, 2 if self.scale else 1, self.evaluations, self.population, self.tournament,
            self.mutated, falling=(1,) if self.scale else (),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SearchOffsets:
    """Scores all units once, searches offsets of their groups, and masks by the best ones.

    The record has the score of the `best` candidate, that of `plain` (no offsets: the base scores
    as they are), how many were `evaluated`, and the fractions kept.

    Attributes:
        criterion: makes the criterion of the base scores, of which a group's are summed by unit.
        budget: what may be kept.
        least: fraction of a group that stays, and two units at least, where no floor is written.
        trial: how candidates are scored.
        aging: settings of the search.
        batches: training batches for the base scores, where they look at data.
        batch_size: examples in one.
        name: of the record.
    """

    criterion: CriterionOf
    budget: Budget
    least: float = 0.1
    trial: Trial = dataclasses.field(default_factory=Trial)
    aging: Aging = dataclasses.field(default_factory=Aging)
    batches: int = 30
    batch_size: int = 64
    name: str = "search"

    def __post_init__(self):
        errors.check_numbers(
            "the search of offsets", ("least", self.least, 0 <= self.least < 1, "in [0, 1)")
        )
        self.aging.searcher(1)

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` and `Trial.check` do."""
        check_prunable(task, self.floored(task))
        self.trial.check(task)

    def floored(self, task: Task) -> Budget:
        """The budget with the floors that `least` says."""
        floors = {
            name: min(size, max(2, math.ceil(self.least * size)))
            for name, size in Net(task).groups.sizes.items()
        }
        return dataclasses.replace(self.budget, floors={**floors, **self.budget.floors})

    def scores(self, pruned: Pruned, task: Task, key: jax.Array) -> Units:
        """The base scores {group: [units]}; -inf of what is pruned already."""
        net = Net(task)
        prune = Prune(
            self.criterion, allocate.uniform, self.budget, self.batches, self.batch_size
        )  # fmt: skip
        scores = prune.scores(pruned.variables, task, key)
        if not net.are_units(scores):
            scores = to_units(net.groups, scores, within="sum", across="sum")
        alive = net.unit_masks(pruned)
        units = {name: np.asarray(score, float) for name, score in scores.items()}
        if broken := [name for name, score in units.items() if np.isnan(score).any()]:
            raise errors.ArgumentError(
                f"the scores of {broken[0]} hold NaN: the net has diverged. Write a smaller "
                "--learning-rate."
            )
        return {n: np.where(np.asarray(alive[n]), score, -np.inf) for n, score in units.items()}

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The search in steps: the first has the whole population, the others one candidate."""
        net = Net(task)
        scores = self.scores(pruned, task, key)
        remove = net.once(_remover, self.floored(task))
        alive = {name: np.asarray(mask, bool) for name, mask in net.unit_masks(pruned).items()}
        searcher = self.aging.searcher(len(scores))
        first = min(self.aging.population, self.aging.evaluations)
        score = self.trial.scorer(task, key, 1 if self.trial.train else first)

        def masks_of(candidate: np.ndarray) -> dict[str, np.ndarray]:
            moved = compensated(scores, candidate)
            masks = remove(moved, alive, 0, 1.0)
            return {name: np.asarray(mask) for name, mask in masks.items()}

        def judged(candidates: np.ndarray) -> np.ndarray:
            masks = [masks_of(candidate) for candidate in candidates]
            return self.trial.judged(pruned, masks, task, key, score)

        def finish(candidate: np.ndarray) -> Pruned:
            masks = masks_of(candidate)
            variables = self.trial.settled(task, pruned.variables, masks, key)
            return pruned._replace(variables=variables, masks=masks)

        steps = 1 + self.aging.evaluations - first
        learner = searching(searcher, key, steps, first, judged, finish)

        def step(state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
            state, metrics = learner.step(state, batch)
            # The last of the first population has no offsets.
            return state, {**metrics, "plain": float(state.scores[first - 1])}

        return learner._replace(step=step)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Searches to the end, in memory; a record of the last round and the fractions kept."""
        learner = self.learner(pruned, task, key)
        done, metrics = to_the_end(learner)
        return done, [record(self.name, metrics | fractions(task, done.masks), learner.steps)]


def _remover(net: Net, budget: Budget) -> Callable[..., Any]:
    return jax.jit(allocate.lowest_first(net.groups.sizes, budget, net.cost))


def compensated(scores: Units, candidate: np.ndarray) -> dict[str, np.ndarray]:
    """Scores alpha_l Theta_i + beta_l of a candidate.

    Args:
        scores: Theta, {group: [units]}; -inf of what is gone.
        candidate: [groups] or [2 * groups]: offsets in standard deviations of a group's scores, and
            logarithms of its factor.

    Example:
        >>> scores = {"a": np.array([1.0, 3.0]), "b": np.array([4.0, 8.0])}
        >>> {n: s.tolist() for n, s in compensated(scores, np.array([2.0, 0.0])).items()}
        {'a': [3.0, 5.0], 'b': [4.0, 8.0]}
    """
    kinds = np.reshape(candidate, (-1, len(scores)))
    moved = {}
    for place, (name, score) in enumerate(scores.items()):
        sigma = spread_of(score, scores)
        alpha = math.exp(kinds[1, place]) if len(kinds) > 1 else 1.0
        # s_i = alpha_l Theta_i + beta_l, with beta_l = sigma_l b_l
        moved[name] = alpha * score + sigma * kinds[0, place]
    return moved


def spread_of(score: np.ndarray, scores: Units) -> float:
    """The standard deviation of a group's scores; where all are equal, that of all groups."""
    finite = lambda values: values[np.isfinite(values)]
    of = lambda values: float(np.std(finite(values))) if len(finite(values)) else 0.0
    # Equal scores have none, and their group could not be moved past the others.
    return of(score) or of(np.concatenate([*scores.values()])) or 1.0

"""Searches widths and depths by a partial order, candidates being trained for a short time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.allocate.budgets import check_scores, filled
from jprune.base import Budget, Learner, Pruned, Records, Task, run_criterion
from jprune.learners import to_the_end
from jprune.learners.width_mixture import Mixture
from jprune.masks import keep_best
from jprune.search.partial_order import PartialOrder
from jprune.search.space import Space, check
from jprune.stages.candidates import Trial, searching
from jprune.stages.choices import Choices, costs_of, price_of
from jprune.stages.frame import fractions, record
from jprune.stages.prune import l1_of
from jprune.train.net import Net
from jprune.units import ones, standing, to_units


@dataclasses.dataclass(frozen=True)
class SearchByOrder:
    """Trains shapes, one after the other, and none that cannot win; masks by the best one.

    A candidate keeps the units with the largest L1 norms and the first blocks of every stage. It
    begins with the net's weights, is trained, and scored on held-out images; its weights are then
    thrown away. To the best one the next best units are added that the budget leaves room for: by
    the order it is no worse for them.

    The record has the score of the `best` candidate, how many were `evaluated`, how many members of
    the space were `spared` and how many are `left`, the `frontier` as (cost, score), and the
    fractions kept.

    Attributes:
        budget: what may be kept; floors and multiples hold for widths.
        choices: the widths and depths of the space.
        tied: whether groups with the same number of units have one width.
        window: candidates cost (1 - window) of the budget to all of it.
        evaluations: candidates that are trained, at most.
        slack: see `jprune.search.partial_order.cannot_win`.
        trial: how candidates are trained and scored.
        name: of the record.
    """

    budget: Budget
    choices: Choices
    tied: bool = True
    window: float = 0.5
    evaluations: int = 16
    slack: float = 0.0
    trial: Trial = dataclasses.field(default_factory=Trial)
    name: str = "search"

    def __post_init__(self):
        errors.check_numbers(
            "the search", ("window", self.window, 0 < self.window <= 1, "in (0, 1]")
        )

    def check(self, task: Task) -> None:
        """Refuses nets without anything to choose, and budgets that no candidate meets.

        Raises:
            ArgumentError: no width and no depth; a budget in what the cost model does not measure.
            BudgetError: the space has no member.
        """
        self.choices.check(task, self.budget)
        check(self.search(task)[0].space)
        self.trial.check(task)

    def search(
        self, task: Task
    ) -> tuple[PartialOrder, Callable[[np.ndarray], dict[str, np.ndarray]]]:
        """The search in the space of a net, and `counts(genes [p, genes])`.

        Counts are {group: [p] units that stay, branch: [p] 1 or 0}.
        """
        mixture = self.choices.mixture(task, self.budget)
        groups, names = mixture.groups, [*mixture.sizes]
        # One gene for all groups with the same menu, one for every stage.
        of = {n: mixture.widths[n] if self.tied and n in mixture.widths else n for n in names}
        slots = [*dict.fromkeys(of.values())]
        place = np.array([slots.index(of[name]) for name in names])
        options = tuple(
            next(mixture.sizes[name] for name in names if of[name] == slot) for slot in slots
        )
        # Choices [p, names] of genes [p, slots]
        choices = lambda genes: np.asarray(genes, int)[:, place]
        counts = lambda genes: _counts(mixture, dict(zip(names, choices(genes).T)))
        # Units inside of a block that is gone are as many as none.
        inside = {
            branch: {*groups.names} - {*standing(groups, {branch: np.zeros(1, bool)})}
            for stage in mixture.depths.values()
            for branch in stage.branches
        }

        def sizes_of(genes: np.ndarray) -> np.ndarray:
            found = counts(genes)
            for branch, within in inside.items():
                found |= {name: found[name] * found[branch] for name in within & {*found}}
            return np.stack([*found.values()], axis=1)

        costs = costs_of(price_of(task, self.budget), [*counts(np.zeros((1, len(slots)), int))])
        cost = lambda genes: costs(np.stack([*counts(genes).values()], axis=1))
        high = float(self.budget.value)
        space = Space(options, cost, high, (1 - self.window) * high)
        return PartialOrder(space, sizes_of, self.evaluations, self.slack), counts

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The search in steps: a candidate in each, as long as there is one."""
        net, (search, counts) = Net(task), self.search(task)
        units = run_criterion(l1_of(task, net.groups, key), pruned.variables, ())
        units = to_units(net.groups, units)
        check_scores(units)
        scores = {name: np.asarray(score, float) for name, score in units.items()}
        score = self.trial.scorer(task, key)

        def masks_of(candidate: np.ndarray) -> dict[str, np.ndarray]:
            masks = ones(net.groups)
            for name, (count,) in counts(candidate[None]).items():
                # A branch is one unit.
                masks[name] = keep_best(scores.get(name, np.zeros(1)), int(count))
            return {name: np.asarray(mask, bool) for name, mask in masks.items()}

        def full(candidate: np.ndarray) -> dict[str, np.ndarray]:
            """Its masks, with the next best units of what the budget leaves room for."""
            masks, price = masks_of(candidate), price_of(task, self.budget)
            named = counts(candidate[None])
            inner = {name: masks[name] for name in standing(net.groups, masks)}

            def priced(wider: dict[str, np.ndarray]) -> float:
                now = {**masks, **wider}
                return float(price({name: int(now[name].sum()) for name in named}))

            goal = float(self.budget.value) + 1e-9
            return {**masks, **filled(inner, scores, self.budget, priced, goal)}

        def judged(candidates: np.ndarray) -> np.ndarray:
            return self.trial.judged(pruned, [*map(masks_of, candidates)], task, key, score)

        def finish(candidate: np.ndarray) -> Pruned:
            masks = full(candidate)
            variables = self.trial.settled(task, pruned.variables, masks, key)
            return pruned._replace(variables=variables, masks=masks)

        steps = self.evaluations
        learner = searching(search.searcher(), key, steps, steps, judged, finish)

        def step(state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
            state, metrics = learner.step(state, batch)
            spared = {"spared": float(search.spared(state)), "left": float(search.left(state))}
            return state, {**metrics, **spared}

        return learner._replace(step=step)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Searches to the end, in memory; a record of the last round and the fractions kept."""
        learner, points = self.learner(pruned, task, key), []
        search = self.search(task)[0]

        def finish(state: Any) -> Pruned:
            points.extend(search.frontier(state))
            return learner.finish(state)

        done, metrics = to_the_end(learner._replace(finish=finish))
        line = metrics | fractions(task, done.masks) | {"frontier": points}
        return done, [record(self.name, line, learner.steps)]


def _counts(mixture: Mixture, choice: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{group: units that stay, branch: 1 or 0} of the numbers of candidates, all [p]."""
    counts = {name: np.asarray(menu)[choice[name]] for name, menu in mixture.widths.items()}
    for name, stage in mixture.depths.items():
        stay = np.asarray(stage.menu)[choice[name]]
        counts |= {branch: (stay > place) * 1 for place, branch in enumerate(stage.branches)}
    return counts

"""Narrows one group at a time: every proposal is trained a little, and the best one goes on."""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import blocks, errors
from jprune.allocate.budgets import floor_of, fraction_kept, step_of, widths
from jprune.base import Batch, Budget, Learner, Masks, Pruned, Records, Task, Variables
from jprune.learners import to_the_end
from jprune.masks import intersect, keep_best
from jprune.search.narrowing import NarrowingState, narrowing, rounds_to
from jprune.stages.candidates import Trial
from jprune.stages.frame import check_prunable, fractions, record
from jprune.train.net import Net
from jprune.units import expand

STEP, ROUNDS = 0.025, 40
"""The authors' first step, and rounds after which larger ones have met the budget."""


class RoundState(NamedTuple):
    """A round under way.

    Attributes:
        search: where it began.
        number: of the next proposal.
        scores: [groups]: of the proposals so far.
        variables: that it began with.
        masks: {group: bool [units]} that it began with.
        top: variables of the best proposal so far.
    """

    search: NarrowingState
    number: jax.Array
    scores: jax.Array
    variables: Variables
    masks: Masks
    top: Variables


@dataclasses.dataclass(frozen=True)
class NarrowByProposals:
    """Rounds in which each group alone loses as few units as meet the round's target.

    A group loses the units of the smallest norm. Each proposal is trained and scored as `trial`
    says, all of a round on the same batches; the best one, with its weights, begins the next round.
    It ends with the round in which the budget is met. The resource is what the budget names, and is
    asked of the net's cost model.

    Attributes:
        budget: what is kept; floors and multiples hold.
        trial: how proposals are trained and scored.
        step: what the first round takes, a fraction of the dense net; None: 0.025, or as much as
            meets the budget in 40 rounds.
        decay: what a round takes, as a fraction of the one before.
        ratio: the proposal wins that loses the least for what it saves; else that of the highest
            score.
        name: of the records.
    """

    budget: Budget
    trial: Trial = dataclasses.field(default_factory=Trial)
    step: float | None = None
    decay: float = 0.96
    ratio: bool = False
    name: str = "search"

    def __post_init__(self):
        errors.check_numbers(
            "the narrowing",
            ("step", self.step, self.step is None or 0 < self.step <= 1, "in (0, 1]"),
            ("decay", self.decay, 0 < self.decay <= 1, "in (0, 1]"),
        )
        self.rounds(1.0)

    def first_step(self) -> float:
        """What the first round takes."""
        if self.step is not None:
            return self.step
        # The sum of 40 steps of 1, decay, decay^2, ...
        whole = sum(self.decay**number for number in range(ROUNDS))
        return max(STEP, (1 - float(self.budget.value)) / whole)

    def rounds(self, price: float) -> int:
        """Rounds that meet their targets from a price to the budget.

        Raises:
            BudgetError: the steps end above the budget.
        """
        return rounds_to(price - float(self.budget.value), self.first_step(), self.decay)

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` and `Trial.check` do."""
        check_prunable(task, self.budget)
        self.trial.check(task)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The rounds in steps of one proposal, an epoch being a round.

        Raises:
            ArgumentError: weights that are not finite.
            BudgetError: the groups cannot meet the budget.
            DivergenceError: no proposal of a round has a finite score; while it runs.
        """
        rounds = _Rounds(self, pruned, task, key)
        groups = len(rounds.filters)
        # Every round meets its target, or takes a group to its smallest width.
        most = self.rounds(rounds.price(rounds.widths_of(rounds.alive))) + groups
        return Learner(
            steps=most * groups,
            epoch=groups,
            init=rounds.init,
            batches=lambda start: itertools.repeat({}),
            step=rounds.step,
            variables=lambda state: state.variables,
            finish=rounds.finish,
            over=lambda state: not len(rounds.proposals(state.search)),
        )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Goes on until the budget is met, in memory; a record with the fractions kept."""
        done, metrics = to_the_end(self.learner(pruned, task, key))
        return done, [record(self.name, metrics | fractions(task, done.masks))]


class _Rounds:
    """The functions of the stage's learner, for one net."""

    def __init__(self, stage: NarrowByProposals, pruned: Pruned, task: Task, key: jax.Array):
        self.stage, self.pruned, self.task, self.key = stage, pruned, task, key
        self.net = net = Net(task)
        self.filters = blocks.filters(net.groups, scales=False)
        net.refuse_nan(pruned.variables, tuple(sorted(self.filters.counted)))
        self.alive = {n: np.asarray(mask, bool) for n, mask in net.unit_masks(pruned).items()}
        self.score = stage.trial.scorer(task, key)
        # The price of widths is asked for often, and is a function of them alone.
        self.priced = functools.lru_cache(maxsize=None)(self._priced)
        level = None
        if stage.ratio:
            level = float(self.score(pruned.variables, [self.whole(self.alive)])[0])
        goal = float(stage.budget.value) + 1e-9
        self.searcher = narrowing(
            self.menu(), self.price, goal, stage.first_step(), stage.decay, level
        )
        self.asked: dict[tuple[int, ...], np.ndarray] = {}

    def widths_of(self, masks: Masks) -> np.ndarray:
        """[groups]: units that are alive, of the groups that may be narrowed."""
        return np.array([int(np.sum(masks[name])) for name in self.filters])

    def menu(self) -> list[list[int]]:
        """The widths that each group may have, up to its present one."""
        budget, menu = self.stage.budget, []
        for name, present in zip(self.filters, self.widths_of(self.alive)):
            size = self.alive[name].size
            allowed = widths(size, floor_of(name, size, budget), step_of(size, budget))
            menu.append([*(width for width in allowed if width < present), int(present)])
        return menu

    def price(self, counts: np.ndarray) -> float:
        """What widths keep of the dense net, in the budget's unit."""
        return self.priced(tuple(int(count) for count in counts))

    def _priced(self, counts: tuple[int, ...]) -> float:
        # Which units they are costs nothing.
        some = {n: np.arange(self.alive[n].size) < c for n, c in zip(self.filters, counts)}
        masks = {**self.alive, **some}
        return fraction_kept(self.net.groups, masks, self.stage.budget, self.net.cost)

    def proposals(self, search: NarrowingState) -> np.ndarray:
        """What the search proposes, worked out once a round."""
        present = tuple(np.asarray(search.widths).tolist())
        if present not in self.asked:
            self.asked = {present: self.searcher.ask(search)}
        return self.asked[present]

    def narrower(self, variables: Variables, masks: Masks, counts: np.ndarray) -> Masks:
        """Masks of so many of the largest units that are alive."""
        norms = blocks.norms(self.filters, variables)
        result = {name: np.asarray(mask, bool) for name, mask in masks.items()}
        for name, count in zip(self.filters, counts):
            # ||W_i|| of the filters that make unit i
            alive = np.where(result[name], norms[name], -np.inf)
            result[name] = np.asarray(keep_best(alive, int(count)))
        return result

    def whole(self, masks: Masks) -> Masks:
        """Masks of the net: those of single weights, if there were any, go on."""
        before = self.pruned.masks
        if before is None or self.net.are_units(before):
            return masks
        return intersect(before, expand(self.net.groups, masks))

    def begun(self, search: NarrowingState, variables: Variables, masks: Masks) -> RoundState:
        """The beginning of a round."""
        zero, scores = jnp.zeros((), jnp.int32), jnp.full(len(self.filters), -jnp.inf)
        return RoundState(search, zero, scores, variables, masks, variables)

    def init(self) -> RoundState:
        """The beginning of the first."""
        return self.begun(self.searcher.init(self.key), self.pruned.variables, self.alive)

    def step(self, state: RoundState, batch: Batch) -> tuple[RoundState, dict[str, Any]]:
        """Trains and scores the next proposal; the last of a round decides it."""
        del batch  # proposals of a round are trained on the same batches, those of its key
        candidates, number = self.proposals(state.search), int(state.number)
        scores, top = np.array(state.scores), state.top
        if number < len(candidates):
            masks = self.whole(self.narrower(state.variables, state.masks, candidates[number]))
            drawn = jax.random.fold_in(self.key, int(state.search.round))
            begun = self.pruned._replace(variables=state.variables)
            variables = self.stage.trial.trained(begun, masks, self.task, drawn)
            scores[number] = self.score(variables, [masks])[0]
            # The winner of those so far: its weights go on if it stays so.
            so_far = slice(number + 1)
            after = self.searcher.tell(state.search, candidates[so_far], scores[so_far])
            if np.array_equal(after.widths, candidates[number]):
                top = variables
        metrics = {"best": float(scores.max()), "round": float(state.search.round) + 1}
        state = state._replace(number=state.number + 1, scores=jnp.asarray(scores), top=top)
        if number + 1 < len(self.filters):
            return state, metrics
        return self.decided(state, candidates, scores[: len(candidates)]), metrics

    def decided(self, state: RoundState, candidates: np.ndarray, scores: np.ndarray) -> RoundState:
        """The next round, which begins with the winner of this one."""
        if len(candidates) and not np.isfinite(scores).any():
            raise errors.DivergenceError(
                "no proposal of the round has a finite score: the net has diverged. Write a "
                "smaller rate."
            )
        search = self.searcher.tell(state.search, candidates, scores)
        masks = self.narrower(state.variables, state.masks, np.asarray(search.widths))
        return self.begun(search, state.top, masks)

    def finish(self, state: RoundState) -> Pruned:
        """The last winner, with the statistics that it is scored with."""
        masks = self.whole({n: np.asarray(mask, bool) for n, mask in state.masks.items()})
        variables = self.stage.trial.settled(self.task, state.variables, masks, self.key)
        return self.pruned._replace(variables=variables, masks=masks)

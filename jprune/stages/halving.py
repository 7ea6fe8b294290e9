"""Training during which the units that the next layer misses least go, found by halves."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.allocate.budgets import floor_of, step_of, widths
from jprune.allocate.lowest_first import priced
from jprune.allocate.uniform import uniform
from jprune.base import (
    Batch,
    Budget,
    Learner,
    Masks,
    Pruned,
    PyTree,
    Records,
    Task,
    is_none,
)
from jprune.graph.shrink.concrete import copied
from jprune.learners.halving import Halving, HalvingState, halving
from jprune.learners.isolated import isolated_damages, readers
from jprune.masks import apply_masks, intersect, masks_of, with_masks
from jprune.stages.frame import check_prunable, fractions, record
from jprune.stages.prune import Prune, l1_of
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState
from jprune.units import expand, ones

STOPS = ("budget", "theta")
PERIOD, WARMUP = 1000, 500
"""The authors' steps from one decision of a layer to the next, and before the first."""


class SearchState(NamedTuple):
    """State of training with a search beside it."""

    train: TrainState
    search: HalvingState


@dataclasses.dataclass(frozen=True)
class Halve:
    """Trains, and beside it finds by halves which units go; they are masked at once.

    It ends by itself at the end of an epoch in which the budget is met. With every metric come
    `units`, how many of those that may go are left, and `moves`, how often some went.

    Attributes:
        train: how long at most, and how.
        budget: what is kept; floors and multiples hold.
        theta: the largest mean damage of a half that goes.
        period: steps from one decision of a layer to the next; None: the authors' 1000, in short
            runs a sixtieth of the steps.
        warmup: steps before the first; None: the authors' 500, in short runs a twentieth.
        streams: whether units of residual streams go too.
        stop: "budget": nothing goes once it is met; "theta": the threshold alone decides.
        name: of the records.
    """

    train: Train
    budget: Budget
    theta: float = 0.01
    period: int | None = None
    warmup: int | None = None
    streams: bool = False
    stop: str = "budget"
    name: str = "halve"

    def __post_init__(self):
        errors.check_words("aofp", ("stop", self.stop, STOPS))
        errors.check_numbers(
            "aofp",
            ("theta", self.theta, self.theta >= 0, "0 or more"),
            ("period", self.period, self.period is None or self.period >= 1, "1 or more"),
            ("warmup", self.warmup, self.warmup is None or self.warmup >= 0, "0 or more"),
        )

    def names(self, net: Net) -> tuple[str, ...]:
        """Groups that are searched.

        Raises:
            ArgumentError: there is none.
        """
        whole = frozenset() if self.streams else net.groups.streams
        sizes = net.groups.sizes
        found = tuple(
            name
            for name in readers(net.groups)
            if name not in whole and floor_of(name, sizes[name], self.budget) < sizes[name]
        )
        if not found:
            raise errors.ArgumentError(
                f"no unit of {net.task.name} may go: all are frozen, left whole by floors, or on "
                "residual streams. Write streams=true for the last."
            )
        return found

    def check(self, task: Task) -> None:
        """Refuses an average of weights that go to 0, and a budget out of reach.

        Raises:
            ArgumentError: nothing may go.
            BudgetError: the groups that are searched cannot meet the budget.
        """
        self.train.takes("aofp", "optimizer", "warmup", "clip", "accumulate")
        names = self.names(Net(task))
        check_prunable(task, self.only(task, names))

    def only(self, task: Task, names: tuple[str, ...]) -> Budget:
        """The budget with the groups that are not searched left whole."""
        sizes = Net(task).groups.sizes
        whole = {name: size for name, size in sizes.items() if name not in names}
        return dataclasses.replace(self.budget, floors={**self.budget.floors, **whole})

    def search(self, task: Task, steps: int) -> Halving:
        """The search of a training of so many steps."""
        net = Net(task)
        names, sizes = self.names(net), net.groups.sizes
        of = lambda n: widths(
            sizes[n], floor_of(n, sizes[n], self.budget), step_of(sizes[n], self.budget)
        )
        price, goal = priced(sizes, self.budget, net.cost)
        fits = lambda masks: price({**ones(net.groups), **masks}) <= goal + 1e-6
        period = max(1, min(PERIOD, steps // 60)) if self.period is None else self.period
        begin = min(WARMUP, steps // 20) if self.warmup is None else self.warmup
        return halving(
            {n: sizes[n] for n in names}, {n: of(n) for n in names}, self.theta, period, begin,
            fits if self.stop == "budget" else None,
        )  # fmt: skip

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps; raises what `check` does."""
        self.check(task)
        net = Net(task)
        alive = {n: np.asarray(mask, bool) for n, mask in net.unit_masks(pruned).items()}
        before, whole = net.weight_masks(pruned.masks), expand(net.groups, alive)
        # A mask for every leaf, since those that move later are of all leaves.
        both = lambda mask, other: other if mask is None else mask & other
        held = jax.tree.map(both, whole if before is None else before, whole, is_leaf=is_none)
        learner = self.train.learner(pruned._replace(masks=held), task, key)
        search, step = net.once(_made, self, learner.steps)
        price, goal = priced(net.groups.sizes, self.budget, net.cost)
        masks = lambda state: {**alive, **search.units(state.search.alive)}

        def init() -> SearchState:
            begun = search.init({name: alive[name] for name in self.names(net)})
            return SearchState(learner.init(), copied(begun))

        def taken(state: SearchState, batch: Batch) -> tuple[SearchState, dict[str, Any]]:
            after, metrics = learner.step(state.train, batch)
            after, moves, units = step(SearchState(after, state.search), batch["image"], key)
            return after, {**metrics, "moves": moves, "units": units}

        def over(state: SearchState) -> bool:
            return self.stop == "budget" and bool(price(masks(state)) <= goal + 1e-6)

        def finish(state: SearchState) -> Pruned:
            found: Masks = {name: np.asarray(mask, bool) for name, mask in masks(state).items()}
            if pruned.masks is not None and not net.are_units(pruned.masks):
                found = intersect(pruned.masks, expand(net.groups, found))
            return learner.finish(state.train)._replace(masks=found)

        return learner._replace(
            init=init,
            step=taken,
            over=over,
            variables=lambda state: learner.variables(state.train),
            finish=finish,
        )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains until it ends, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class MeetBudget:
    """Cuts what a search has left above the budget: the smallest units, all groups alike.

    Attributes:
        halve: the search, whose groups and budget these are.
        correct: False leaves the net as the search left it.
        name: of the record: fractions kept, and `forced`, how many units the search had left.
    """

    halve: Halve
    correct: bool = True
    name: str = "prune"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under its masks."""
        net = Net(task)
        alive = {name: np.asarray(mask, bool) for name, mask in net.unit_masks(pruned).items()}
        price, goal = priced(net.groups.sizes, self.halve.budget, net.cost)
        after = pruned._replace(masks=alive)
        if self.correct and float(price(alive)) > goal + 1e-6:
            budget = self.halve.only(task, self.halve.names(net))
            after, _ = Prune(l1_of, uniform, budget)(after, task, key)
        forced = sum(int((mask & ~after.masks[name]).sum()) for name, mask in alive.items())
        metrics = fractions(task, after.masks) | {"forced": forced}
        return after, [record(self.name, metrics)]


def _made(net: Net, stage: Halve, steps: int) -> tuple[Halving, Callable[..., Any]]:
    """The search, and its compiled step beside training's."""
    names, task = stage.names(net), net.task
    search = stage.search(task, steps)
    damages = isolated_damages(task.fn, net.groups, names)

    def masked(state: TrainState, units: PyTree) -> TrainState:
        """The training under narrower masks: what goes is 0 at once."""
        of_params, of_rest = task.split(expand(net.groups, units))
        # Units of groups that are not searched may be masked from before.
        both = jax.tree.map(jnp.logical_and, masks_of(state.opt_state), of_params)
        return state._replace(
            params=apply_masks(state.params, of_params),
            rest=apply_masks(state.rest, of_rest),
            opt_state=with_masks(state.opt_state, both),
        )

    @jax.jit
    def step(state: SearchState, x: Any, key: jax.Array) -> tuple[SearchState, Any, Any]:
        inner, now = state.train, state.search
        closed = search.closed(now, jax.random.fold_in(key, now.step))
        variables = task.merge(inner.params, inner.rest)
        # score_mask = base_mask without the half
        found = damages(variables, search.units(now.alive & ~closed), x)
        now = search.charged(now, closed, jnp.stack([found[name] for name in names]))

        def decided(pair: Any) -> Any:
            inner, now = pair
            now = search.moved(now)
            return masked(inner, search.units(now.alive)), now

        pair = jax.lax.cond(search.due(now).any(), decided, lambda pair: pair, (inner, now))
        after = SearchState(*pair)
        return after, after.search.moves.sum(), after.search.alive.sum()

    return search, step

"""Training in which the least salient units dwindle to 0, in periods, until a budget is met."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import blocks, errors
from jprune.allocate import lowest_first
from jprune.base import Budget, Learner, Pruned, Records, Schedule, Task
from jprune.masks import apply_masks
from jprune.sparsify.dwindling import SALIENCES, dwindling
from jprune.stages.frame import check_prunable
from jprune.stages.silent import folded, noise
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState, plain


@dataclasses.dataclass(frozen=True)
class Dwindle:
    """A `Wrap` under which units dwindle behind the optimizer.

    Attributes:
        budget: what is kept.
        begin: steps before the first period.
        period: steps of a period.
        periods: how many there are.
        weights: see `jprune.sparsify.saliences`.
    """

    budget: Budget
    begin: int
    period: int
    periods: int
    weights: tuple[float, ...]

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        units = blocks.filters(net.groups, shifts=True)
        going = dwindling(
            units, lowest_first(net.groups.sizes, self.budget, net.cost),
            begin=self.begin, period=self.period, periods=self.periods, weights=self.weights,
        )  # fmt: skip
        return lambda inner: optax.chain(inner, going)


@dataclasses.dataclass(frozen=True)
class DwindleUnits:
    """Training in which units dwindle to 0 early, while all others are trained to the end.

    Attributes:
        train: how long, and how.
        budget: what is kept of the dense net.
        begin: fraction of the steps before the first units are chosen.
        until: fraction of the steps after which as many are 0 as the budget asks for.
        periods: so many times units are chosen; fewer where there are fewer steps.
        weights: of the five measures that units are compared by, see `jprune.sparsify.saliences`.
        name: of the records.
    """

    train: Train
    budget: Budget
    begin: float = 0.1
    until: float = 0.2
    periods: int = 10
    weights: tuple[float, ...] = (0.2,) * 5
    name: str = "dwindle"

    def __post_init__(self):
        object.__setattr__(self, "weights", tuple(self.weights))
        errors.check_numbers(
            "hesso",
            ("begin", self.begin, 0 <= self.begin < 1, "in [0, 1)"),
            ("until", self.until, self.begin < self.until <= 1, "above begin, and 1 at most"),
            ("periods", self.periods, self.periods >= 1, "1 or more"),
        )
        right = len(self.weights) == len(SALIENCES) and min(self.weights) >= 0
        if not right or not sum(self.weights) > 0:
            raise errors.ArgumentError(
                f"hesso(weights={self.weights}); it is one number of 0 or more for each of "
                f"{', '.join(SALIENCES)}, not all 0."
            )

    def check(self, task: Task) -> None:
        """Refuses nets without anything to prune, and budgets out of reach."""
        self.train.takes("hesso", "optimizer", "warmup", "clip", "accumulate")
        check_prunable(task, self.budget)

    def wrap(self, task: Task) -> Dwindle:
        """Periods in the steps that there are: together they end with the last one at most."""
        steps = self.train.optimizer_for(task).taken
        begin = min(round(self.begin * steps), steps - 1)
        there = max(1, round(self.until * steps) - begin)
        periods = min(self.periods, there)
        return Dwindle(self.budget, begin, there // periods, periods, self.weights)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps."""
        task = self.train.taught(task, pruned)
        net, optimizer = Net(task), self.train.optimizer_for(task)
        before = net.unit_masks(pruned)
        held, size = net.weight_masks(pruned.masks), self.train.batch_size
        learner = plain(task, pruned, held, optimizer, key, size, self.wrap(task))

        def init() -> TrainState:
            state = learner.init()
            inner, own = state.opt_state
            alive = {name: jnp.asarray(before[name], bool) for name in own.alive}
            return state._replace(opt_state=(inner, own._replace(alive=alive)))

        def finish(state: TrainState) -> Pruned:
            done, own = learner.variables(state), state.opt_state[1]
            net.refuse_nan(done, net.groups.kernels)
            masks = {**before, **{name: np.array(units) for name, units in own.alive.items()}}
            gone = {name: np.asarray(before[name], bool) & ~masks[name] for name in own.alive}
            if any(units.any() for units in gone.values()):
                # What a unit of 0 still says, such as sigmoid(0), goes into its readers.
                done, _ = folded(task, done, gone, noise(task, key))
            variables = apply_masks(done, net.weight_masks(masks))
            return pruned._replace(variables=variables, masks=masks)

        return learner._replace(init=init, finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)

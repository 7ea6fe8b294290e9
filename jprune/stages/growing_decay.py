"""Training under decay that grows, of chosen groups or of all."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Budget, Learner, Pruned, Records, Schedule, Task
from jprune.sparsify.growing_decay import growing_decay
from jprune.stages.group_decay import Grouped, alive_in, refuse_swings
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState


@dataclasses.dataclass(frozen=True)
class Growing:
    """A `Wrap`: decay that grows, see `sparsify.growing_decay`; the groups are in its state.

    Attributes:
        grouped: what the groups are.
        budget: whose floors are read.
        growth: by how much.
        ceiling: where it stops.
        every: steps from one growth to the next.
        start: the strength before it.
        others: the strength of groups that are not chosen.
    """

    grouped: Grouped
    budget: Budget
    growth: float
    ceiling: float
    every: int
    start: float
    others: float

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        growing = growing_decay(
            self.grouped.of(net, self.budget), self.growth, self.ceiling,
            every=self.every, start=self.start, others=self.others,
        )  # fmt: skip
        return lambda inner: optax.chain(growing, inner)


@dataclasses.dataclass(frozen=True)
class Grow:
    """Training under decay that grows, of the groups that `ChooseGroups` chose or of all.

    Attributes:
        train: how long, and how.
        budget: whose floors are read.
        grouped: what the groups are.
        ceiling: where the strength stops.
        growth: by how much it grows; None: so that it is there after `rising` of the steps.
        every: steps from one growth to the next.
        start: the strength before the first step.
        others: the strength of groups that are not chosen.
        rising: see `growth`.
        of_all: whether all groups are meant.
        name: of the records.
    """

    train: Train
    budget: Budget
    grouped: Grouped
    ceiling: float = 1.0
    growth: float | None = None
    every: int = 5
    start: float = 0.0
    others: float = 0.0
    rising: float = 0.9
    of_all: bool = False
    name: str = "grow"

    def __post_init__(self):
        growth = 1.0 if self.growth is None else self.growth
        if not (growth > 0 and self.ceiling > self.start >= 0 and self.every >= 1):
            raise errors.ArgumentError(
                f"growth={self.growth}, ceiling={self.ceiling}, start={self.start}, "
                f"every={self.every}; growth is above 0, ceiling above the start, every 1 or more."
            )

    def check(self, task: Task) -> None:
        """Refuses other optimizers than SGD, a net without such groups, and wide swings."""
        self.train.takes("decay of groups", "warmup", "clip", "accumulate")
        self.grouped.of(Net(task), self.budget)
        refuse_swings(self.train.sgd(task), self.ceiling)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps; a strength that does not come to its ceiling is said.

        Raises:
            ArgumentError: no groups were chosen.
        """
        self.check(task)
        steps, growth = self.train.sgd(task).taken, self.growth
        if growth is None:
            turns = max(1, round(self.rising * steps / self.every))
            growth = (self.ceiling - self.start) / turns
        reached = self.start + growth * -(-steps // self.every)
        if reached < 0.999 * self.ceiling:
            warnings.warn(
                f"growth={growth:.2g} every {self.every} steps comes to {reached:.2g} in {steps} "
                f"steps, and not to ceiling={self.ceiling:.2g}: groups will not have decayed. "
                "Write more epochs, a larger growth, or leave it to the default.",
                stacklevel=2,
            )
        alive = None if self.of_all else alive_in(pruned)
        wrap = Growing(
            self.grouped, self.budget, growth, self.ceiling, self.every, self.start, self.others
        )
        learner = dataclasses.replace(self.train, wrap=wrap, name=self.name).learner(
            pruned, task, key
        )

        def init() -> TrainState:
            state = learner.init()
            if alive is None:
                return state
            # Into the state, and not into the wrap: others share what was compiled.
            grown, *rest = state.opt_state
            chosen = {name: jnp.asarray(~alive[name]) for name in grown.chosen}
            return state._replace(opt_state=(grown._replace(chosen=chosen), *rest))

        return learner._replace(init=init)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)

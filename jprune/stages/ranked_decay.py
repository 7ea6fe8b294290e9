"""Training under decay that rises for the weakest groups of a block until they are gone."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.base import Budget, Learner, Pruned, Records, Schedule, Task
from jprune.sparsify.ranked_decay import ranked_decay, rises_for
from jprune.stages.group_decay import Grouped, refuse_swings
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.optimizers import Sgd
from jprune.train.step import TrainState

GONE = 12.0
"""Groups whose ceiling is not set go at exp(-12) of their size or less, if they have the time."""
FELT = 5.0
"""A group that goes at exp(-5) of its size or more is felt."""
SPARE = 0.75
"""Fraction of the steps in which all groups would go if ranks did not change."""


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A `Wrap`: decay that follows the ranks of groups, see `sparsify.ranked_decay`.

    Attributes:
        grouped: what the groups are.
        budget: whose floors are read.
        removed: (block, how many of its groups go).
        rise: A.
        ceiling: the strength at which a group goes.
        u: of delta.
        every: steps from one ranking to the next.
    """

    grouped: Grouped
    budget: Budget
    removed: tuple[tuple[str, int], ...]
    rise: float
    ceiling: float
    u: float
    every: int

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        of, removed = self.grouped.of(net, self.budget), dict(self.removed)
        return lambda inner: ranked_decay(
            inner, of, removed, self.rise, self.ceiling, u=self.u, every=self.every
        )


@dataclasses.dataclass(frozen=True)
class RaiseByRank:
    """Training under decay that rises for the weakest groups of a block until they are gone.

    Afterwards `extra` has the groups that stay (`alive`) and how many did not go by themselves
    (`late`): those with the largest strengths that were left.

    Attributes:
        train: how long, and how.
        budget: of which the same fraction of every block is kept.
        grouped: what the groups are.
        rise: see `increg`.
        ceiling: see `increg`.
        u: see `increg`.
        every: see `increg`.
        name: of the records.
    """

    train: Train
    budget: Budget
    grouped: Grouped
    rise: float | None = None
    ceiling: float | None = None
    u: float = 0.25
    every: int = 1
    name: str = "raise"

    def __post_init__(self):
        numbers = [1.0 if n is None else n for n in (self.rise, self.ceiling)]
        if not (min(numbers) > 0 and 0 < self.u < 1 and self.every >= 1):
            raise errors.ArgumentError(
                f"rise={self.rise}, ceiling={self.ceiling}, u={self.u}, every={self.every}; rise "
                "and ceiling are above 0, u in (0, 1), every 1 or more."
            )

    def check(self, task: Task) -> None:
        """Refuses other optimizers than SGD, a budget that cannot be met, and wide swings."""
        self.train.takes("decay of groups", "warmup", "clip", "accumulate")
        self.grouped.check(task, self.budget)
        refuse_swings(self.train.sgd(task), 0.0 if self.ceiling is None else self.ceiling)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Settings with which groups go too early or too late are said in a warning.
        """
        self.check(task)
        of, stay = self.grouped.of(Net(task), self.budget), self.grouped.stay(
            pruned, task, self.budget
        )  # fmt: skip
        sizes = self.grouped.sizes(Net(task), self.budget, pruned.variables)
        removed = {n: int((sizes[n] > -np.inf).sum() - stay[n].sum()) for n in of}
        rise, ceiling = self.pace(self.train.sgd(task), max(removed.values()))
        wrap = Ranked(
            self.grouped, self.budget, tuple(removed.items()), rise, ceiling, self.u, self.every
        )
        stage = dataclasses.replace(self.train, wrap=wrap, name=self.name)
        learner = stage.learner(pruned, task, key)

        def finish(state: TrainState) -> Pruned:
            done, alive = state.opt_state, {}
            for name in of:
                strengths, ranks = np.asarray(done.strengths[name]), np.asarray(done.ranks[name])
                alive[name] = np.array(done.alive[name])
                # Of those that are left the ones that were nearest to the ceiling, weak ones first.
                order = [g for g in np.lexsort((ranks, -strengths)) if alive[name][g]]
                alive[name][order[: int(done.left[name])]] = False
            late = np.asarray(sum(int(n) for n in done.left.values()))
            return learner.finish(state)._replace(extra={"alive": alive, "late": late})

        return learner._replace(finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)

    def pace(self, sgd: Sgd, removed: int) -> tuple[float, float]:
        """(A, ceiling) for these steps; says what numbers that are set would do."""
        if not removed:
            return self.rise or 1.0, self.ceiling or 1.0
        steps, times = sgd.taken, rises_for(removed, self.u)
        stride = float(np.mean(np.asarray(sgd.stride(np.arange(steps)))))
        most = float(np.max(np.asarray(sgd.rate(np.arange(steps)))))
        turns = max(SPARE * steps / self.every, 1.0)
        # A group shrinks to exp(-stride every ceiling^2 / (2 A)), and all are gone after times *
        # ceiling / A turns: two equations for A and the ceiling.
        ceiling, rise = self.ceiling, self.rise
        if ceiling is None:
            free = 2 * GONE * times / (stride * self.every * turns)
            free = free if rise is None else (2 * GONE * rise / (stride * self.every)) ** 0.5
            ceiling = min(free, 0.5 / most)
        if rise is None:
            rise = times * ceiling / turns
        shrunk, needed = (
            stride * self.every * ceiling**2 / (2 * rise),
            times * ceiling / rise * self.every,
        )
        if shrunk < FELT or needed > steps:
            warnings.warn(
                f"with rise={rise:.2g} and ceiling={ceiling:.2g}, groups go at exp(-{shrunk:.1f}) "
                f"of their size, and all {removed} of a block in about {needed:.0f} of {steps} "
                "steps: the cut does a part of the work. Write more epochs, or leave both to the "
                "default.",
                stacklevel=3,
            )
        return rise, ceiling

"""Pruning while training, on a density that falls: what is masked is frozen at 0."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from jprune import errors, schedules
from jprune.base import Learner, Pruned, Records, Schedule, Task, is_none
from jprune.graph.shrink.concrete import copied
from jprune.masks import apply_masks, masks_of, with_masks
from jprune.sparsify import scheduled_prune
from jprune.stages.goal import Goal, period
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState

USUAL = 100
"""Steps from one cut to the next: the smallest number of the paper."""


@dataclasses.dataclass(frozen=True)
class PruneGradually:
    """Trains while the smallest weights go, early and fast, then ever more slowly.

    Afterwards masked weights are 0; `Settle` makes the masks of them. What is masked never comes
    back.

    Attributes:
        train: how long, and how.
        goal: what is kept in the end, by which scores.
        every: steps from one cut to the next; None: 100, in short runs a tenth of the steps.
        begin: fraction of the steps before the first cut.
        end: fraction of the steps after which nothing more goes.
        name: of the records.
    """

    train: Train
    goal: Goal
    every: int | None = None
    begin: float = 0.0
    end: float = 1.0
    name: str = "gradual"

    def __post_init__(self):
        period(self.every, USUAL, 1)
        if not 0 <= self.begin < self.end <= 1:
            raise errors.ArgumentError(
                f"begin={self.begin}, end={self.end}; both are fractions of the steps, begin "
                "below end."
            )

    def check(self, task: Task) -> None:
        """Refuses an average of masks that move; raises what `Goal.check` does."""
        self.train.takes("gradual pruning", "optimizer", "warmup", "clip", "accumulate")
        self.goal.check(task)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps; raises what `check` does, and refuses weights that are NaN."""
        self.check(task)
        net, steps = Net(task), self.train.optimizer_for(task).taken
        net.refuse_nan(pruned.variables, net.kernels(net.prunable(None, self.goal.budget)))
        every = period(self.every, USUAL, steps)
        # The last density is reached at a cut, and not between two or behind the last one.
        end = every * (min(round(self.end * steps), steps - 1) // every)
        wrap = Cuts(self.goal, every, min(round(self.begin * steps), max(end - 1, 0)), end)
        before = net.weight_masks(pruned.masks)
        # Masks from before stand in the same place as those that move: there is one set of them.
        learner = dataclasses.replace(self.train, wrap=wrap).learner(
            pruned._replace(masks=None), task, key
        )

        def init() -> TrainState:
            state = learner.init()
            if before is None:
                return state
            one = lambda mask, whole: whole if mask is None else mask
            masks = jax.tree.map(
                one, task.split(before)[0], masks_of(state.opt_state), is_leaf=is_none
            )
            opt_state = with_masks(state.opt_state, masks)
            params = apply_masks(state.params, masks)
            return copied(state._replace(params=params, opt_state=opt_state))

        def finish(state: TrainState) -> Pruned:
            return learner.finish(state)._replace(masks=pruned.masks)

        return learner._replace(init=init, finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class Cuts:
    """How gradual pruning takes part in training: behind the optimizer.

    Attributes:
        goal: see `PruneGradually`.
        every: steps from one cut to the next.
        begin: step up to which the net is whole.
        end: step at which the last density is reached; 0: at once.
    """

    goal: Goal
    every: int
    begin: int
    end: int

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        density = self.goal.density(net)
        schedule = schedules.one_shot(density)
        if self.end:
            # s_t = s_f (1 - (1 - (t - t_0) / (n Delta t))^3)
            schedule = schedules.cubic(density, self.begin, self.end)
        cuts = scheduled_prune(
            self.goal.criterion(net), self.goal.allocator(net), schedule, self.every,
            net.groups, self.goal.per, self.goal.pool, back=False,
        )  # fmt: skip
        return lambda inner: optax.chain(inner, cuts)

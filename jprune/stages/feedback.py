"""Training with feedback: dense weights under a mask that is revised, on a falling density."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jprune import errors, schedules
from jprune.base import Batch, Learner, Pruned, Records, Schedule, Task
from jprune.graph.shrink.concrete import copied
from jprune.masks import apply_masks
from jprune.sparsify import feedback
from jprune.stages.goal import Goal, period
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState

USUAL = 16
"""The paper's steps from one revision of the mask to the next."""


@dataclasses.dataclass(frozen=True)
class PruneWithFeedback:
    """Trains dense weights by the gradient at the masked ones; the mask follows the weights.

    What is evaluated is the net under its mask. Afterwards `extra["hidden"]` has the values of the
    masked weights, a tree like the variables, for `Settle`. Every metric comes with `back`: how
    many weights have come back in all revisions.

    Units lose their kernels alone: with its shifts and readers gone too, a unit would have no
    gradient, and could not come back.

    Attributes:
        train: how long, and how.
        goal: what is kept in the end, by which scores.
        every: steps from one revision to the next; None: 16, in short runs a tenth of the steps.
        ramp: fraction of the steps in which the density falls, by the cubic rule.
        name: of the records.
    """

    train: Train
    goal: Goal
    every: int | None = None
    ramp: float = 1.0
    name: str = "feedback"

    def __post_init__(self):
        period(self.every, USUAL, 1)
        if not 0 <= self.ramp <= 1:
            raise errors.ArgumentError(f"ramp={self.ramp}; it is a fraction of the steps.")

    def check(self, task: Task) -> None:
        """Refuses an average of masks that move; raises what `Goal.check` does."""
        self.train.takes("pruning with feedback", "optimizer", "warmup", "clip", "accumulate")
        self.goal.check(task)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps; raises what `check` does, and refuses weights that are NaN."""
        self.check(task)
        net, steps = Net(task), self.train.optimizer_for(task).taken
        net.refuse_nan(pruned.variables, net.kernels(net.prunable(None, self.goal.budget)))
        every = period(self.every, USUAL, steps)
        # The last density is reached at a revision, and not between two.
        wrap = Fed(self.goal, every, every * (round(self.ramp * steps) // every))
        learner = dataclasses.replace(self.train, wrap=wrap).learner(pruned, task, key)

        def init() -> TrainState:
            state = learner.init()
            params = apply_masks(state.params, state.opt_state.masks)
            return copied(state._replace(params=params))  # a step gives them away

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            state, metrics = learner.step(state, batch)
            # A copy: the next step gives the state's own array away.
            return state, {**metrics, "back": state.opt_state.back + 0}

        def finish(state: TrainState) -> Pruned:
            none = jax.tree.map(lambda leaf: None, state.rest)
            hidden = task.merge(state.opt_state.hidden, none)
            return learner.finish(state)._replace(extra={"hidden": hidden})

        return learner._replace(init=init, step=step, finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class Fed:
    """How feedback takes part in training: around the optimizer.

    Attributes:
        goal: see `PruneWithFeedback`.
        every: steps from one revision to the next.
        end: step at which the last density is reached; 0: from the first one on.
    """

    goal: Goal
    every: int
    end: int

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        density = self.goal.density(net)
        # s_t = s_f (1 - (1 - t / T)^3)
        schedule = (
            schedules.cubic(density, 0, self.end) if self.end else schedules.one_shot(density)
        )
        rule = self.goal.rule(net, schedule, ("kernel",))
        return lambda inner: feedback(inner, rule, every=self.every)

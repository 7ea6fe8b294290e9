"""Training by iterative hard thresholding: sparse and short dense phases, sparse in the end."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jprune import errors, schedules
from jprune.base import Learner, Pruned, Records, Schedule, Task
from jprune.graph.shrink.concrete import copied
from jprune.masks import apply_masks
from jprune.sparsify import hard_threshold
from jprune.stages.goal import Goal
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState

CYCLES = 5
"""The fewest sparse phases of a training whose length allows them, where none are asked for."""


@dataclasses.dataclass(frozen=True)
class HardThreshold:
    """Trains in sparse and dense phases, and ends with exactly the weights that the goal keeps.

    Afterwards the weights that are not kept are 0; `Settle` makes the masks of them.

    Attributes:
        train: how long, and how; its learning rates span all phases.
        goal: what is kept, of every layer, by which scores.
        sparse: epochs of a sparse phase; None: one, or less, so that there are five such phases.
        dense: epochs of a dense phase; None: a quarter of a sparse one.
        name: of the records.
    """

    train: Train
    goal: Goal
    sparse: float | None = None
    dense: float | None = None
    name: str = "threshold"

    def __post_init__(self):
        if any(epochs is not None and not epochs > 0 for epochs in (self.sparse, self.dense)):
            raise errors.ArgumentError(
                f"sparse={self.sparse}, dense={self.dense}; both are numbers of epochs above 0."
            )

    def check(self, task: Task) -> None:
        """Refuses an average of masks that move, and phases that do not fit into the training.

        Raises:
            ArgumentError: a dense phase was asked for and none would come; what `Goal.check` does.
        """
        self.train.takes("hard thresholding", "optimizer", "warmup", "clip", "accumulate")
        self.goal.check(task)
        steps = self.train.optimizer_for(task).taken
        sparse, dense = self.phases(task)
        asked = self.sparse is not None or self.dense is not None
        if asked and steps < 2 * sparse + dense:
            raise errors.ArgumentError(
                f"sparse={self.sparse}, dense={self.dense} are phases of {sparse} and {dense} "
                f"steps, and the training has {steps}: two sparse phases and the dense one between "
                "them do not fit. Write smaller numbers, or more epochs."
            )

    def phases(self, task: Task) -> tuple[int, int]:
        """Steps of a sparse and of a dense phase."""
        steps = self.train.optimizer_for(task).taken
        epoch = task.data.sizes["train"] // self.train.batch_size
        # n sparse phases of s steps, and a dense one of s / 4 between any two of them
        most = steps / (CYCLES + (CYCLES - 1) / 4)
        sparse = min(epoch, most) if self.sparse is None else self.sparse * epoch
        sparse = max(1, int(sparse))
        dense = sparse / 4 if self.dense is None else self.dense * epoch
        return sparse, max(1, round(dense))

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps; raises what `check` does, and refuses weights that are NaN."""
        self.check(task)
        net, steps = Net(task), self.train.optimizer_for(task).taken
        net.refuse_nan(pruned.variables, net.kernels(net.prunable(None, self.goal.budget)))
        wrap = Phases(self.goal, *self.phases(task), steps)
        learner = dataclasses.replace(self.train, wrap=wrap).learner(pruned, task, key)

        def init() -> TrainState:
            state = learner.init()
            params = apply_masks(state.params, state.opt_state.masks)
            return copied(state._replace(params=params))  # a step gives them away

        return learner._replace(init=init)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; one record of the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


@dataclasses.dataclass(frozen=True)
class Phases:
    """How hard thresholding takes part in training: around the optimizer.

    Attributes:
        goal: see `HardThreshold`.
        sparse: steps of a sparse phase.
        dense: steps of a dense phase.
        steps: of the training.
    """

    goal: Goal
    sparse: int
    dense: int
    steps: int

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del rate, key
        # k_l of every layer, all the time
        rule = self.goal.rule(net, schedules.one_shot(self.goal.density(net)))
        return lambda inner: hard_threshold(
            inner, rule, sparse_steps=self.sparse, dense_steps=self.dense, steps=self.steps
        )

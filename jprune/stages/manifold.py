"""The stage of thresholded gates: net and squeeze branches trained together, thresholds rising."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from jprune import errors
from jprune.base import Budget, Learner, Pruned, Records, Task, Variables
from jprune.learners.input_gates import Gated, counts_at
from jprune.learners.manifold import (
    Manifold,
    as_thresholded,
    first_thresholds,
    hidden_of,
    init_branches,
    manifold_task,
    refreshed,
    remaining,
)
from jprune.stages.input_gates import density_for, gated_layers, meet_budget
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState, plain

ROUNDS = 10
"""Rounds of a training that is shorter than so many epochs."""


@dataclasses.dataclass(frozen=True)
class KeepManifold:
    """Trains a net with thresholded gates; afterwards its gated kernels are `Thresholded`.

    Attributes:
        train: how long, and how.
        budget: of MACs, or a density.
        manifold: the penalties.
        gates: patterns of the layers that get gates; none: all.
        every: see `manidp`.
        name: of the records.
    """

    train: Train
    budget: Budget
    manifold: Manifold
    gates: str = ""
    every: int | None = None
    name: str = "manifold"

    def __post_init__(self):
        right = self.every is None or self.every >= 1
        errors.check_numbers("manidp", ("every", self.every, right, "1 or more, or None"))

    def check(self, task: Task) -> None:
        """Refuses gates and budgets that this net cannot have."""
        self.train.takes("manidp", "optimizer", "warmup", "clip")
        self.target(task)

    def layers(self, task: Task) -> dict[str, Gated]:
        """The layers that get gates."""
        return gated_layers(task, self.budget, self.gates, "manidp")

    def target(self, task: Task) -> float:
        """The share of channels whose mean salience reaches the last threshold."""
        branch = lambda layer: (layer.inputs + layer.outputs) * hidden_of(layer)
        return density_for(task, self.layers(task), self.budget, "manidp", branch)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: a gate on nothing.
            FrozenError: a gate on something frozen.
            BudgetError: the fewest channels allowed cost too much.
        """
        groups, layers = Net(task).groups, self.layers(task)
        optimizer = self.train.optimizer_for(task)
        steps, target = optimizer.taken, self.target(task)
        epoch = task.data.sizes["train"] // self.train.batch_size
        # The authors' round is an epoch of 400; a short training has shorter ones.
        usual = self.every or min(epoch, steps // ROUNDS)
        period = max(1, min(usual, steps))
        rounds = steps // period
        tables = [counts_at(layers, remaining(n, rounds, target)) for n in range(rounds)]
        counts = {name: np.array([table[name] for table in tables]) for name in layers}
        made = manifold_task(task, groups, layers, self.manifold)
        branches = init_branches(jax.random.fold_in(key, 1), layers)
        begun = {"net": pruned.variables, "gates": branches, **first_thresholds(layers)}
        # The branches do not decay, as in the authors' code.
        flat = jax.tree.map(lambda leaf: False, branches)
        decayed = {"net": task.split(Net(task).is_kernel)[0], "gates": flat}
        start, batch_size = pruned._replace(variables=begun), self.train.batch_size
        inner = plain(made, start, None, optimizer, key, batch_size, decayed=decayed)
        after = jax.jit(lambda rest, loss: refreshed(rest, loss, counts, period))
        held = jax.jit(lambda v, factor: as_thresholded(task, groups, layers, v, factor))

        def step(state: TrainState, batch):
            state, metrics = inner.step(state, batch)
            return state._replace(rest=after(state.rest, metrics["task_loss"])), metrics

        def variables(state: TrainState, factor: float = 1.0) -> Variables:
            return held(made.merge(state.params, state.rest), factor)

        def finish(state: TrainState) -> Pruned:
            # How many channels are open differs from image to image, so a budget of MACs, which is
            # of their mean, is met by all thresholds together.
            at: Callable[[float], Variables] = lambda x: variables(state, (1 - x) / x)
            x = meet_budget(task, self.budget, at) if self.budget.kind == "macs" else 0.5
            return pruned._replace(variables=at(x))

        return inner._replace(step=step, variables=variables, finish=finish)

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)

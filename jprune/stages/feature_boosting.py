"""The stage of FBS: gates trained with the net, fewer and fewer of which pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jprune.base import Budget, Learner, Pruned, Records, Task
from jprune.learners.feature_boosting import (
    Boosting,
    as_winners,
    boosted_task,
    init_gates,
    prepared,
)
from jprune.learners.input_gates import Gated, counts_at
from jprune.stages.input_gates import density_for, gated_layers
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState, plain


@dataclasses.dataclass(frozen=True)
class Boost:
    """Trains a net with gates; afterwards its gated kernels are held as `Winners`.

    Attributes:
        train: how long, and how.
        budget: of MACs, or a density.
        boosting: the gates.
        gates: patterns of the layers that get gates; none: all.
        drop: see `fbs`.
        name: of the records.
    """

    train: Train
    budget: Budget
    boosting: Boosting
    gates: str = ""
    drop: float = 0.1
    name: str = "boost"

    def check(self, task: Task) -> None:
        """Refuses gates and budgets that this net cannot have."""
        self.train.takes("fbs", "optimizer", "warmup", "clip")
        density_for(task, self.layers(task), self.budget)

    def layers(self, task: Task) -> dict[str, Gated]:
        """The layers that get gates, with the fewest winners that the budget's floors allow."""
        return gated_layers(task, self.budget, self.gates)

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The training in steps.

        Raises:
            ArgumentError: a gate on nothing.
            FrozenError: a gate on something frozen.
            BudgetError: the fewest winners allowed cost too much.
        """
        groups, layers = Net(task).groups, self.layers(task)
        optimizer = self.train.optimizer_for(task)
        last, steps = density_for(task, layers, self.budget), optimizer.taken
        densities = densities_down_to(last, self.drop, steps)
        # Phases are tables of integers, looked up by the step:
        # one compiled function serves all densities.
        tables = [counts_at(layers, density) for density in densities]
        counts = {name: np.array([table[name] for table in tables]) for name in layers}
        boosted = boosted_task(task, groups, layers, self.boosting, counts, steps)
        net, levels = prepared(groups, layers, self.boosting, pruned.variables)
        gates = init_gates(jax.random.fold_in(key, 1), layers, levels, self.boosting.std)
        begun = {"net": net, "gates": gates, "step": jnp.zeros((), jnp.int32)}
        # Predictors are kernels, levels are what scales of norms were: only kernels decay.
        of_gates = {name: {"predictor": True, "level": False} for name in layers}
        decayed = {"net": task.split(Net(task).is_kernel)[0], "gates": of_gates}
        start, batch_size = pruned._replace(variables=begun), self.train.batch_size
        learner = plain(boosted, start, None, optimizer, key, batch_size, decayed=decayed)
        first = self.boosting.shift_first
        held = jax.jit(lambda v, winners_of: as_winners(task, groups, layers, first, v, winners_of))

        def variables(state: TrainState):
            # The phase of this step, so that a net taken in the
            # middle has the winners it was trained with.
            phase = min(int(state.step) * len(tables) // steps, len(tables) - 1)
            return held(boosted.merge(state.params, state.rest), tables[phase])

        return learner._replace(
            variables=variables,
            finish=lambda state: pruned._replace(variables=variables(state)),
        )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory; the last step's metrics."""
        return trained(self.learner(pruned, task, key), self.name)


def densities_down_to(last: float, drop: float, steps: int) -> list[float]:
    """1, 1 - drop, 1 - 2 drop, ..., last; the first ones are left out where steps are few.

    Example:
        >>> densities_down_to(0.65, 0.1, 100), densities_down_to(0.65, 0.1, 2)
        ([1.0, 0.9, 0.8, 0.7, 0.65], [0.7, 0.65])
    """
    # d_n = 1 - n drop above the last one; 1e-9: (1 - 0.7) / 0.1 is a hair above 3.
    count = int(np.ceil((1 - last) / drop - 1e-9))
    above = [round(1 - drop * number, 9) for number in range(count)]
    return [*above, last][-steps:]

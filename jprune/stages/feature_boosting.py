"""The stage of FBS: gates trained with the net, fewer and fewer of which pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.allocate import largest
from jprune.base import Budget, Learner, Pruned, Records, Task
from jprune.cost.samples import sample_macs
from jprune.learners.feature_boosting import (
    Boosting,
    Gated,
    as_winners,
    boostable_layers,
    boosted_task,
    chosen_layers,
    counts_at,
    init_gates,
    prepared,
)
from jprune.stages.train import Train, trained
from jprune.train.net import Net
from jprune.train.step import TrainState, plain


def density_for(task: Task, layers: dict[str, Gated], budget: Budget) -> float:
    """The largest density at which no image can cost more than a budget, whatever the weights are.

    Costs are counted in a net of parameters 1 and statistics 0. In it a norm that reads suppressed
    channels (of a concatenation) leaves none of them 0; other weights leave at least as many 0.

    Raises:
        BudgetError: the fewest winners allowed cost too much.
    """
    if budget.kind == "density":
        return float(budget.value)
    groups, x = Net(task).groups, jnp.zeros(task.example.shape, task.example.dtype)
    dense = float(Net(task).cost({}).macs)
    filled = lambda value: lambda leaf: jnp.full(leaf.shape, value, leaf.dtype)
    params, rest = task.split(Net(task).shapes)
    variables = task.merge(jax.tree.map(filled(1), params), jax.tree.map(filled(0), rest))
    count = jax.jit(sample_macs(task.fn, groups, whole_joins=True))

    def fraction(density: float) -> float:
        # Which channels win makes no difference to the cost: take the first ones.
        first = {
            name: jnp.arange(layers[name].outputs)[None] < winners
            for name, winners in counts_at(layers, density).items()
        }
        return float(count(variables, first, x)[0]) / dense

    goal = float(budget.value) + 1e-9
    # The fewest winners: a density just above 0 is 1 of every layer, or its `least`.
    if (least := fraction(1e-6)) > goal:
        raise errors.BudgetError(
            f"Budget(macs={budget.value}) cannot be met by fbs: with the fewest winners an image "
            f"costs up to {least:.4f} of the dense net. Ask for {np.ceil(least * 1e3) / 1e3:.3f} "
            f"or more, give gates to more layers, or lower min_units={budget.min_units} and the "
            "floors."
        )
    # The cost is a staircase in d, since k = ceil(d C): bisection finds the edge of the last step.
    return max(largest(fraction, goal), 1e-6)


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
        groups, budget = Net(task).groups, self.budget
        boostable = boostable_layers(task, groups, Net(task).shapes)
        whole = {n for n, floor in budget.floors.items() if floor >= groups.sizes[n]}
        free = {}
        for name, layer in boostable.items():
            of_layer = (each for each in groups.sites if (each.layer, each.kind) == (name, "out"))
            groups_on = {n for site in of_layer for n in site.groups}
            # A floor of its whole size freezes a group; a smaller one is the fewest winners.
            if not groups_on & whole:
                asked = max([budget.min_units, *(budget.floors.get(n, 0) for n in groups_on)])
                free[name] = layer._replace(least=min(asked, layer.outputs))
            elif self.gates and name in chosen_layers(groups, boostable, self.gates):
                raise errors.FrozenError(
                    f"gates={self.gates!r} puts a gate on {name}, which is frozen: the budget's "
                    "floor leaves it whole. Leave it out of gates, or out of --freeze."
                )
        return chosen_layers(groups, free, self.gates)

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

"""What stages of input-dependent nets share: which layers have gates, and budgets of such nets."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.allocate import largest
from jprune.base import Budget, Task, Variables
from jprune.cost.samples import sample_macs
from jprune.learners.input_gates import Gated, boostable_layers, chosen_layers, counts_at
from jprune.stages.train import Train
from jprune.train.net import Net


def refuse_budget(who: str, budget: Budget) -> None:
    """Refuses budgets that a net cannot have which keeps all of its parameters.

    Raises:
        ArgumentError: neither MACs nor a density.
    """
    if budget.kind not in ("macs", "density"):
        raise errors.ArgumentError(
            f"{who} came with Budget({budget.kind}={budget.value}): it keeps all parameters, and "
            "chooses for every image what is computed. Write Budget(macs=...) or density."
        )


def gated_layers(
    task: Task, budget: Budget, patterns: str = "", who: str = "fbs"
) -> dict[str, Gated]:
    """The layers that get gates, with the fewest open outputs that the budget's floors allow.

    Args:
        task: of the net.
        budget: whose floors and `min_units` are read.
        patterns: of kernels, with ":" between; none: all that can have gates.
        who: the method, for messages.

    Raises:
        ArgumentError: a gate on nothing.
        FrozenError: a gate on something frozen.
    """
    groups = Net(task).groups
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
        elif patterns and name in chosen_layers(groups, boostable, patterns, who):
            raise errors.FrozenError(
                f"gates={patterns!r} puts a gate on {name}, which is frozen: the budget's "
                "floor leaves it whole. Leave it out of gates, or out of --freeze."
            )
    return chosen_layers(groups, free, patterns, who)


def density_for(
    task: Task,
    layers: dict[str, Gated],
    budget: Budget,
    who: str = "fbs",
    gate_macs: Callable[[Gated], int] = lambda layer: layer.inputs * layer.outputs,
) -> float:
    """The largest density at which no image can cost more than a budget, whatever the weights are.

    Costs are counted in a net of parameters 1 and statistics 0. In it a norm that reads suppressed
    channels (of a concatenation) leaves none of them 0; other weights leave at least as many 0.

    Args:
        task: of the net.
        layers: that have gates.
        budget: in MACs; or a density, which is returned.
        who: the method, for the message.
        gate_macs: MACs of an example's gates of a layer.

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
    of_gates = {name: gate_macs(layer) for name, layer in layers.items()}
    macs = sample_macs(task.fn, groups, whole_joins=True)
    count = jax.jit(lambda variables, supports, x: macs(variables, supports, x, of_gates))

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
            f"Budget(macs={budget.value}) cannot be met by {who}: with the fewest winners an image "
            f"costs up to {least:.4f} of the dense net. Ask for {np.ceil(least * 1e3) / 1e3:.3f} "
            f"or more, give gates to more layers, or lower min_units={budget.min_units} and the "
            "floors."
        )
    # The cost is a staircase in d, since k = ceil(d C): bisection finds the edge of the last step.
    return max(largest(fraction, goal), 1e-6)


HALVINGS = 14
"""How often the interval is halved in which a net's budget is met."""
LOOKED_AT = 2
"""Batches of 256 training images whose mean MACs are a net's."""


def meet_budget(task: Task, budget: Budget, at: Callable[[float], Variables]) -> float:
    """The largest x at which the mean MACs of a net on training images are within a budget.

    Args:
        task: of the net.
        budget: in MACs.
        at: `at(x)`, x in (0, 1]: a net with gated kernels; its MACs rise with x.

    Returns:
        x; the smallest that is tried where no x is within the budget.
    """
    net = Net(task)
    dense = float(net.cost({}).macs)
    share = lambda x: net.mean_macs(at(x), "train", LOOKED_AT) / dense
    return max(largest(share, float(budget.value), HALVINGS), 2.0**-HALVINGS)


def split_up(train: Train, part: float) -> tuple[Train, Train]:
    """A training as two: a part of its epochs and steps, and the rest; each has one step or more.

    Example:
        >>> [(t.epochs, t.max_steps) for t in split_up(Train(10, 0.1, max_steps=5), 0.4)]
        [(4.0, 2), (6.0, 3)]
    """
    most, epochs = train.max_steps, train.epochs * part
    first = None if most is None else max(1, round(most * part))
    rest = None if most is None or first is None else max(1, most - first)
    return (
        dataclasses.replace(train, epochs=epochs, max_steps=first),
        dataclasses.replace(train, epochs=train.epochs - epochs, max_steps=rest),
    )

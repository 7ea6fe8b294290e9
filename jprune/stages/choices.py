"""Which widths and depths are chosen from, and what a shape costs."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jprune import allocate, errors
from jprune.allocate.budgets import floor_of, rounded, step_of
from jprune.base import Budget, Task
from jprune.blocks.depths import DEPTHS, depth_menus
from jprune.learners.width_mixture import Mixture, Price, candidate_widths
from jprune.stages.frame import check_prunable
from jprune.train.net import Net
from jprune.units import ones

BLOCK = 64
"""Shapes that are costed at once."""


@dataclasses.dataclass(frozen=True)
class Choices:
    """What is chosen from, and what the cost adds to the loss.

    Attributes:
        least: the smallest width, as a fraction of the group.
        options: widths of a group, evenly spaced.
        depths: of a stage of residual blocks: "odd" ones and all, "even" shares, "every" one, or
            "whole": no block goes.
        strength: lambda, of the cost.
        tolerance: the cost ends between the budget and so much below, as a fraction of the dense
            net's.
        highest: temperature in the beginning.
        lowest: temperature in the end.
    """

    least: float = 0.3
    options: int = 8
    depths: str = "odd"
    strength: float = 2.0
    tolerance: float = 0.05
    highest: float = 5.0
    lowest: float = 0.1

    def __post_init__(self):
        errors.check_words("the search", ("depths", self.depths, (*DEPTHS, "whole")))
        errors.check_numbers(
            "the search",
            ("strength", self.strength, self.strength >= 0, "0 or more"),
            ("tolerance", self.tolerance, 0 < self.tolerance < 1, "in (0, 1)"),
            ("lowest", self.lowest, 0 < self.lowest <= self.highest, "above 0, and the highest is"),
        )
        candidate_widths(1, self.least, self.options)

    def mixture(self, task: Task, budget: Budget) -> Mixture:
        """The candidates of a net; floors and multiples of the budget hold for widths.

        Groups that a layer inside a loop makes stay whole. A density counts units, so that under
        one no block goes.
        """
        groups = Net(task).groups
        menus = {}
        for name, size in groups.sizes.items():
            made = [layer for layer in groups.layers.values() if name in layer.writes]
            floor, step = floor_of(name, size, budget), step_of(size, budget)
            wanted = candidate_widths(size, self.least, self.options)
            menu = sorted({int(rounded(width, size, floor, step)) for width in wanted})
            if len(menu) > 1 and all(layer.sites for layer in made):
                menus[name] = menu
        free = self.depths != "whole" and budget.kind != "density"
        return Mixture(groups, menus, depth_menus(groups, self.depths) if free else {})

    def check(self, task: Task, budget: Budget) -> None:
        """Refuses nets without anything to choose, and budgets that no candidate meets.

        Raises:
            ArgumentError: no width and no depth; a budget in what the cost model does not measure.
            BudgetError: the smallest shape costs more.
        """
        check_prunable(task, budget)
        mixture = self.mixture(task, budget)
        if not mixture.sizes:
            raise errors.ArgumentError(
                f"nothing of {task.name} has a width or depth to choose: groups have one unit, run "
                "in loops, or floors and multiples leave them whole. Lower them, or freeze fewer."
            )
        least = float(price_of(task, budget)(mixture.shape(dict.fromkeys(mixture.sizes, 0))))
        if least > float(budget.value) + 1e-6:
            raise errors.BudgetError(
                f"Budget({budget.kind}={budget.value}) cannot be met: the smallest shape that is "
                f"searched costs {least:.4f} of the dense net. Ask for "
                f"{np.ceil(least * 1000) / 1000:.3f} or more, or write a smaller least (it is "
                f"{self.least}), multiple_of or floors."
            )


def price_of(task: Task, budget: Budget) -> Price:
    """What a shape costs, as a fraction of the dense net in the budget's unit; has a gradient.

    Raises:
        ArgumentError: a budget in what the net's cost model does not measure.
    """
    net, sizes = Net(task), Net(task).groups.sizes
    if budget.kind == "density":
        total = sum(sizes.values())
        return lambda shape: 1 - sum(sizes[name] - width for name, width in shape.items()) / total
    allocate.price_of(ones(net.groups), budget, net.cost)
    field = "params" if budget.kind == "params" else "macs"
    whole = float(getattr(net.cost({}), field))
    return lambda shape: getattr(net.cost(shape), field) / whole


def costs_of(price: Price, names: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
    """`costs(shapes [p, names]) -> [p]`: what shapes cost, compiled once for any number of them."""
    of_row = lambda row: jnp.asarray(price(dict(zip(names, row))), jnp.float32)
    run = jax.jit(jax.vmap(of_row))

    def costs(shapes: np.ndarray) -> np.ndarray:
        # Filled up to whole blocks by repetition, so that one compilation serves all.
        count = -(-len(shapes) // BLOCK) * BLOCK
        blocks = np.resize(shapes, (count, len(names))).reshape(-1, BLOCK, len(names))
        prices = [np.asarray(run(block), float) for block in blocks]
        return np.concatenate([np.zeros(0), *prices])[: len(shapes)]

    return costs

"""The search space of widths: which widths a net may have, and which meet a budget."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jprune import allocate
from jprune.allocate.budgets import floor_of, rounded, step_of
from jprune.base import Budget, CostModel, Groups, Task
from jprune.cost import spent
from jprune.learners import Hypernetwork, Menu, hypernetwork, menu
from jprune.search.space import Space, check

BLOCK = 128
"""Candidates that are costed at once; a fixed number, so that one compilation serves all."""


@dataclasses.dataclass(frozen=True)
class Widths:
    """Which widths each group may have, and which nets of such widths meet the budget.

    Attributes:
        budget: what the net may cost; also floors and multiples of the widths.
        options: widths on the menu of each group.
        least: the smallest width, as a fraction of the group.
        hidden: hidden units of the hypernetwork.
        vectors: how the hypernetwork's inputs are made; see `jprune.learners.hypernetwork`.
        window: candidates cost between (1 - window) and 1 times the budget.
    """

    budget: Budget
    options: int = 31
    least: float = 0.1
    hidden: int = 32
    vectors: str = "fixed"
    window: float = 0.05

    def menu(self, groups: Groups) -> Menu:
        """The menus of all groups that the budget's floors allow to be narrowed."""
        menus = {
            name: self._allowed(name, size)
            for name, size in groups.sizes.items()
            if size > self.budget.floors.get(name, 0)
        }
        sizes = np.array([groups.sizes[name] for name in menus], int)
        widths = np.array([*menus.values()], int).reshape(-1, self.options)
        return Menu(tuple(menus), sizes, widths)

    def _allowed(self, name: str, size: int) -> list[int]:
        """The menu of a group, with the budget's floors and multiples."""
        floor, step = floor_of(name, size, self.budget), step_of(size, self.budget)
        wanted = menu(size, self.options, self.least)
        return [int(rounded(int(width), size, floor, step)) for width in wanted]

    def hypernetwork(self, task: Task, groups: Groups) -> Hypernetwork:
        """The hypernetwork of the net."""
        return hypernetwork(task, groups, self.menu(groups), self.hidden, self.vectors)

    def space(
        self, groups: Groups, cost: CostModel
    ) -> tuple[Space, Callable[[np.ndarray], np.ndarray]]:
        """The space of the search, and `widths(genes)`, the widths that genes stand for."""
        options = self.menu(groups)
        price = price_of(groups, cost, options, self.budget)
        # Rounding to multiples may give a width twice: genes count different widths only. Shorter
        # menus are padded, so that one table serves all groups; no gene points at the padding.
        choices = [np.unique(row) for row in options.widths]
        longest = max((len(row) for row in choices), default=0)
        table = np.array([np.pad(row, (0, longest - len(row)), mode="edge") for row in choices])
        widths = lambda genes: table[np.arange(len(table)), genes]
        high = float(self.budget.value)
        space = Space(
            tuple(len(row) for row in choices),
            lambda genes: price(widths(genes)),
            high,
            (1 - self.window) * high,
        )
        return space, widths

    def check(self, task: Task, groups: Groups, cost: CostModel) -> None:
        """Refuses a net without a width to choose, and a budget that no candidate meets.

        Raises:
            ArgumentError: nothing is free.
            BudgetError: no candidate is in the window.
        """
        self.hypernetwork(task, groups)
        check(self.space(groups, cost)[0])


def price_of(
    groups: Groups, model: CostModel, options: Menu, budget: Budget
) -> Callable[[np.ndarray], np.ndarray]:
    """`price(widths [p, groups]) -> [p]`: fractions of the dense net, in the budget's unit.

    Raises:
        ArgumentError: a budget in what the net's cost model does not count.
    """
    sizes = groups.sizes
    if budget.kind == "density":
        whole = sum(sizes.values())
        return lambda widths: (widths.sum(axis=1) + whole - options.sizes.sum()) / whole
    # Raises if the cost model does not count what the budget is about.
    allocate.price_of({name: np.ones(size) for name, size in sizes.items()}, budget, model)

    @jax.jit
    @jax.vmap
    def cost(widths: jax.Array) -> jax.Array:
        total = model({name: widths[place] for place, name in enumerate(options.names)})
        return jnp.asarray(spent(total, budget), jnp.float32)

    def costs(widths: np.ndarray) -> np.ndarray:
        # Filled up to whole blocks by repeating candidates; what they cost is cut off again.
        padded = np.resize(widths, (-(-len(widths) // BLOCK) * BLOCK, widths.shape[1]))
        blocks = padded.astype(np.float32).reshape(-1, BLOCK, widths.shape[1])
        prices = np.concatenate([np.asarray(cost(block), float) for block in blocks])
        return prices[: len(widths)]

    dense = costs(options.sizes[None])[0]
    return lambda widths: costs(widths) / dense

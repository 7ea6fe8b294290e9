"""The environment of an agent that decides the widths of a net, layer by layer, under a budget.

References:
    He, Lin, Liu, Wang, Li, Han, AMC: AutoML for model compression and acceleration on mobile
    devices, 2018, arXiv 1802.03494: what is seen, the bound on actions, rounding.
    Liu, Guo, Guo, Jiang, Chen, Conditional automated channel pruning for deep neural networks,
    2021, arXiv 2009.09724 [48]: the goal among what is seen, and the other bound.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jprune import errors
from jprune.allocate.budgets import floor_of, step_of
from jprune.base import Budget, Groups
from jprune.search.bounds import Price, bound, rounded_up


def layer_features(groups: Groups, names: tuple[str, ...]) -> np.ndarray:
    """[names, 7]: what a group's first producer is, each column between 0 and 1.

    Index, whether it has a window, inputs, units of the group, output positions (which say the
    stride), window, weights.
    """
    rows = []
    for place, name in enumerate(names):
        size = groups.sizes[name]
        rows.append([place, 0, 0, size, 0, 0, 0])
        for layer in groups.layers.values():
            if name in layer.writes:
                window = np.prod([layer.shape[axis] for axis in layer.window])
                inputs = np.prod([layer.shape[axis] for axis in layer.inputs])
                kind = [float(window > 1), inputs, size, layer.positions, window]
                rows[-1] = [place, *kind, np.prod(layer.shape)]
                break
    table = np.array(rows, float).reshape(-1, 7)
    low, span = table.min(axis=0), np.ptp(table, axis=0)
    return (table - low) / np.where(span > 0, span, 1)


class Ratios(NamedTuple):
    """An `Environment` of `actor_critic`: genes are widths of groups, in execution order.

    Attributes:
        names: groups.
        sizes: int [groups].
        steps: int [groups]: widths are their multiples, or whole.
        lowest: int [groups]: the smallest widths.
        features: [groups, k]: what does not change, see `layer_features`.
        later: [groups]: MACs of the layers behind a group's first producer, over all.
        price: of widths [p, groups].
        goals: prices that may be paid.
        least: the smallest ratio.
        own: see `bound`, of widths.
        shown: whether the agent sees the goal.
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    steps: np.ndarray
    lowest: np.ndarray
    features: np.ndarray
    later: np.ndarray
    price: Price
    goals: tuple[float, ...]
    least: float
    own: Callable[[np.ndarray], np.ndarray] | None
    shown: bool

    @property
    def decisions(self) -> int:
        """How many groups there are."""
        return len(self.names)

    @property
    def width(self) -> int:
        """Numbers in what is seen."""
        return self.features.shape[1] + 3 + self.shown

    def look(self, genes: np.ndarray, goal: int) -> np.ndarray:
        """What is seen before the next group; behind the last one, that one again."""
        place = min(len(genes), self.decisions - 1)
        widths = np.concatenate([genes, self.sizes[len(genes) :]])[None]
        before = genes[-1] / self.sizes[len(genes) - 1] if len(genes) else 1.0
        # [features, removed so far, dense cost that is still to come, last action, beta]
        removed = 1 - float(self.price(widths)[0])
        seen = [*self.features[place], removed, self.later[place], before]
        return np.array([*seen, self.goals[goal]] if self.shown else seen, np.float32)

    def bound(self, genes: np.ndarray, goal: int) -> float:
        """How much of the next group may stay; see `bound`."""
        own = self.own
        return bound(
            lambda ratios: self.price(ratios * self.sizes),
            self.actions(genes),
            self.lowest / self.sizes,
            self.goals[goal],
            None if own is None else (lambda ratios: own(ratios * self.sizes)),
        )

    def decide(self, genes: np.ndarray, goal: int, proposal: float) -> int:
        """The width for a proposal: bounded, rounded up, narrowed until the goal is in reach."""
        place = len(genes)
        size, step, lowest = (int(of[place]) for of in (self.sizes, self.steps, self.lowest))
        # a <- max(min(a, a_max), l)
        ratio = max(min(proposal, self.bound(genes, goal)), self.least)
        width = max(rounded_up(size, ratio, step), lowest)
        allowed = [lowest, *(n for n in range(step, width, step) if n > lowest), width]
        rest = self.lowest[place + 1 :]
        prices = self.price(np.array([[*genes, each, *rest] for each in allowed], float))
        # Rounding up can exceed the goal: the widest that does not, and else the lowest.
        fits = [each for each, cost in zip(allowed, prices) if cost <= self.goals[goal] + 1e-6]
        return max(fits, default=lowest)

    def actions(self, genes: np.ndarray) -> np.ndarray:
        """Ratios of widths."""
        return np.asarray(genes, float) / self.sizes[: len(genes)]


def ratios(
    groups: Groups,
    names: tuple[str, ...],
    budget: Budget,
    price: Price,
    goals: tuple[float, ...],
    least: float = 0.2,
    own: Callable[[np.ndarray], np.ndarray] | None = None,
    shown: bool = True,
) -> Ratios:
    """The environment of a net.

    Args:
        groups: from `trace`.
        names: groups whose width is decided, in execution order; all others are whole.
        budget: whose multiples and floors widths keep to.
        price: `price(widths [p, names]) -> [p]`, fractions of the dense net in the budget's unit.
        goals: what may be paid, one for each kind of episode.
        least: the smallest ratio.
        own: see `bound`, of widths.
        shown: whether the agent sees the goal of an episode.

    Raises:
        ArgumentError: no group, or a ratio outside of (0, 1].
        BudgetError: a goal below the price of the lowest widths.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
        >>> variables = {"a": jnp.ones((3, 10)), "b": jnp.ones((10, 2))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 3)))
        >>> price = lambda widths: widths[:, 0] / 10
        >>> net = ratios(groups, ("a",), Budget(macs=0.5), price, goals=(0.5,))
        >>> net.decide(np.zeros(0, int), goal=0, proposal=0.9)
        5
    """
    if not names:
        raise errors.ArgumentError(
            "there is no group whose width could be decided: all channels are frozen, floors keep "
            "them whole, or they are residual streams, which streams=True opens."
        )
    errors.check_numbers("ratios", ("least", least, 0 < least <= 1, "in (0, 1]"))
    sizes = np.array([groups.sizes[name] for name in names], int)
    steps = np.array([step_of(int(size), budget) for size in sizes])
    floors = [floor_of(name, int(size), budget) for name, size in zip(names, sizes)]
    lowest = [rounded_up(int(size), least, int(step)) for size, step in zip(sizes, steps)]
    lowest = np.maximum(lowest, floors)
    cheapest = float(price(lowest[None].astype(float))[0])
    if min(goals) < cheapest - 1e-6:
        raise errors.BudgetError(
            f"{min(goals):g} of the dense net cannot be met: with at least {least:g} of every "
            f"group, in the allowed multiples, {cheapest:.4f} is left. Ask for "
            f"{np.ceil(cheapest * 1000) / 1000:.3f} or more, or write a smaller `least`, "
            "multiple_of or min_units."
        )
    layers = [*groups.layers.values()]
    total = sum(layer.macs for layer in layers) or 1.0
    first = [next((n for n, of in enumerate(layers) if name in of.writes), 0) for name in names]
    later = np.array([sum(of.macs for of in layers[place + 1 :]) / total for place in first])
    features = layer_features(groups, names)
    return Ratios(names, sizes, steps, lowest, features, later, price, goals, least, own, shown)

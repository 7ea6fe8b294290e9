"""Which units every label stands for, given those of some axes.

`solve` finds what can be removed; this module serves networks that run under masks made before,
perhaps another mode of the function that was traced. Nothing is decided here: units are known on
the axes of the leaves, ties carry them on, and products pass them from wholes to factors (a unit
belongs to row i if all of row i answers to it) and from factors to wholes.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from jprune.graph.couple.labels import Axis, Fixed, Flags, Indices, Labels, Product, Solution
from jprune.graph.couple.solve import NONE, beside


def spread(labels: Labels, seeds: Iterable[tuple[Axis, Indices]]) -> Solution:
    """A solution whose atoms are units.

    Args:
        labels: ties and products of a program.
        seeds: axes, and the units of their positions: [k, length], -1 for none.
    """
    spreader = _Spreader(labels)
    spreader.seed([(axis, units) for axis, units in seeds if not isinstance(axis, Fixed)])
    products = labels.products
    # Factors some of whose wholes have no units yet are set only when nothing else can be.
    while (
        any([spreader.product(product, True) for product in products])
        or any(spreader.product(product, False) for product in products)
        or any(spreader.settle(product) for product in products)
    ):
        pass
    return Solution(spreader.component, spreader.table, np.full(len(spreader.table), NONE), ())


class _Spreader:
    """Units by component."""

    def __init__(self, labels: Labels):
        self.component = labels.components()
        count = self.component.max(initial=-1) + 1
        self.known = np.zeros(count, bool)
        self.table = np.full((count, 1), NONE)
        """[components, k] units, -1 for none."""

    def seed(self, seeds: Sequence[tuple[Indices, Indices]]) -> None:
        """Sets the units [k, length] of axes; where axes share a component, the first has it."""
        if not seeds:
            return
        width = max(len(units) for _, units in seeds)
        padded = [
            np.concatenate([units, np.full((width - len(units), units.shape[1]), NONE)])
            if len(units) < width
            else units
            for _, units in seeds
        ]
        places = self.component[np.concatenate([axis for axis, _ in seeds])]
        # Of entries with one index the last one stays: the first axis is written last.
        self.write(places[::-1], np.concatenate(padded, axis=1).T[::-1])

    def write(self, components: Indices, units: Indices) -> None:
        """Sets the units [n, k] of components."""
        units = -np.sort(-units, axis=1)  # those of "none" last
        width = int((units != NONE).any(axis=0).sum())
        if width > self.table.shape[1]:
            more = np.full((len(self.table), width - self.table.shape[1]), NONE)
            self.table = np.concatenate([self.table, more], axis=1)
        self.table[components, :width] = units[:, :width]
        self.known[components] = True

    def product(self, product: Product, surely: bool) -> bool:
        """Passes units between a whole and its factors; returns whether anything changed."""
        whole = self.component[product.whole].reshape(-1)
        shape = product.whole.shape
        columns = [
            beside(self.component[factor], axis, shape)
            for axis, factor in enumerate(product.factors)
        ]
        factors = np.stack(columns)
        return self.to_factors(whole, factors, surely) or self.to_whole(whole, factors)

    def settle(self, product: Product) -> bool:
        """Factors that no leaf has always live (the axis of a stack); whether there were any."""
        factors = [self.component[factor] for factor in product.factors]
        new = [factor[~self.known[factor]] for factor in factors]
        # A product without any units is made of constants, and says nothing.
        if not any(self.known[factor].any() for factor in factors):
            return False
        for unknown in new:
            self.known[unknown] = True
        return any(unknown.size for unknown in new)

    def to_whole(self, whole: Indices, factors: Indices) -> bool:
        """A whole gets the units of all its factors."""
        new = ~self.known[whole] & self.known[factors].all(axis=0)
        if new.any():
            self.write(whole[new], np.concatenate([*self.table[factors[:, new]]], axis=1))
        return bool(new.any())

    def to_factors(self, whole: Indices, factors: Indices, surely: bool) -> bool:
        """Factors get the units that all wholes that they are part of have in common."""
        usable = self.known[whole]
        asked = ~self.known[factors] & usable
        if surely:
            unsure = np.zeros(len(self.known), bool)
            unsure[factors[:, ~usable]] = True
            asked &= ~unsure[factors]
        targets = np.unique(factors[asked])
        if targets.size:
            units = self.unexplained(self.table[whole[usable]], factors[:, usable])
            target, unit = self.explained(units, factors[:, usable], asked[:, usable])
            count = np.bincount(target, minlength=len(self.known))
            first = np.cumsum(count) - count
            rows = np.full((len(self.known), max(1, count.max(initial=0))), NONE)
            rows[target, np.arange(len(target)) - first[target]] = unit
            self.write(targets, rows[targets])
        return bool(targets.size)

    def unexplained(self, units: Indices, factors: Indices) -> Indices:
        """Units [n, k] of wholes without those of the factors that are known."""
        rest = units.copy()
        for factor in factors:
            units_of_factor = np.where(self.known[factor][:, None], self.table[factor], NONE)
            rest[(units[:, :, None] == units_of_factor[:, None, :]).any(axis=2)] = NONE
        return rest

    def explained(self, units: Indices, factors: Indices, asked: Flags) -> tuple[Indices, Indices]:
        """Pairs of a factor and a unit that is common to all its wholes, sorted by factor.

        Where several factors of a whole could have a unit, the one with most wholes has it.
        """
        top = int(units.max(initial=0)) + 2  # so that "none" (-1) collides with no unit
        pairs = factors[:, :, None] * top + units
        support = np.zeros(pairs.shape, np.int64)
        for slot, factor in enumerate(factors):
            _, place, times = np.unique(pairs[slot], return_inverse=True, return_counts=True)
            count = times[place.reshape(units.shape)]
            wholes = np.bincount(factor)[factor]
            common = (count == wholes[:, None]) & asked[slot][:, None] & (units != NONE)
            support[slot] = np.where(common, count, 0)
        best = (support > 0) & (support.argmax(axis=0) == np.arange(len(factors))[:, None, None])
        return np.divmod(np.unique(pairs[best]), top)

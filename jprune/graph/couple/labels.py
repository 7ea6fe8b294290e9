"""Labels, and the statements that rules make about them.

Every axis of every array carries one label (an integer) per position, or is `Fixed`: its
positions are no channels and cannot go. Rules *tie* labels that must be the same channel,
*freeze* those that must stay, and state *products*: label `w[i, j]` lives exactly while its
factors `r[i]` and `c[j]` both live (a reshape that splits or merges two labelled axes, a grouped
convolution).

`solve.py` finds the *atoms*, the labels that everything else is a conjunction of. Atoms
become units.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Indices: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]


class Reason(NamedTuple):
    """Why positions cannot be removed, and where that was decided."""

    text: str
    primitive: str = ""
    equation: str = ""
    source: str = ""
    remedy: str = ""


class Fixed(NamedTuple):
    """An axis without labels: whatever is tied to it is frozen for its reason."""

    reason: Reason


Axis: TypeAlias = Indices | Fixed
"""[length] labels, or `Fixed`."""
AxisLabels: TypeAlias = tuple[Axis, ...]
"""One entry per axis of an array."""
SPATIAL = Fixed(Reason("position of an image or window, no channel"))
SYMBOLIC = Fixed(Reason("axis of symbolic length"))
UNIT = Fixed(Reason("axis of length one"))


class Product(NamedTuple):
    """`whole[i, j, ...]` lives while `factors[0][i]`, `factors[1][j]`, ... all live.

    Attributes:
        whole: [d0, d1, ...] labels.
        factors: labels [d0], [d1], ...
        reason: where it was stated; the text is that of whoever freezes something for it.
    """

    whole: Indices
    factors: tuple[Indices, ...]
    reason: Reason


class Solution(NamedTuple):
    """What the labels mean after all ties.

    Attributes:
        component: [labels]: component of every label.
        atoms: [components, k]: the atoms that a component is a conjunction of, -1 for none.
        causes: [components]: number of the reason that freezes it, -1 for none.
        reasons: that the numbers of `causes` stand for.
    """

    component: Indices
    atoms: Indices
    causes: Indices
    reasons: tuple[Reason, ...]

    def atoms_of(self, axis: Indices) -> Indices:
        """[k, length]: atoms of every position, -1 where there is none (always alive)."""
        return self.atoms[self.component[axis]].T

    def causes_of(self, axis: Indices) -> Counter[Reason]:
        """Why positions of an axis are frozen, and how many for each reason."""
        causes = self.causes[self.component[axis]]
        causes, reasons = causes[causes >= 0], Counter[Reason]()
        if not causes.size:  # most axes: they need no sorting
            return reasons
        numbers, counts = np.unique(causes, return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist()):
            reasons[self.reasons[number]] += count
        return reasons


class Labels:
    """Collects labels, ties, frozen labels and products while a program is interpreted."""

    def __init__(self) -> None:
        self.count = 0
        self.ties: list[tuple[Indices, Indices]] = []
        self.frozen: list[tuple[Indices, Reason]] = []
        self.reduced: list[tuple[Indices, Reason]] = []
        """Frozen only because a sum over them changes when they go: these can be opened."""
        self.products: list[Product] = []
        self._components: dict[tuple[int, int], Indices] = {}

    def fresh(self, length: int) -> Indices:
        """New labels for an axis."""
        self.count += length
        return np.arange(self.count - length, self.count)

    def axis(self, length: Any) -> Axis:
        """New labels for an axis, which a symbolic length (a batch, when exporting) cannot have."""
        return self.fresh(int(length)) if isinstance(length, (int, np.integer)) else SYMBOLIC

    def freeze(self, axis: Axis, reason: Reason) -> None:
        """States that these positions must stay."""
        if not isinstance(axis, Fixed) and axis.size:
            self.frozen.append((axis, reason))

    def reduce(self, axis: Axis, reason: Reason) -> None:
        """States that these positions must stay, unless the caller accepts other results."""
        if not isinstance(axis, Fixed) and axis.size:
            self.reduced.append((axis, reason))

    def tie(self, left: Axis, right: Axis) -> Axis:
        """States that two axes have the same channels; returns the axis that stands for both."""
        if isinstance(left, Fixed):
            if isinstance(right, Fixed):
                return left
            left, right = right, left
        if isinstance(right, Fixed):
            self.freeze(left, right.reason)
        elif left is not right:
            self.ties.append((left, right))
        return left

    def tied(self) -> Indices:
        """[2, n]: all pairs of labels that are tied."""
        sides = zip(*self.ties) if self.ties else ((), ())
        empty = np.zeros(0, np.int64)
        return np.stack([np.concatenate([empty, *axes]) for axes in sides])

    def components(self) -> Indices:
        """[labels]: which are tied to each other; counted once until more is said."""
        size = self.count, len(self.ties)
        if size not in self._components:
            self._components = {size: components(self.tied(), self.count)}
        return self._components[size]

    def product(self, whole: Indices, factors: Sequence[Indices], reason: Reason) -> None:
        """States that `whole` [d0, d1, ...] is the conjunction of its factors."""
        self.products.append(Product(whole, tuple(factors), reason))

    def with_reduced(self, reduced: list[tuple[Indices, Reason]]) -> "Labels":
        """A copy with other `reduced` labels."""
        other = Labels()
        other.count, other.reduced = self.count, reduced
        other.ties, other.frozen, other.products = self.ties, self.frozen, self.products
        other._components = self._components
        return other


def components(pairs: Indices, count: int) -> Indices:
    """[count]: connected components of `count` things, [2, n] of them tied."""
    ones = np.ones(pairs.shape[1], bool)
    graph = coo_array((ones, (pairs[0], pairs[1])), (max(1, count),) * 2)
    result: Any = connected_components(graph, directed=False)
    return result[1][:count].astype(np.int64)

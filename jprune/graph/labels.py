"""Labels, ties and their solution.

Every axis of every array carries one label (an integer) per position, or is `Fixed`: its
positions are no channels and cannot go. Rules *tie* labels that must be the same channel,
*freeze* those that must stay, and state *products*: label `w[i, j]` lives exactly while its
factors `r[i]` and `c[j]` both live (a reshape that splits or merges two labelled axes, a grouped
convolution).

`Labels.solve` closes ties and products under congruence and names the *atoms*, the labels that
everything else is a conjunction of. Atoms become units.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


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


Axis = np.ndarray | Fixed
"""[length] labels, or `Fixed`."""
AxisLabels = tuple[Axis, ...]
"""One entry per axis of an array."""

SPATIAL = Fixed(Reason("position of an image or window, no channel"))
SYMBOLIC = Fixed(Reason("axis of symbolic length"))
UNIT = Fixed(Reason("axis of length one"))


class Product(NamedTuple):
    """`whole[i, j, ...]` lives while `factors[0][i]`, `factors[1][j]`, ... all live."""

    whole: np.ndarray
    """[d0, d1, ...] labels."""
    factors: tuple[np.ndarray | None, ...]
    """Labels [d0], [d1], ...; None for an axis whose positions always live."""


class Solution(NamedTuple):
    """What the labels mean after all ties."""

    component: np.ndarray
    """[labels]: component of every label."""
    atoms: np.ndarray
    """[components, k]: the atoms that a component is a conjunction of, -1 for none."""
    reasons: dict[int, Reason]
    """Frozen component -> why."""

    def atoms_of(self, axis: np.ndarray) -> np.ndarray:
        """[k, length]: atoms of every position, -1 where there is none (always alive)."""
        return self.atoms[self.component[axis]].T

    def alive(self, axis: Axis, alive_atoms: np.ndarray) -> np.ndarray | None:
        """[length]: which positions live, or None for a fixed axis."""
        if isinstance(axis, Fixed):
            return None
        atoms = self.atoms_of(axis)
        return (alive_atoms[atoms] | (atoms < 0)).all(axis=0)


class Labels:
    """Collects labels, ties, frozen labels and products while a program is interpreted."""

    def __init__(self):
        self.count = 0
        self.ties: list[tuple[np.ndarray, np.ndarray]] = []
        self.frozen: list[tuple[np.ndarray, Reason]] = []
        self.products: list[Product] = []

    def fresh(self, length: int) -> np.ndarray:
        """New labels for an axis."""
        self.count += length
        return np.arange(self.count - length, self.count)

    def axis(self, length: Any) -> Axis:
        """New labels for an axis, which a symbolic length (a batch, when exporting) cannot have."""
        return self.fresh(length) if isinstance(length, (int, np.integer)) else SYMBOLIC

    def freeze(self, axis: Axis, reason: Reason) -> None:
        """These positions must stay."""
        if not isinstance(axis, Fixed) and axis.size:
            self.frozen.append((axis, reason))

    def tie(self, left: Axis, right: Axis) -> Axis:
        """The same channels, position by position; returns the axis that stands for both."""
        if isinstance(left, Fixed):
            if isinstance(right, Fixed):
                return left
            left, right = right, left
        if isinstance(right, Fixed):
            self.freeze(left, right.reason)
        elif left is not right:
            self.ties.append((left, right))
        return left

    def product(self, whole: np.ndarray, factors: tuple[Axis, ...]) -> None:
        """States that `whole` [d0, d1, ...] is the conjunction of its factors."""
        plain = tuple(None if isinstance(factor, Fixed) else factor for factor in factors)
        self.products.append(Product(whole, plain))

    def solve(self) -> Solution:
        """Closes ties and products; see the module's text."""
        return _Solver(self).run()


class _Solver:
    """Congruence closure over ties and products, then expansion to atoms."""

    def __init__(self, labels: Labels):
        self.count = labels.count
        self.pairs = [np.stack([left, right]) for left, right in labels.ties]
        self.frozen = list(labels.frozen)
        self.products = list(labels.products)
        self.component = self.components()

    def components(self) -> np.ndarray:
        """Connected components of all ties so far."""
        if not self.count:
            return np.zeros(0, int)
        pairs = np.concatenate([np.zeros((2, 0), int), *self.pairs], axis=1)
        graph = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), (self.count,) * 2)
        return connected_components(graph, directed=False)[1]

    def run(self) -> Solution:
        before = -1
        while before != (state := (self.component.max(initial=-1), len(self.products))):
            before = state
            self.products = [
                kept for product in self.refined() if (kept := self.simplified(product)) is not None
            ]
            self.congruent()
            self.component = self.components()
        rows = self.rows()
        self.freeze_conflicts(rows)
        reasons = self.frozen_components(rows)
        return Solution(self.component, self.expand(rows, reasons), reasons)

    def simplified(self, product: Product) -> Product | None:
        """Without factors that cannot vary; None once the product is a plain tie."""
        factors, whole = list(product.factors), product.whole
        for axis, factor in enumerate(factors):
            if factor is not None and np.unique(self.component[factor]).size == 1:
                # All positions of the axis go together: removing them would remove the whole array.
                self.frozen.append(
                    (factor, Reason("all positions of a split axis are one channel"))
                )
                factors[axis] = None
        varying = [axis for axis, factor in enumerate(factors) if factor is not None]
        if not varying:
            self.frozen.append((whole.reshape(-1), Reason("reshape without a whole row or column")))
            return None
        if len(varying) == 1:
            axis = varying[0]
            factor = factors[axis]
            assert factor is not None
            shape = [-1 if other == axis else 1 for other in range(whole.ndim)]
            spread = np.broadcast_to(factor.reshape(shape), whole.shape)
            self.pairs.append(np.stack([whole.reshape(-1), spread.reshape(-1)]))
            return None
        return Product(whole, tuple(factors))

    def refined(self) -> list[Product]:
        """Products of the same whole, split at different places, become one finer product."""
        by_whole: dict[bytes, list[Product]] = {}
        for product in self.products:
            if all(factor is not None for factor in product.factors):
                key = self.component[product.whole].reshape(-1).tobytes()
                by_whole.setdefault(key, []).append(product)
        result = list(self.products)
        for same in by_whole.values():
            shapes = {product.whole.shape for product in same}
            if len(shapes) < 2:
                continue
            fine = _common_shape(shapes)
            if fine is None:
                continue
            factors = tuple(self.new(length) for length in fine)
            whole = same[0].whole.reshape(fine)
            result = [product for product in result if not any(product is old for old in same)]
            result.append(Product(whole, factors))
            for product in same:
                self.pairs.append(np.stack([product.whole.reshape(-1), whole.reshape(-1)]))
                start = 0
                for factor, length in zip(product.factors, product.whole.shape):
                    assert factor is not None
                    stop = start
                    while int(np.prod(fine[start:stop])) != length or stop == start:
                        stop += 1
                    result.append(Product(factor.reshape(fine[start:stop]), factors[start:stop]))
                    start = stop
        return result

    def new(self, length: int) -> np.ndarray:
        """New labels; they start as components of their own."""
        start = self.count
        self.count += length
        top = self.component.max(initial=-1) + 1
        self.component = np.concatenate([self.component, np.arange(top, top + length)])
        return np.arange(start, self.count)

    def elements(self, product: Product) -> tuple[np.ndarray, list[np.ndarray]]:
        """Flat labels of the whole, and of every varying factor spread beside it."""
        spread = []
        for axis, factor in enumerate(product.factors):
            if factor is not None:
                shape = [-1 if other == axis else 1 for other in range(product.whole.ndim)]
                spread.append(
                    np.broadcast_to(factor.reshape(shape), product.whole.shape).reshape(-1)
                )
        return product.whole.reshape(-1), spread

    def congruent(self) -> None:
        """Equal factors make equal wholes, equal wholes make equal factors."""
        by_rank: dict[int, list[tuple[np.ndarray, list[np.ndarray]]]] = {}
        for product in self.products:
            whole, spread = self.elements(product)
            by_rank.setdefault(len(spread), []).append((whole, spread))
        for members in by_rank.values():
            whole = np.concatenate([member[0] for member in members])
            spread = np.stack(
                [np.concatenate(columns) for columns in zip(*(member[1] for member in members))]
            )
            rows = self.component[spread]
            first, inverse = _first_equal(np.sort(rows, axis=0))
            self.pairs.append(np.stack([whole, whole[first[inverse]]]))
            first, inverse = _first_equal(self.component[whole][None])
            partner = first[inverse]
            # Equal as sets already (a transposed split): nothing to tie.
            differ = (np.sort(rows, axis=0) != np.sort(rows[:, partner], axis=0)).any(axis=0)
            for factor in spread:
                self.pairs.append(np.stack([factor[differ], factor[partner][differ]]))

    def rows(self) -> dict[int, list[tuple[int, ...]]]:
        """Component of a whole -> the factor components that define it, once per definition."""
        rows: dict[int, list[tuple[int, ...]]] = {}
        for product in self.products:
            whole, spread = self.elements(product)
            columns = zip(*(self.component[factor].tolist() for factor in spread))
            for component, row in zip(self.component[whole].tolist(), columns):
                definitions = rows.setdefault(component, [])
                if not any(set(row) == set(other) for other in definitions):
                    definitions.append(row)
        return rows

    def freeze_conflicts(self, rows: dict[int, list[tuple[int, ...]]]) -> None:
        """Splits of one axis that have no common rows and columns leave nothing to remove."""
        reason = Reason("reshapes split these channels in ways that do not agree")
        clash = [
            [component, *(factor for row in definitions for factor in row)]
            for component, definitions in rows.items()
            if len(definitions) > 1 or component in definitions[0]
        ]
        if clash:
            bad = np.unique(np.concatenate(clash))
            self.frozen.append((np.flatnonzero(np.isin(self.component, bad)), reason))
            for component in bad.tolist():
                rows.pop(component, None)

    def frozen_components(self, rows: dict[int, list[tuple[int, ...]]]) -> dict[int, Reason]:
        """Frozen components with the first reason of each; a frozen whole freezes its factors."""
        reasons: dict[int, Reason] = {}
        for labels, reason in self.frozen:
            for component in np.unique(self.component[labels]).tolist():
                reasons.setdefault(component, reason)
        changed = bool(rows)
        while changed:
            changed = False
            for component, (row,) in rows.items():
                if component in reasons:
                    for factor in row:
                        if factor not in reasons:
                            reasons[factor] = reasons[component]
                            changed = True
                elif all(factor in reasons for factor in row):
                    reasons[component] = reasons[row[0]]
                    changed = True
        return reasons

    def expand(
        self, rows: dict[int, list[tuple[int, ...]]], reasons: dict[int, Reason]
    ) -> np.ndarray:
        """[components, k] atoms."""

        def atoms(component: int) -> set[int]:
            if component in reasons:
                return set()
            if component not in rows:
                return {component}
            return set().union(*(atoms(factor) for factor in rows[component][0]))

        count = self.component.max(initial=-1) + 1
        defined = {component: sorted(atoms(component)) for component in rows}
        width = max([1, *(len(row) for row in defined.values())])
        table = np.full((count, width), -1)
        table[:, 0] = np.arange(count)
        table[list(reasons), 0] = -1
        for component, row in defined.items():
            table[component, :] = row + [-1] * (width - len(row))
        return table


def _first_equal(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First index of every distinct column of [k, n], and which of them each column equals."""
    _, first, inverse = np.unique(columns, axis=1, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)


def _common_shape(shapes: set[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The finest split of which all `shapes` are coarser ones; None where there is none.

    (3, 4) and (6, 2) have (3, 2, 2); (3, 4) and (4, 3) have none, since 4 does not divide 3.
    """
    strides = {1}
    for shape in shapes:
        strides.update(int(np.prod(shape[axis:])) for axis in range(len(shape)))
    ordered = sorted(strides, reverse=True)
    lengths = []
    for larger, smaller in itertools.pairwise(ordered):
        if larger % smaller:
            return None
        lengths.append(larger // smaller)
    return tuple(lengths)

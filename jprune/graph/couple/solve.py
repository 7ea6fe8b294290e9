"""From ties and products to atoms: congruence closure, then expansion.

Every element of a product is a definition: "this component is the conjunction of these". The
solver alternates between components (ties), what is frozen, products of one axis that is split at
different places, and these rules, until nothing changes:

- a definition without a factor that can vary freezes, one with a single factor ties;
- a frozen whole freezes its factors;
- equal factors make equal wholes;
- equal wholes make equal factors, and freeze the factors that only one of them has.

A worked example. An axis w of 6 positions is split into rows r0 r1 and columns c0 c1 c2, and the
result is added to another axis v that is split in the same way, into rows s0 s1 and columns
d0 d1 d2. The rules leave a tie and two products:

    w0..w5 = v0..v5                     (the sum)
    w[3 i + j] = r[i] and c[j]          (a position lives while its row and its column live)
    v[3 i + j] = s[i] and d[j]

- Definitions: w0 = {r0, c0}, w1 = {r0, c1}, ... and v0 = {s0, d0}, ...: twelve columns.
- w0 and v0 are one component with two definitions, {r0, c0} and {s0, d0}. `agree` compares all six
  pairs at once: slot by slot (rows with rows, columns with columns) they must be the same, so r0 is
  tied to s0, c0 to d0, and so on.
- Now every definition of w equals one of v: nothing changes any more. Atoms are r0 r1 c0 c1 c2, and
  w4 expands to (r1, c1).

Were c1 frozen (say, tied to an output), w1 = {r0} would tie position 1 to row 0, w4 = {r1} position
4 to row 1: a frozen factor always lives, so it drops out of the conjunction. Were r0 frozen as
well, w1 would have no factor left that varies, and freeze.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jprune.graph.couple.labels import (
    Flags,
    Indices,
    Labels,
    Product,
    Reason,
    Solution,
    components,
)

TOGETHER = "all positions of a split axis are one channel"
DISAGREE = "reshapes split these channels in ways that do not agree"
REMEDY = "reshape them everywhere to the same rows and columns"
NONE = -1


def solve(labels: Labels, opened: bool = False) -> Solution:
    """Closes ties and products.

    Args:
        labels: what the rules said.
        opened: leave out what only reductions freeze.
    """
    return _Solver(labels, opened).run()


class _Definitions(NamedTuple):
    """All elements of all products, flat."""

    whole: Indices
    """[n] components."""
    factors: Indices
    """[k, n] components by slot; -1 beyond the last slot."""
    alive: Indices
    """The same, with -1 for factors that are frozen too: they always live."""
    product: Indices
    """[n]: which product it is an element of."""

    def sets(self) -> Indices:
        """[k, n]: the factors that can vary, every column sorted and without doubles."""
        ordered = np.sort(self.alive, axis=0)
        # {a, a} is {a}: the second of two equal factors becomes NONE, and is sorted to the top.
        ordered[1:][ordered[1:] == ordered[:-1]] = NONE
        return np.sort(ordered, axis=0)


class _Solver:
    """See the module's text."""

    def __init__(self, labels: Labels, opened: bool):
        self.labels = labels
        self.count = labels.count
        self.pairs: list[Indices] = []
        """[2, n] labels that are tied, beside those that the rules tied."""
        self.frozen = [*labels.frozen, *(() if opened else labels.reduced)]
        self.products = list(labels.products)
        self.component: Indices
        self.first: Indices
        """[components]: the first entry of `frozen` that freezes it, -1 for none."""

    def run(self) -> Solution:
        """Applies all rules until nothing changes."""
        self.refresh()
        while self.products:
            before = self.state()
            # Every rule only ties, freezes or makes products finer, so this ends.
            refined = self.refined()
            self.products = [product for product in refined if self.varies(product)]
            if self.products:
                self.close(self.definitions())
            self.refresh()
            if before == self.state() and not self.freeze_cycles():
                break
        reasons = tuple(reason for _, reason in self.frozen)
        return Solution(self.component, self.expand(), self.first, reasons)

    def state(self) -> tuple[int, ...]:
        """A tuple that changes whenever the solver's state does."""
        return len(self.first), self.count, len(self.frozen), len(self.products)

    def refresh(self) -> None:
        """Components of all ties so far, and the first reason that freezes each."""
        # Components get new numbers at every refresh, labels keep theirs: so ties are pairs of
        # labels, and what is frozen are arrays of labels.
        if self.pairs or self.count != self.labels.count:
            pairs = np.concatenate([self.labels.tied(), *self.pairs], axis=1)
            self.component = components(pairs, self.count)
        else:
            self.component = self.labels.components()
        self.first = np.full(self.component.max(initial=-1) + 1, NONE)
        # From the last to the first: the earliest reason is written last, and stays.
        for place in range(len(self.frozen) - 1, -1, -1):
            self.first[self.component[self.frozen[place][0]]] = place

    def is_frozen(self, labels: Indices) -> Flags:
        """[like labels]: which of them always live."""
        return self.first[self.component[labels]] != NONE

    def freeze(self, components: Indices, reason: Reason) -> None:
        """Freezes components; those that are frozen already keep their reason."""
        new = np.unique(components[components != NONE])
        new = new[self.first[new] == NONE]
        if new.size:
            self.first[new] = len(self.frozen)
            self.frozen.append((np.flatnonzero(np.isin(self.component, new)), reason))

    def tie(self, left: Indices, right: Indices) -> None:
        """Ties components."""
        differ = left != right
        if differ.any():
            # Any label of a component stands for it.
            label = np.zeros(len(self.first), np.int64)
            label[self.component] = np.arange(self.count)
            self.pairs.append(np.stack([label[left[differ]], label[right[differ]]]))

    def new(self, length: int, reason: Reason | None = None) -> Indices:
        """New labels, frozen if there is a reason; they start as components of their own."""
        start, top = self.count, len(self.first)
        self.count += length
        self.component = np.concatenate([self.component, np.arange(top, top + length)])
        self.first = np.concatenate([self.first, np.full(length, NONE)])
        if reason is not None:
            self.freeze(np.arange(top, top + length), reason)
        return np.arange(start, self.count)

    def varies(self, product: Product) -> bool:
        """Whether two factors can vary; with one, the product is a tie and done with."""
        varying: list[int] = []
        for axis, factor in enumerate(product.factors):
            components = self.component[factor]
            if (components == components[0]).all():
                # All positions of the axis go together: removing them would remove the whole array.
                self.freeze(components[:1], product.reason._replace(text=TOGETHER))
            if not self.is_frozen(factor).all():
                varying.append(axis)
        if len(varying) == 1:
            # whole[i, j] = row[i] and True: every position is its row.
            spread = beside(product.factors[varying[0]], varying[0], product.whole.shape)
            self.pairs.append(np.stack([product.whole.reshape(-1), spread]))
        elif not varying:
            self.freeze(self.component[product.whole].reshape(-1), self.why(product.factors[0][0]))
        return len(varying) > 1

    def why(self, label: np.int64) -> Reason:
        """Why a frozen label is frozen."""
        return self.frozen[self.first[self.component[label]]][1]

    def refined(self) -> list[Product]:
        """Products of the same whole, split at different places, become one finer product."""
        by_whole: dict[bytes, list[Product]] = {}
        for product in self.products:
            key = self.component[product.whole].reshape(-1).tobytes()
            by_whole.setdefault(key, []).append(product)
        result: list[Product] = []
        for same in by_whole.values():
            several = len({product.whole.shape for product in same}) > 1
            result += self.common(same) if several else same
        return result

    def common(self, same: Sequence[Product]) -> list[Product]:
        """The product of the finest axes into which several splits cut the same whole."""
        strides = [_strides(product.whole.shape) for product in same]
        shared = _shared_strides(strides)
        reason = same[-1].reason
        disagree = reason._replace(text=DISAGREE, remedy=REMEDY)
        axes: dict[tuple[int, int], Indices] = {}
        # (3, 4) and (6, 2) of 12 positions share the strides 12 4 2 1: axes of 3, 2 and 2. A stride
        # that lies between two shared ones belongs to a split that the others cannot express.
        for above, stride in itertools.pairwise(shared):
            cut = any(stride < own < above for chain in strides for own in chain)
            axes[above, stride] = self.new(above // stride, disagree if cut else None)
        whole = same[0].whole.reshape([above // stride for above, stride in axes])
        result = [Product(whole, tuple(axes.values()), reason)]
        # Every factor of an old product is a product of the finer axes: 6 = 3 x 2.
        for product, chain in zip(same, strides):
            for (above, stride), factor in zip(itertools.pairwise(chain), product.factors):
                inside = [above, *(s for s in shared if stride < s < above), stride]
                steps = list(itertools.pairwise(inside))
                # A step that is no shared axis lies in one that some split cuts: it is frozen.
                parts = [
                    axes[step] if step in axes else self.new(step[0] // step[1], disagree)
                    for step in steps
                ]
                shape = [high // low for high, low in steps]
                result.append(Product(factor.reshape(shape), tuple(parts), reason))
        return result

    def definitions(self) -> _Definitions:
        """All elements of all products."""
        rank = max(len(product.factors) for product in self.products)
        slots: list[Indices] = []
        for product in self.products:
            rows = np.full((rank, product.whole.size), NONE)
            for axis, factor in enumerate(product.factors):
                rows[axis] = beside(self.component[factor], axis, product.whole.shape)
            slots.append(rows)
        whole = [self.component[product.whole].reshape(-1) for product in self.products]
        factors = np.concatenate(slots, axis=1)
        # NONE indexes the last entry of `first`, so it is asked for beside.
        frozen = (factors != NONE) & (self.first[factors] != NONE)
        numbers = np.repeat(np.arange(len(whole)), [len(elements) for elements in whole])
        alive = np.where(frozen, NONE, factors)
        return _Definitions(np.concatenate(whole), factors, alive, numbers)

    def close(self, table: _Definitions) -> None:
        """Applies every rule on definitions once."""
        sets = table.sets()
        varying = (sets != NONE).sum(axis=0)
        fixed = self.first[table.whole]
        # A whole that always lives needs all its factors: they freeze, for the whole's reason.
        for place in np.unique(fixed[(fixed != NONE) & (varying > 0)]).tolist():
            self.freeze(sets[:, fixed == place].reshape(-1), self.frozen[place][1])
        # A whole all of whose factors always live does so too, for the first factor's reason.
        empty = self.first[table.factors[0]]
        for place in np.unique(empty[(fixed == NONE) & (varying == 0)]).tolist():
            self.freeze(table.whole[(varying == 0) & (empty == place)], self.frozen[place][1])
        # whole = {factor}: the two are one. Sorted columns have their last factor in the last row.
        single = (fixed == NONE) & (varying == 1)
        self.tie(table.whole[single], sets[-1, single])
        several = (fixed == NONE) & (varying > 1)
        table = _Definitions(*(array[..., several] for array in table))
        sets = sets[:, several]
        # Equal sets of factors make equal wholes ...
        self.tie(table.whole, table.whole[_first_equal(sets)])
        # ... and equal wholes must have equal sets: columns with one whole are compared with the
        # first of them, all pairs of the same two products at once.
        partner = _first_equal(table.whole[None])
        differ = np.flatnonzero((sets != sets[:, partner]).any(axis=0))
        pairs: dict[tuple[int, int], list[int]] = {}
        for column in differ.tolist():
            pair = int(table.product[column]), int(table.product[partner[column]])
            pairs.setdefault(pair, []).append(column)
        for (product, _), columns in pairs.items():
            self.agree(table.alive[:, columns], table.alive[:, partner[columns]], product)

    def agree(self, left: Indices, right: Indices, product: int) -> None:
        """Ties or freezes factors in which definitions [k, n] of one component differ."""
        # {a, b} and {a, c}: one factor on each side that the other has not, so b is c.
        alone, missing = _only(left, right), _only(right, left)
        single = [pair for pair in zip(alone, missing) if len(pair[0]) == len(pair[1]) == 1]
        if single:
            self.tie(*np.array(single).T.reshape(2, -1))
        rest = np.array([max(len(a), len(b)) > 1 or not a or not b for a, b in zip(alone, missing)])
        if not rest.any():
            return
        slots = [_slots(side[:, rest]) for side in (left, right)]
        # Where one side has a factor for all (a part of an axis that the other side splits), that
        # factor stays, and the others are told apart.
        more, fewer = sorted(slots, key=lambda slot_pair: -len(slot_pair[0]))
        if len(more[0]) > len(fewer[0]) and len(more[1]) <= len(fewer[1]):
            self.freeze(np.setdiff1d(more[0], fewer[0]), self.disagree(product))
        # As many constant and as many varying slots: rows are rows, and columns are columns.
        elif [len(part) for part in more] == [len(part) for part in fewer]:
            for one, other in zip(more, fewer):
                self.tie(one.reshape(-1), other.reshape(-1))
        # {a, b, c} and {a, d}: whether d is b, c or both, the definitions do not say.
        else:
            different = [c for a, b, r in zip(alone, missing, rest) if r for c in (*a, *b)]
            self.freeze(np.array(different), self.disagree(product))

    def disagree(self, product: int) -> Reason:
        """The reason for a product that does not agree with another one."""
        return self.products[product].reason._replace(text=DISAGREE, remedy=REMEDY)

    def rows(self) -> dict[int, tuple[int, ...]]:
        """Component of a whole -> the components that it is the conjunction of."""
        if not self.products:
            return {}
        table = self.definitions()
        # A definition with one factor left is a tie, and says nothing more.
        several = ((table.sets() != NONE).sum(axis=0) > 1) & (self.first[table.whole] == NONE)
        # After `close`, all definitions of a whole are equal sets: the first one serves.
        wholes, first = np.unique(table.whole[several], return_index=True)
        columns = table.alive[:, np.flatnonzero(several)[first]].T
        return {
            whole: tuple(column[column != NONE].tolist())
            for whole, column in zip(wholes.tolist(), columns)
        }

    def freeze_cycles(self) -> bool:
        """Freezes components that are defined by themselves; returns whether there were any."""
        rows = self.rows()
        # [pairs]: a whole -> a factor of it
        wholes = np.repeat(list(rows), [len(factors) for factors in rows.values()])
        factors = np.array([factor for row in rows.values() for factor in row], np.int64)
        cyclic = _on_cycles(wholes.astype(np.int64), factors, len(self.first)) & rows.keys()
        if cyclic:
            factors = {factor for component in cyclic for factor in rows[component]}
            self.freeze(np.array(sorted(cyclic | factors)), self.disagree(0))
        return bool(cyclic)

    def expand(self) -> Indices:
        """[components, k] atoms."""
        rows = self.rows()
        defined: dict[int, tuple[int, ...]] = {}
        waiting = list(rows)
        # Wholes among the factors first: their atoms are those of the whole.
        while waiting:
            component = waiting[-1]
            before = [f for f in rows[component] if f in rows and f not in defined]
            if before:
                waiting += before
                continue
            waiting.pop()
            # A frozen component always lives: it is no condition, and no factor of a row.
            parts = (defined.get(factor, (factor,)) for factor in rows[component])
            defined[component] = tuple(dict.fromkeys(itertools.chain.from_iterable(parts)))
        width = max([1, *(len(row) for row in defined.values())])
        table = np.full((len(self.first), width), NONE)
        table[:, 0] = np.where(self.first == NONE, np.arange(len(self.first)), NONE)
        for component, row in defined.items():
            table[component] = row + (NONE,) * (width - len(row))
        return table


def _on_cycles(tails: Indices, heads: Indices, count: int) -> set[int]:
    """Which of `count` things reach themselves over arrows from tails to heads."""
    graph = coo_array((np.ones(len(tails), bool), (tails, heads)), (max(1, count),) * 2)
    result: Any = connected_components(graph, connection="strong")
    several = np.flatnonzero(np.bincount(result[1])[result[1]] > 1)
    return {*several.tolist(), *tails[tails == heads].tolist()}


def beside(factor: Indices, axis: int, shape: tuple[int, ...]) -> Indices:
    """[elements of the whole]: the factor's label for every element, flat."""
    along = [-1 if other == axis else 1 for other in range(len(shape))]
    return np.broadcast_to(factor.reshape(along), shape).reshape(-1)


def _first_equal(columns: Indices) -> Indices:
    """[n]: the first column of [k, n] that each column equals."""
    _, first, inverse = np.unique(columns, axis=1, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def _only(one: Indices, other: Indices) -> list[list[int]]:
    """Per column of [k, n], the entries that the same column of another array lacks."""
    columns = zip(one.T.tolist(), other.T.tolist())
    return [sorted({*factors} - {*others, NONE}) for factors, others in columns]


def _slots(factors: Indices) -> tuple[Indices, Indices]:
    """The slots of [k, n] with the same factor throughout, [i] of them, and the others [j, n]."""
    present = factors[(factors != NONE).any(axis=1)]
    constant = (present == present[:, :1]).all(axis=1)
    return present[constant, 0], present[~constant]


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides, from the whole length to 1."""
    return tuple(int(np.prod(shape[axis:])) for axis in range(len(shape) + 1))


def _shared_strides(chains: Iterable[tuple[int, ...]]) -> list[int]:
    """Strides at which all splits can be cut, from the whole length to 1.

    (3, 4) and (6, 2) share all of theirs, 12 4 2 1. (4, 6) and (6, 4) share 24 12 2 1: with the
    strides 6 and 4 of one alone, the other cannot say what goes.
    """
    every = {stride for chain in chains for stride in chain}
    pairs = list(itertools.combinations(every, 2))
    candidates = every | {int(np.gcd(*pair)) for pair in pairs} | {int(np.lcm(*p)) for p in pairs}
    fits = (a for a in candidates if all(a % b == 0 or b % a == 0 for b in every))
    return sorted(fits, reverse=True)

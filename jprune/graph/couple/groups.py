"""From atoms to groups of units: which leaves they touch, in which roles, and their names."""

import itertools
from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np

from jprune.base import ROLES, Place
from jprune.graph.couple.coupling import Coupling
from jprune.graph.couple.labels import Flags, Indices, components
from jprune.graph.couple.zeros import STAND_INS


class Found(NamedTuple):
    """A group.

    Attributes:
        places: axes of leaves where its units stand.
        atoms: [units]: the atom that each unit is.
    """

    places: tuple[Place, ...]
    atoms: Indices


class LeafAxis(NamedTuple):
    """One axis of a leaf that has atoms.

    Attributes:
        leaf: number of the leaf.
        axis: of the leaf.
        roles: of the leaf on this axis.
        atoms: [k, length]: the atoms that every position is a conjunction of, -1 for none.
    """

    leaf: int
    axis: int
    roles: tuple[str, ...]
    atoms: Indices


def find_units(coupling: Coupling) -> dict[str, Found]:
    """Groups: atoms that touch the same axes, named after their first producer."""
    axes = _axes(coupling)
    count = len(coupling.solution.atoms)
    present = [row.atoms[row.atoms >= 0] for row in axes]
    # A random word per axis: atoms that touch the same axes have the same sum of words.
    words = np.random.default_rng(0).integers(1, 2**62, len(axes))
    signature = np.zeros(count, np.int64)
    for word, atoms in zip(words, present):
        # An atom that stands there twice counts once.
        signature[atoms] += word
    touched: dict[int, list[LeafAxis]] = {}
    for row, atoms in zip(axes, present):
        # Sets of Python numbers: sorting a short array takes longer.
        for key in sorted({*signature[atoms].tolist()}):
            touched.setdefault(key, []).append(row)
    needy = _cleared(coupling, count)
    unordered: list[tuple[tuple[int, ...], str, Found]] = []
    for key, rows in touched.items():
        stands_in = not any("in" in row.roles for row in rows)
        producer = min(rows, key=lambda row: _producer_order(coupling, row))
        for members in _kinds(rows, np.flatnonzero(signature == key)):
            atoms, first = _in_order(producer.atoms, members)
            cleared = stands_in or bool(needy[atoms].any())
            index = np.full(count + 1, -1)  # the last entry is for "none" (-1)
            index[atoms] = np.arange(len(atoms))
            places = (place for row in rows for place in _places(coupling, row, index, cleared))
            # Of two groups on one axis the earlier one is first, then the one with longer steps.
            order = (*_producer_order(coupling, producer), first[0], -first[min(1, len(first) - 1)])
            unordered.append((order, coupling.paths[producer.leaf], Found(tuple(places), atoms)))
    groups: dict[str, Found] = {}
    for _, path, group in sorted(unordered, key=lambda item: item[0]):
        groups[numbered(path, groups)] = group
    return groups


def numbered(name: str, taken: Container[str]) -> str:
    """`name`, or `name@2`, `name@3` where it is taken."""
    number = 2
    result = name
    while result in taken:
        result = f"{name}@{number}"
        number += 1
    return result


def _kinds(rows: Sequence[LeafAxis], atoms: Indices) -> list[Indices]:
    """Splits atoms that share positions into kinds, such as heads and head dimensions."""
    index = np.full(max(int(row.atoms.max()) for row in rows) + 2, -1)  # the last: that of -1
    index[atoms] = np.arange(len(atoms))
    shared = [numbers for row in rows if ((numbers := index[row.atoms]) >= 0).sum(axis=0).max() > 1]
    if not shared:
        return [atoms]
    together = np.zeros((len(atoms), len(atoms)), bool)
    beside: list[Indices] = []
    for row in rows:
        # Channels beside each other on one axis are of one kind, even where the axis meets itself
        # (bilinear pooling): position (i, j) of h_i h_j is a row and a column, (i, i) unit i alone.
        numbers = index[row.atoms]
        single = np.unique(numbers.max(axis=0)[(numbers >= 0).sum(axis=0) == 1])
        beside.append(np.stack([single[:-1], single[1:]]))
    for numbers in shared:
        for left, right in itertools.combinations(numbers, 2):
            both = (left >= 0) & (right >= 0)
            together[left[both], right[both]] = together[right[both], left[both]] = True
    ties = np.concatenate([np.stack(np.nonzero(~together)), *beside], axis=1)
    kind = components(ties, len(atoms))
    return [atoms[kind == number] for number in range(kind.max() + 1)]


def _axes(coupling: Coupling) -> list[LeafAxis]:
    """All axes with atoms of all leaves that something reads."""
    rows: list[LeafAxis] = []
    for leaf in range(len(coupling.paths)):
        if not coupling.uses.roles[leaf]:
            continue
        for number, axis in enumerate(coupling.leaf_axes(leaf)):
            atoms = coupling.solution.atoms_of(axis)
            if (atoms >= 0).any():
                roles_of_axis = coupling.uses.of_axis(leaf, number)
                roles = tuple(role for role in ROLES if role in roles_of_axis)
                rows.append(LeafAxis(leaf, number, roles, atoms))
    return rows


def _producer_order(coupling: Coupling, row: LeafAxis) -> tuple[int, int, int]:
    """Sorts producers first, in execution order."""
    first = coupling.uses.first
    return int("kernel" not in row.roles), first.get(row.leaf, len(first)), row.axis


def _in_order(rows: Indices, atoms: Indices) -> tuple[Indices, list[int]]:
    """The atoms in order of their first positions in [k, length], and these positions."""
    flat = rows.T.reshape(-1)
    values, first = np.unique(flat, return_index=True)
    place = first[np.searchsorted(values, atoms)] // len(rows)
    order = np.argsort(place, kind="stable")
    return atoms[order], place[order].tolist()


def _places(coupling: Coupling, row: LeafAxis, index: Indices, stand_in: bool) -> list[Place]:
    """The units' places on an axis: several if positions belong to several units.

    Args:
        coupling: of the net.
        row: the axis.
        index: [atoms + 1]: the unit that each atom is, -1 for none; the last entry is -1.
        stand_in: whether producers are cleared.
    """
    units = index[row.atoms]
    if len(units) > 1:
        units = np.sort(units, axis=0)[::-1]
    roles = _with_stand_in(row.roles) if stand_in else row.roles
    path = coupling.paths[row.leaf]
    return [
        Place(path, row.axis, roles, row_units) for row_units in units if (row_units >= 0).any()
    ]


def _with_stand_in(roles: tuple[str, ...]) -> tuple[str, ...]:
    """The roles; a producer also gets `in` if no consumer has parameters that could be masked."""
    return (*roles, "in") if set(roles) & STAND_INS and "in" not in roles else roles


def _cleared(coupling: Coupling, count: int) -> Flags:
    """[atoms] bool: whose producers must be cleared, whatever their consumers are."""
    result = np.zeros(count, bool)
    for axis in coupling.cleared:
        atoms = coupling.solution.atoms_of(axis)
        result[atoms[atoms >= 0]] = True
    return result

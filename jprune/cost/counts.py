"""How many positions of an axis are kept, as a function of gates."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jprune.base import Groups
from jprune.graph.couple.coupling import unit_numbers
from jprune.graph.couple.labels import Axis, Fixed
from jprune.graph.trace import Coupling


class Count(NamedTuple):
    """`fixed + sum_g multiplicity[g] . gate[g] + sum over joint positions of their products`.

    An axis of 6 heads times 4 channels, all prunable, has 24 joint positions: position (h, c)
    counts gate_head[h] * gate_channel[c].

    Attributes:
        fixed: positions that always stay.
        single: {group: [units] how many positions belong to each unit alone}.
        joint: positions that belong to several units: ((group, [positions] unit), ...) per set of
            groups.
    """

    fixed: int
    single: dict[str, np.ndarray]
    joint: tuple[tuple[tuple[str, np.ndarray], ...], ...]

    def of(self, gates: Mapping[str, Any]) -> Any:
        """The count under gates {group: [n]}."""
        total: Any = self.fixed
        for name, multiplicity in self.single.items():
            total = total + (multiplicity * gates[name]).sum()
        for factors in self.joint:
            product: Any = 1
            for name, units in factors:
                product = product * gates[name][units]
            total = total + product.sum()
        return total

    @property
    def groups(self) -> frozenset[str]:
        """Groups on this axis."""
        return frozenset(self.single) | {name for kind in self.joint for name, _ in kind}


class Counter:
    """Counts axes of one coupled program."""

    def __init__(self, coupling: Coupling, groups: Groups):
        self.solution = coupling.solution
        self.names = groups.names
        self.sizes = groups.sizes
        self.group_of, self.unit_of = unit_numbers(groups)

    def axis(self, axis: Axis, length: int) -> Count:
        """The count of an axis of this length."""
        if isinstance(axis, Fixed):
            return Count(length, {}, ())
        # atoms [factors, length]: the prunable units that each position depends on, -1 for none.
        atoms = self.solution.atoms_of(axis)
        numbers = np.where(atoms >= 0, self.group_of[atoms], -1)
        several = (numbers >= 0).sum(axis=0)
        single: dict[str, np.ndarray] = {}
        for row, groups in zip(atoms, numbers):
            for number in np.unique(groups[(groups >= 0) & (several == 1)]).tolist():
                positions = (groups == number) & (several == 1)
                name = self.names[number]
                counts = np.bincount(self.unit_of[row[positions]], minlength=self.sizes[name])
                single[name] = single.get(name, 0) + counts
        # Positions of several units, one entry per combination of groups.
        joint = []
        for kind in np.unique(numbers[:, several > 1], axis=1).T:
            positions = (numbers == kind[:, None]).all(axis=0)
            joint.append(
                tuple(
                    (self.names[number], self.unit_of[row[positions]])
                    for number, row in zip(kind.tolist(), atoms)
                    if number >= 0
                )
            )
        return Count(int((several == 0).sum()), single, tuple(joint))


def as_gates(sizes: Mapping[str, int], by_name: Mapping[str, Any]) -> dict[str, Any]:
    """Gates [n] for all groups from masks, gates, or widths (scalars); 1 for groups not named."""
    gates: dict[str, Any] = {}
    for name, size in sizes.items():
        value = by_name.get(name)
        if value is None:
            gates[name] = np.ones(size)
        # A width w becomes n gates of w / n: counts are sums of gates, so they see w.
        elif np.ndim(value) == 0:
            gates[name] = (
                value * (jnp if not isinstance(value, (int, float)) else np).ones(size) / size
            )
        else:
            gates[name] = value if not isinstance(value, np.ndarray) else value.astype(float)
    return gates

"""Sites: where a method can look or act, found by data flow and labels, not by names.

`in`: the data operand of a contraction with parameters. `out`: its result. `norm`: the end of the
per-channel affine chain behind it (bias, batch norm, in inference or training mode), before a
nonlinearity or join. `act`: the end of the elementwise function behind that, before pooling.
`join`: the sum of two activations. Transposes, squeezes and reshapes on the way are looked through,
so that a net has the same sites in every layout and under `vmap`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jprune.base import Groups, SiteInfo
from jprune.graph.couple.coupling import Coupling, unit_numbers
from jprune.graph.couple.labels import Fixed, Indices
from jprune.graph.couple.roles import Uses
from jprune.graph.look.flow import Flow
from jprune.jaxprs import Equation, Program

KINDS = ("branch", "in", "out", "norm", "join", "act")


class Spot(NamedTuple):
    """A site in a program.

    Attributes:
        kind: one of `KINDS`.
        layer: name of the call site, or of the branch.
        value: value id; for `in`, the operand as this one equation reads it.
        equation: number of the equation that reads (`in`) or makes the value.
        axis: channel axis of the value.
        kernel: path of the kernel whose contraction the layer is named after.
    """

    kind: str
    layer: str
    value: int
    equation: int
    axis: int
    kernel: str


def find_spots(
    program: Program, uses: Uses, paths: Sequence[str], flow: Flow | None = None
) -> list[Spot]:
    """All sites of a program, in execution order.

    Args:
        program: the whole program.
        uses: of its leaves.
        paths: of the leaves.
        flow: of the program, where it is at hand.
    """
    flow = Flow(program, uses.taints) if flow is None else flow
    finder = _Finder(flow)
    for contraction in uses.contractions:
        if contraction.program is program:
            finder.contraction(
                contraction.equation, 1 - contraction.kernel, paths[contraction.leaf]
            )
    for number, equation in enumerate(program.equations):
        if flow.is_sum(equation) and equation.outputs[0] not in finder.inside:
            finder.join(number, equation)
    # At one equation: what is read (`branch`, `in`) before what is made.
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(finder.spots.values(), key=lambda spot: (spot.equation, order[spot.kind]))


class Origin(NamedTuple):
    """Where a side of a sum comes from.

    Attributes:
        number: of the equation that ends the layer's chain; -1 for an input.
        layer: name of the call site.
        axis: channel axis of the side.
    """

    number: int
    layer: str
    axis: int


class _Finder:
    """Collects spots under unique (layer, kind) keys."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self.spots: dict[tuple[str, str], Spot] = {}
        self.kernels: dict[str, str] = {}
        """Layer -> path of its kernel."""
        self.inside: set[int] = set()
        """Values inside activation functions: their sums are no joins."""
        self.origin: dict[int, Origin] = {}
        """Value at the end of a chain, or a view of it -> where it comes from."""

    def add(self, kind: str, layer: str, value: int, equation: int, axis: int) -> None:
        self.spots[layer, kind] = Spot(kind, layer, value, equation, axis, self.kernels[layer])

    def contraction(self, number: int, data: int, path: str) -> None:
        """Adds the sites of a contraction: `in`, `out`, `norm` and `act`."""
        equation = self.flow.program.equations[number]
        in_axis, out_axis = channel_axes(self.flow.program, equation, data)
        layer, count = path, 2
        while (layer, "out") in self.spots:
            layer, count = f"{path}@{count}", count + 1
        self.kernels[layer] = path
        self.add("in", layer, equation.inputs[data], number, in_axis)
        self.add("out", layer, equation.outputs[0], number, out_axis)
        self.follow(layer, equation.outputs[0], number, out_axis)

    def follow(self, layer: str, value: int, number: int, axis: int) -> None:
        """Adds the sites `norm` and `act` that follow a value."""
        end, place = self.flow.affine_end(value, axis)
        # A join has the name of its branch, which may have a norm of its own: the first one stays.
        if (layer, "norm") not in self.spots:
            self.add("norm", layer, end, self.flow.maker.get(end, number), place)
        self.end(layer, end, place)
        result, inside = self.flow.activation_end(end, place)
        self.inside |= inside
        if result is not None and (layer, "act") not in self.spots:
            self.add("act", layer, result[0], self.flow.maker[result[0]], result[1])
            self.end(layer, *result)

    def end(self, layer: str, value: int, axis: int) -> None:
        """Notes that a value, and what moves make of it, comes from a layer."""
        number = self.flow.maker.get(value, -1)
        for view, (place,) in self.flow.views(value, (axis,), split=False).items():
            self.origin[view] = Origin(number, layer, place)

    def join(self, number: int, equation: Equation) -> None:
        """Adds the sites of a sum, under the name of the side that is computed last."""
        # Of the two sides the one that is computed later is the branch, the other the shortcut.
        origins = [self.origin[v] for v in equation.inputs if v in self.origin]
        if not origins:
            return
        _, layer, axis = max(origins, key=lambda origin: origin.number)
        result = equation.outputs[0]
        name, count = layer, 2
        while (name, "join") in self.spots:
            name, count = f"{layer}@{count}", count + 1
        self.kernels[name] = self.kernels[layer]
        self.add("join", name, result, number, axis)
        self.end(name, result, axis)
        self.follow(name, result, number, axis)


def channel_axes(program: Program, equation: Equation, data: int) -> tuple[int, int]:
    """Channel axis of the data operand and of the result of a contraction."""
    numbers = equation.params["dimension_numbers"]
    if equation.name == "conv_general_dilated":
        return numbers.lhs_spec[1], numbers.out_spec[1]
    contracted, batch = numbers[0], numbers[1]
    rank = len(program.shape(equation.outputs[0]))
    ranks = [len(program.shape(value)) for value in equation.inputs]
    free = ranks[0] - len(contracted[0]) - len(batch[0])
    # Of several contracted axes (heads and head dimensions) the last one is taken.
    in_axis = contracted[data][-1] if contracted[data] else ranks[data] - 1
    # Results are ordered: batch axes, free axes of the left operand, free axes of the right one.
    return in_axis, rank - 1 if data == 0 else len(batch[0]) + max(free - 1, 0)


def units_on(
    coupling: Coupling, groups: Groups, numbers: tuple[Indices, Indices], spot: Spot
) -> dict[str, np.ndarray]:
    """{group: [positions] unit at every position of the spot's channel axis, -1 for none}."""
    axis = coupling.frame.labels[spot.value][spot.axis]
    if isinstance(axis, Fixed):
        return {}
    group_of, unit_of = numbers
    result: dict[str, np.ndarray] = {}
    # A position may answer to units of several groups, at most one of each: heads and head
    # dimensions.
    for row in coupling.solution.atoms_of(axis):
        group_numbers = group_of[row]  # -1, "none", is the last entry
        for number in sorted({*group_numbers.tolist()} - {-1}):
            name = groups.names[number]
            of_group = group_numbers == number
            units = result.setdefault(name, np.full(len(axis), -1))
            units[of_group] = unit_of[row[of_group]]
    return result


def find_sites(coupling: Coupling, spots: Sequence[Spot], groups: Groups) -> tuple[SiteInfo, ...]:
    """The static part of all sites."""
    numbers = unit_numbers(groups)
    return tuple(
        SiteInfo(
            spot.kind,
            spot.layer,
            spot.axis,
            tuple(units_on(coupling, groups, numbers, spot)),
            spot.kernel,
        )
        for spot in spots
    )

"""Sites: where a method can look or act, found by data flow and labels, not by names.

`in`: the data operand of a contraction with parameters. `out`: its result. `norm`: the end of the
per-channel affine chain behind it (bias, batch norm, in inference or training mode), before a
nonlinearity or join. `act`: the end of the elementwise function behind that, before pooling.
`join`: the sum of two activations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jprune.base import Groups, SiteInfo
from jprune.graph.couple.arithmetic import ELEMENTWISE
from jprune.graph.couple.coupling import Coupling, unit_numbers
from jprune.graph.couple.labels import Fixed, Indices
from jprune.graph.couple.roles import Taint, Uses
from jprune.jaxprs import Equation, Program

KINDS = ("branch", "in", "out", "norm", "join", "act")
AFFINE = {"add", "add_any", "sub", "mul", "div", "neg", "convert_element_type", "copy"}
SUMS = {"add", "add_any"}
POINTWISE = {*ELEMENTWISE, "custom_jvp_call", "custom_vjp_call"}


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


class Flow:
    """Who reads a value, and along which axes a value is constant."""

    def __init__(self, program: Program, taints: Sequence[Taint]):
        self.program = program
        self.taints = taints
        self.readers: dict[int, list[int]] = {}
        self.maker: dict[int, int] = {}
        self.uniform: dict[int, frozenset[int]] = {}
        for number, equation in enumerate(program.equations):
            if not equation.outputs:
                continue  # jax.debug.print reads a value, and is no part of the net
            for value in equation.inputs:
                self.readers.setdefault(value, []).append(number)
            for value in equation.outputs:
                self.maker[value] = number
            self.uniform[equation.outputs[0]] = self._uniform(equation)

    def _along(self, value: int) -> frozenset[int]:
        """Axes along which a value is constant."""
        unit = {axis for axis, length in enumerate(self.program.shape(value)) if length == 1}
        return self.uniform.get(value, frozenset()) | unit

    def _uniform(self, equation: Equation) -> frozenset[int]:
        shape = self.program.shape(equation.outputs[0])
        if equation.name == "broadcast_in_dim":
            places = equation.params["broadcast_dimensions"]
            # A new axis repeats its operand; an old one is constant where it was.
            source = self._along(equation.inputs[0])
            varying = {places[axis] for axis in range(len(places)) if axis not in source}
            return frozenset(range(len(shape))) - varying
        if equation.name in POINTWISE:
            # x[n, h, w, c] * s[1, 1, 1, c] varies where one of its operands does.
            sets = [
                self._along(value)
                for value in equation.inputs
                if len(self.program.shape(value)) == len(shape) and shape
            ]
            return frozenset.intersection(*sets) if sets else frozenset()
        return frozenset()

    def per_channel(self, value: int, *axes: int) -> bool:
        """Whether a value varies along the channel axis (or axes) at most."""
        rank = len(self.program.shape(value))
        return rank == 0 or set(range(rank)) - set(axes) <= self._along(value)

    def is_beside(self, operand: int, equation: Equation, axis: int) -> bool:
        """Whether an operand has one number per channel, and is not a side of a residual sum.

        For one image with one position, an activation has one number per channel too.
        """
        return self.per_channel(operand, axis) and not self.is_sum(equation)

    def is_sum(self, equation: Equation) -> bool:
        """A sum of two activations: both depend on data and vary along more than the channels."""
        if equation.name not in SUMS:
            return False
        shape = self.program.shape(equation.outputs[0])
        # Both sides vary with the image and its positions: a bias or a gate a channel (squeeze
        # and excitation) is no side of a sum.
        return all(
            self.taints[value] is None
            and self.program.shape(value) == shape
            and len(shape) - len(self._along(value)) > 1 - (shape[:1] == (1,))
            for value in equation.inputs
        )

    def affine_end(self, value: int, axis: int) -> int:
        """The end of the longest chain of per-channel affine steps from a value."""
        chain = self._longest(value, axis, {})
        return chain[-1]

    def _longest(self, value: int, axis: int, cache: dict[int, list[int]]) -> list[int]:
        # The chain forks where a stream is read by a norm and by a sum: the longest way is the
        # norm.
        if value not in cache:
            shape = self.program.shape(value)
            best = [value]
            for number in self.readers.get(value, ()):
                equation = self.program.equations[number]
                others = [other for other in equation.inputs if other != value]
                if (
                    equation.name in AFFINE
                    and len(others) == len(equation.inputs) - 1
                    and not (equation.name == "div" and equation.inputs[0] != value)
                    and self.program.shape(equation.outputs[0]) == shape
                    and all(self.is_beside(other, equation, axis) for other in others)
                ):
                    chain = [value, *self._longest(equation.outputs[0], axis, cache)]
                    best = max(best, chain, key=len)
            cache[value] = best
        return cache[value]

    def activation_end(self, value: int, axis: int) -> tuple[int | None, set[int]]:
        """The single end of the elementwise function behind a value, and all values inside it."""
        shape = self.program.shape(value)
        inside: set[int] = set()
        nonlinear = False
        waiting = sorted(set(self.readers.get(value, ())))
        while waiting:
            number = waiting.pop(0)
            equation = self.program.equations[number]
            (result, *rest) = equation.outputs
            # swish(x) = x * sigmoid(x) has several equations: all elementwise readers are taken
            # in, until something else reads.
            if rest or result in inside or equation.name not in POINTWISE:
                continue
            if self.program.shape(result) != shape or not all(
                operand == value or operand in inside or self.is_beside(operand, equation, axis)
                for operand in equation.inputs
            ):
                continue
            inside.add(result)
            nonlinear |= equation.name not in AFFINE or equation.inputs.count(value) > 1
            waiting = sorted({*waiting, *self.readers.get(result, ())})
        # The function has one value that others read; with several, or a side that leaves the
        # function, it is no activation.
        ends = [
            result
            for result in sorted(inside)
            if result in self.program.outputs
            or any(
                not set(self.program.equations[number].outputs) & inside
                for number in self.readers.get(result, ())
            )
        ]
        if nonlinear and len(ends) == 1:
            return ends[0], inside
        return None, inside


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


class _Finder:
    """Collects spots under unique (layer, kind) keys."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self.spots: dict[tuple[str, str], Spot] = {}
        self.kernels: dict[str, str] = {}
        """Layer -> path of its kernel."""
        self.inside: set[int] = set()
        """Values inside activation functions: their sums are no joins."""
        self.origin: dict[int, tuple[str, int]] = {}
        """Value at the end of a chain -> its layer and channel axis."""

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
        end = self.flow.affine_end(value, axis)
        # A join has the name of its branch, which may have a norm of its own: the first one stays.
        if (layer, "norm") not in self.spots:
            self.add("norm", layer, end, self.flow.maker.get(end, number), axis)
        self.origin[end] = (layer, axis)
        result, inside = self.flow.activation_end(end, axis)
        self.inside |= inside
        if result is not None and (layer, "act") not in self.spots:
            self.add("act", layer, result, self.flow.maker[result], axis)
            self.origin[result] = (layer, axis)

    def join(self, number: int, equation: Equation) -> None:
        """Adds the sites of a sum, under the name of the side that is computed last."""
        # Of the two sides the one that is computed later is the branch, the other the shortcut.
        chains = [value for value in sorted(equation.inputs) if value in self.origin]
        if not chains:
            return
        layer, axis = self.origin[max(chains, key=lambda value: self.flow.maker.get(value, -1))]
        result = equation.outputs[0]
        name, count = layer, 2
        while (name, "join") in self.spots:
            name, count = f"{layer}@{count}", count + 1
        self.kernels[name] = self.kernels[layer]
        self.add("join", name, result, number, axis)
        self.origin[result] = (name, axis)
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
        group_numbers = np.where(row >= 0, group_of[row], -1)
        for number in np.unique(group_numbers[group_numbers >= 0]).tolist():
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

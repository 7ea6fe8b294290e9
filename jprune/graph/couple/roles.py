"""What every leaf of the variables does: read off the jaxpr, never off names.

Values that depend on no input are followed from the leaves they come from until they meet data.
How they meet it is the role: a contraction makes a kernel, a product a scale, a sum a shift; a
statistic is told by the root it goes through (variance) or by its sign (mean).

On which side of a kernel an axis stands is read off labels too. They are not those that couple
the network: they follow parameters only, and end where data begins.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from jprune.graph.couple.arithmetic import RANDOM
from jprune.graph.couple.interpret import Frame
from jprune.graph.couple.labels import AxisLabels, Fixed, Flags, Indices, Labels, Solution
from jprune.graph.couple.rules import PARAMETER, RULES, Context, unknown
from jprune.graph.couple.solve import solve
from jprune.jaxprs import CONTROL_FLOW, NESTED, Equation, Program, nested

CONTRACTIONS = ("conv_general_dilated", "dot_general")
# What a parameter went through before it met data, as bits.
PLAIN, MULTIPLIED, NEGATED, ROOT = 0, 1, 2, 4
Taint: TypeAlias = dict[int, frozenset[int]] | None
"""{leaf: bits of every way it came}; None for a value that depends on data."""


class Contraction(NamedTuple):
    """A contraction of data with parameters.

    Attributes:
        program: the whole program, or one nested in it.
        equation: number of the equation in that program.
        kernel: which operand is the kernel.
        leaf: the kernel's leaf (the largest one, if several make the kernel; of equal ones the
            first).
        leaves: all leaves that make the kernel.
        axes: labels of the kernel operand's axes, as parameters alone pass them on.
    """

    program: Program
    equation: int
    kernel: int
    leaf: int
    leaves: tuple[int, ...]
    axes: AxisLabels


class Uses(NamedTuple):
    """How the leaves are used.

    Attributes:
        roles: by leaf: kernel, shift, scale, mean, var, state; empty for a leaf that nothing reads.
        sides: (leaf, axis) of a kernel, or of a leaf that is contracted with other parameters ->
            `in` (contracted), `kernel` (the contraction keeps it), both.
        first: leaf -> when it first meets data.
        contractions: in execution order, those of nested programs included.
        taints: by value id of the top-level program.
        nested: `id` of a nested program -> the same by its value ids.
        leaf_axes: by leaf: labels of its axes, of the kind that `Contraction.axes` has.
        solution: what these labels mean.
    """

    roles: list[set[str]]
    sides: dict[tuple[int, int], set[str]]
    first: dict[int, int]
    contractions: list[Contraction]
    taints: list[Taint]
    nested: dict[int, list[Taint]]
    leaf_axes: list[AxisLabels]
    solution: Solution

    def of_axis(self, leaf: int, axis: int) -> set[str]:
        """Roles of one axis of a leaf."""
        sides = self.sides.get((leaf, axis), set[str]())
        if self.roles[leaf] == {"kernel"}:
            return sides
        # A subnet of parameters (FiLM from an embedding) meets data as a scale or a shift; its
        # matrices are kernels all the same, and what its consumers contract is read by them.
        if len(self.leaf_axes[leaf]) > 1 and sides:
            return sides
        return self.roles[leaf] | (sides & {"in"})


class _Value(NamedTuple):
    """A value: the leaves that it is made of, and the labels of its axes."""

    taint: Taint
    axes: AxisLabels
    """Labels that parameters alone pass on; empty for data."""


DATA_VALUE = _Value(None, ())


class _Walker:
    """Follows parameters through a program and its nested programs."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        self.roles: list[set[str]] = [set() for _ in shapes]
        self.labels = Labels()
        self.axes = [tuple(self.labels.axis(length) for length in shape) for shape in shapes]
        self.sizes = [math.prod(shape) for shape in shapes]
        self.contracted: list[Indices] = []
        self.surviving: list[Indices] = []
        self.alone: set[int] = set()
        """Leaves that are contracted with other parameters, or with constants."""
        self.first: dict[int, int] = {}
        self.contractions: list[Contraction] = []
        self.nested_taints: dict[int, list[Taint]] = {}

    def note(self, taint: Taint, role: str) -> None:
        """Records that these leaves meet data in this role."""
        for leaf, ways in (taint or {}).items():
            self.first.setdefault(leaf, len(self.first))
            # rsqrt(var + eps) multiplies: whatever went through a root is a variance.
            if role in ("scale", "shift") and any(way & ROOT for way in ways):
                self.roles[leaf].add("var")
            # x - mean, or bias - mean * scale written out beforehand.
            elif role == "shift" and any(way & NEGATED for way in ways):
                self.roles[leaf].add("mean")
            elif role == "shift" and any(way & MULTIPLIED for way in ways):
                self.roles[leaf].add("part")  # a scale's share in a folded shift; see `settled`
            else:
                self.roles[leaf].add(role)

    def mark(self, axes: AxisLabels, contracted: set[int]) -> None:
        """Marks the axes of a kernel operand."""
        for position, axis in enumerate(axes):
            if not isinstance(axis, Fixed):
                (self.contracted if position in contracted else self.surviving).append(axis)

    def visit(
        self, program: Program, frame: Frame, inputs: Sequence[_Value], live: set[int] | None
    ) -> list[_Value]:
        """All values of a program; only equations in `live` (None: all) give leaves a role."""
        # Until it is made, a value counts as data.
        values = [DATA_VALUE] * len(program.avals)
        for value in program.constants:
            axes = tuple(self.labels.axis(length) for length in program.shape(value))
            values[value] = _Value({}, axes)
        for value, followed in zip(program.inputs, inputs):
            values[value] = followed
        for number, equation in enumerate(program.equations):
            if not equation.outputs:
                continue  # jax.debug.print reads a value, and gives it no role
            operands = [values[value] for value in equation.inputs]
            # What only the new statistics need gives a leaf no role.
            noted = live is None or number in live
            if equation.inner and equation.name in NESTED:
                results = self.nested(equation, frame.inner[number], operands, noted)
            elif all(operand.taint is not None for operand in operands):
                results = self.of_parameters(program, equation, operands)
            else:
                if noted:
                    self.meet(program, frame, number, operands)
                results = [DATA_VALUE] * len(equation.outputs)
            for value, followed in zip(equation.outputs, results):
                values[value] = followed
        self.nested_taints[id(program)] = [value.taint for value in values]
        return values

    def of_parameters(
        self, program: Program, equation: Equation, operands: Sequence[_Value]
    ) -> list[_Value]:
        """Values that parameters alone make."""
        if equation.name in CONTRACTIONS:
            contracted = contracted_axes(equation)
            # Of two parameters the second one is the consumer; constants consume nothing.
            consumer = 1 if operands[1].taint else 0
            self.mark(operands[consumer].axes, contracted[consumer])
            self.mark(operands[1 - consumer].axes, set())
            self.alone.update(*(operand.taint or () for operand in operands))
        # The same rules as for the net, on labels of their own that end where data begins.
        context = Context(self.labels, program, equation, [PARAMETER] * len(operands))
        axes = RULES.get(equation.name, unknown)(context, [operand.axes for operand in operands])
        taints = [operand.taint for operand in operands]
        taint = {} if equation.name in RANDOM else combined(equation, taints)
        return [_Value(taint, result) for result in axes]

    def meet(self, program: Program, frame: Frame, number: int, operands: Sequence[_Value]) -> None:
        """Records the roles that an equation gives to the parameters that meet data in it."""
        equation = program.equations[number]
        name = equation.name
        if name in CONTRACTIONS:
            contracted = contracted_axes(equation)
            for side in (0, 1):
                taint = operands[side].taint
                if taint:
                    self.mark(operands[side].axes, contracted[side])
                    self.note(taint, "kernel")
                    # Weight norm: g v / |v| is made of two leaves, and v, the larger one, is the
                    # kernel.
                    leaf = min(taint, key=lambda leaf: (-self.sizes[leaf], leaf))
                    self.contractions.append(
                        Contraction(program, number, side, leaf, tuple(taint), operands[side].axes)
                    )
            return
        # Behind contractions parameters meet data as factors (mul, div) or offsets (add, sub).
        for side, operand in enumerate(operands):
            self.mark(operand.axes, set())  # a table that is looked up produces its channels
            if name in ("mul", "div", "scatter-mul"):
                self.note(operand.taint, "scale")
            elif name == "sub" and side == 1:
                self.note(with_bit(operand.taint, NEGATED), "shift")
            else:
                self.note(operand.taint, "shift")

    def nested(
        self,
        equation: Equation,
        frames: Sequence[Frame],
        operands: Sequence[_Value],
        noted: bool,
    ) -> list[_Value]:
        """Equations with bodies; what a loop carries counts as data."""
        # A body that reaches no main output gives no role either.
        live = None if noted else set[int]()
        values: list[_Value] = []
        for body, frame in zip(nested(equation), frames):
            if not body.results:  # a loop's condition decides how often, and computes nothing
                continue
            inputs = [operands[number] for number in body.operands]
            for place in body.carried:
                inputs[place] = DATA_VALUE
            for place in body.stacked:
                # A turn sees one layer of the stack.
                inputs[place] = inputs[place]._replace(axes=inputs[place].axes[1:])
            values = self.visit(body.program, frame, inputs, live)
        if equation.name in CONTROL_FLOW:
            return [DATA_VALUE] * len(equation.outputs)
        return [values[value] for value in equation.inner[0].outputs]


def with_bit(taint: Taint, bit: int) -> Taint:
    """The taint after one more operation; a second negation undoes the first."""
    if taint is None:
        return None
    return {
        leaf: frozenset(way ^ bit if bit == NEGATED else way | bit for way in ways)
        for leaf, ways in taint.items()
    }


def combined(equation: Equation, operands: Sequence[Taint]) -> Taint:
    """Taint of a value that parameters alone make."""
    name = equation.name
    result: dict[int, frozenset[int]] = {}
    # scale * rsqrt(var): a product of parameters. A factor that is a constant says nothing.
    several = sum(bool(operand) for operand in operands) > 1
    for side, taint in enumerate(operands):
        if name in ("rsqrt", "sqrt", "pow"):
            taint = with_bit(taint, ROOT)
        elif name in ("mul", "div") and several:
            taint = with_bit(taint, MULTIPLIED)
        # -(-mean) is no mean: the bit is turned, not set.
        elif name == "neg" or (name == "sub" and side == 1):
            taint = with_bit(taint, NEGATED)
        for leaf, ways in (taint or {}).items():
            result[leaf] = result.get(leaf, frozenset()) | ways
    return result


def contracted_axes(equation: Equation) -> tuple[set[int], set[int]]:
    """Contracted axes of both operands; channels of a grouped convolution count as contracted."""
    numbers = equation.params["dimension_numbers"]
    if equation.name == "dot_general":
        return set(numbers[0][0]), set(numbers[0][1])
    return {numbers.lhs_spec[1]}, {numbers.rhs_spec[1]}


def reaching(program: Program, outputs: Sequence[int]) -> set[int]:
    """Numbers of the equations that the outputs depend on."""
    needed, live = set(outputs), set[int]()
    # From the outputs backwards: an equation counts if something that counts reads it.
    for number in range(len(program.equations) - 1, -1, -1):
        equation = program.equations[number]
        if any(value in needed for value in equation.outputs):
            live.add(number)
            needed.update(equation.inputs)
    return live


def uses_of(program: Program, frame: Frame, leaves: int, main_outputs: int | None = None) -> Uses:
    """How every leaf is used on the way to the main outputs.

    Args:
        program: the whole function.
        frame: its labels.
        leaves: how many of the inputs are leaves of the variables.
        main_outputs: how many of the outputs count; None for all.
    """
    walker = _Walker([program.shape(value) for value in program.inputs[:leaves]])
    inputs = [_Value({leaf: frozenset({PLAIN})}, walker.axes[leaf]) for leaf in range(leaves)]
    inputs += [DATA_VALUE] * (len(program.inputs) - leaves)
    live = reaching(program, program.outputs[:main_outputs])
    walker.visit(program, frame, inputs, live)
    read = {value for equation in program.equations for value in equation.inputs}
    read |= set(program.outputs)
    for leaf, value in enumerate(program.inputs[:leaves]):
        walker.roles[leaf] = settled(walker.roles[leaf], value in read)
    walker.labels.frozen.clear()  # only what belongs together counts here
    solution = solve(walker.labels, opened=True)
    return Uses(
        walker.roles,
        _sides(walker, solution),
        walker.first,
        walker.contractions,
        walker.nested_taints.pop(id(program)),
        walker.nested_taints,
        walker.axes,
        solution,
    )


def _sides(walker: _Walker, solution: Solution) -> dict[tuple[int, int], set[str]]:
    """On which side of its contractions every axis of every contracted leaf stands."""
    marked = {"in": walker.contracted, "kernel": walker.surviving}
    components: dict[str, Flags] = {}
    for side, axes in marked.items():
        on_side = np.zeros(len(solution.atoms), bool)
        if axes:
            labels = np.concatenate(axes)
            atoms = solution.atoms_of(labels)
            on_side[atoms[atoms >= 0]] = True
            # A frozen component has no atoms, but is on a side all the same.
            on_side[solution.component[labels]] = True
        components[side] = on_side
    sides: dict[tuple[int, int], set[str]] = {}
    for leaf, own in enumerate(walker.axes):
        for number, axis in enumerate(own):
            is_contracted = walker.roles[leaf] == {"kernel"} or leaf in walker.alone
            if is_contracted and not isinstance(axis, Fixed):
                atoms = solution.atoms_of(axis)
                all_of_it = np.concatenate([atoms[atoms >= 0], solution.component[axis]])
                stands_on = {side for side, flags in components.items() if flags[all_of_it].any()}
                sides[leaf, number] = stands_on or {"kernel"}
    return sides


def settled(roles: set[str], read: bool) -> set[str]:
    """The role of a leaf that was met in several ways: the strongest one.

    A batch norm folded into `x * inv + (beta - mean * inv)` meets data three times.
    """
    for role in ("kernel", "var", "scale", "mean", "shift"):
        if role in roles:
            return {role}
    if "part" in roles:
        return {"scale"}
    return {"state"} if read else set()

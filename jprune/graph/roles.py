"""What every leaf of the variables does: read off the jaxpr, never off names.

Values that depend on no input are followed from the leaves they come from until they meet data.
How they meet it is the role: a contraction makes a kernel, a product a scale, a sum a shift; a
statistic is told by the root it goes through (variance) or by its sign (mean).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jprune.graph.interpret import Frame
from jprune.graph.jaxprs import NESTED, Equation, Program
from jprune.graph.labels import AxisLabels, Fixed, Solution

CONTRACTIONS = ("conv_general_dilated", "dot_general")
# What a parameter went through before it met data, as bits.
PLAIN, MULTIPLIED, NEGATED, ROOT = 0, 1, 2, 4

Taint = dict[int, frozenset[int]] | None
"""{leaf: bits of every way it came}; None for a value that depends on data."""


class Contraction(NamedTuple):
    """A contraction of data with parameters."""

    program: Program
    """The whole program, or one nested in it."""
    equation: int
    """Number of the equation in that program."""
    kernel: int
    """Which operand is the kernel."""
    leaf: int
    """The kernel's leaf (the first one, if several make the kernel)."""


class Uses(NamedTuple):
    """How the leaves are used."""

    roles: list[set[str]]
    """By leaf: kernel, shift, scale, mean, var, state; empty for a leaf that nothing reads."""
    contracted: np.ndarray
    """[labels] bool: on a kernel's contracted axis."""
    surviving: np.ndarray
    """[labels] bool: on a kernel's axis that the contraction keeps."""
    meeting: np.ndarray
    """[labels] bool: contracted between two activations."""
    first: dict[int, int]
    """Leaf -> when it first meets data."""
    contractions: list[Contraction]
    """In execution order, those of nested programs included."""
    taints: list[Taint]
    """By value id of the top-level program."""


class _Walker:
    """Follows parameters through a program and its nested programs."""

    def __init__(self, leaves: int, labels: int):
        self.roles: list[set[str]] = [set() for _ in range(leaves)]
        self.contracted, self.surviving, self.meeting = (np.zeros(labels, bool) for _ in range(3))
        self.first: dict[int, int] = {}
        self.contractions: list[Contraction] = []

    def note(self, taint: Taint, role: str) -> None:
        """These leaves meet data in this role."""
        for leaf, ways in (taint or {}).items():
            self.first.setdefault(leaf, len(self.first))
            if role in ("scale", "shift") and any(way & ROOT for way in ways):
                self.roles[leaf].add("var")
            elif role == "shift" and any(way & NEGATED for way in ways):
                self.roles[leaf].add("mean")
            elif role == "shift" and any(way & MULTIPLIED for way in ways):
                self.roles[leaf].add("part")  # a scale's share in a folded shift; see `settled`
            else:
                self.roles[leaf].add(role)

    def mark(
        self, axes: Sequence[AxisLabels], operand: int, contracted: set[int], kept: bool
    ) -> None:
        """Marks the labels of a kernel operand."""
        for position, axis in enumerate(axes[operand]):
            if not isinstance(axis, Fixed):
                if position in contracted:
                    self.contracted[axis] = True
                elif kept:
                    self.surviving[axis] = True

    def visit(
        self, program: Program, frame: Frame, inputs: Sequence[Taint], live: set[int] | None
    ) -> list[Taint]:
        """Taints of all values; `live` limits the notes to what reaches the main output."""
        taints: list[Taint] = [{}] * len(program.avals)
        for value, taint in zip(program.inputs, inputs):
            taints[value] = taint
        for number, equation in enumerate(program.equations):
            operands = [taints[value] for value in equation.inputs]
            axes = [frame.labels[value] for value in equation.inputs]
            noted = live is None or number in live
            if equation.inner and equation.name in NESTED:
                results = self.nested(equation, frame.inner[number], operands, noted)
            elif all(operand is not None for operand in operands):
                if equation.name in CONTRACTIONS:
                    contracted = contracted_axes(equation)
                    self.mark(axes, 0, set(), True)
                    self.mark(axes, 1, contracted[1], True)
                results = [combined(equation, operands)] * len(equation.outputs)
            else:
                if noted:
                    self.meet(program, number, equation, operands, axes)
                results = [None] * len(equation.outputs)
            for value, taint in zip(equation.outputs, results):
                taints[value] = taint
        return taints

    def meet(self, program, number, equation: Equation, operands: list[Taint], axes) -> None:
        """An equation in which data takes part."""
        name = equation.name
        if name in CONTRACTIONS:
            contracted = contracted_axes(equation)
            kernels = [side for side in (0, 1) if operands[side]]
            for side in kernels:
                self.mark(axes, side, contracted[side], True)
                self.note(operands[side], "kernel")
                leaf = min(operands[side] or {})
                self.contractions.append(Contraction(program, number, side, leaf))
            if all(operand is None for operand in operands):
                for side in (0, 1):
                    for position in contracted[side]:
                        if not isinstance(axis := axes[side][position], Fixed):
                            self.meeting[axis] = True
            return
        for side, taint in enumerate(operands):
            if name in ("mul", "div"):
                self.note(taint, "scale")
            elif name == "sub" and side == 1:
                self.note(with_bit(taint, NEGATED), "shift")
            else:
                self.note(taint, "shift")

    def nested(
        self, equation: Equation, frames: Sequence[Frame], operands: list[Taint], noted: bool
    ) -> list[Taint]:
        """Equations with bodies; what a loop carries counts as data."""
        name, params = equation.name, equation.params
        live = None if noted else set()
        if name == "cond":
            for body, frame in zip(equation.inner, frames):
                self.visit(body, frame, operands[1:], live)
            return [None] * len(equation.outputs)
        if name == "while":
            first, second = params["cond_nconsts"], params["body_nconsts"]
            inputs = operands[first : first + second] + [None] * len(equation.outputs)
            self.visit(equation.inner[1], frames[1], inputs, live)
            return [None] * len(equation.outputs)
        if name == "scan":
            constants, carried = params["num_consts"], params["num_carry"]
            inputs = [*operands[:constants], *[None] * carried, *operands[constants + carried :]]
            self.visit(equation.inner[0], frames[0], inputs, live)
            return [None] * len(equation.outputs)
        (body,) = equation.inner
        taints = self.visit(body, frames[0], operands, live)
        return [taints[value] for value in body.outputs]


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
    several = sum(bool(operand) for operand in operands) > 1
    for side, taint in enumerate(operands):
        if name in ("rsqrt", "sqrt", "pow", "integer_pow", "square"):
            taint = with_bit(taint, ROOT if name != "integer_pow" and name != "square" else PLAIN)
        elif name in ("mul", "div") and several:
            taint = with_bit(taint, MULTIPLIED)
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
    needed, live = set(outputs), set()
    for number in range(len(program.equations) - 1, -1, -1):
        equation = program.equations[number]
        if any(value in needed for value in equation.outputs):
            live.add(number)
            needed.update(equation.inputs)
    return live


def uses_of(
    program: Program, frame: Frame, solution: Solution, leaves: int, main_outputs: int | None = None
) -> Uses:
    """How every leaf is used on the way to the main outputs.

    Args:
        program: the whole function.
        frame: its labels.
        solution: their solution.
        leaves: how many of the inputs are leaves of the variables.
        main_outputs: how many of the outputs count; None for all.
    """
    walker = _Walker(leaves, len(solution.component))
    inputs: list[Taint] = [{leaf: frozenset({PLAIN})} for leaf in range(leaves)]
    inputs += [None] * (len(program.inputs) - leaves)
    live = reaching(program, program.outputs[:main_outputs])
    taints = walker.visit(program, frame, inputs, live)
    read = {value for equation in program.equations for value in equation.inputs}
    read |= set(program.outputs)
    for leaf, value in enumerate(program.inputs[:leaves]):
        walker.roles[leaf] = settled(walker.roles[leaf], value in read)
    return Uses(
        walker.roles,
        walker.contracted,
        walker.surviving,
        walker.meeting,
        walker.first,
        walker.contractions,
        taints,
    )


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

"""Whether a unit vanishes from a contraction of two activations, once its producers are zero.

A head dimension ends in q . k: no parameter of a consumer could be masked there. Its producers
stand in, which removes it exactly if every function between them and the contraction maps zero to
zero (scaling, rotation, tanh), and does not if one does not (a softplus feature map).
"""

import functools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from jprune.graph.couple.arithmetic import ELEMENTWISE
from jprune.graph.couple.interpret import Frame
from jprune.graph.couple.labels import (
    Axis,
    AxisLabels,
    Fixed,
    Flags,
    Labels,
    Reason,
    Solution,
)
from jprune.graph.couple.moves import aligned
from jprune.graph.couple.roles import CONTRACTIONS, Uses, contracted_axes
from jprune.graph.couple.rules import CONSTANT, DATA, OPEN
from jprune.graph.couple.scatters import SCATTERS, scatter_of
from jprune.graph.couple.solve import solve
from jprune.jaxprs import Equation, Program, describe, nested, user_line

STAND_INS = frozenset({"kernel", "shift", "mean"})
"""Roles whose places are cleared where a unit has no consumer with parameters."""
# Elementwise functions that are zero ...
ANY = {"mul", "and"}  # ... if one operand is
ALL = {"add", "add_any", "sub", "max", "min", "or", "xor", "atan2", "complex"}  # ... if all are
FIRST = {"div", "rem", "integer_pow", "shift_left"}  # ... if the first one is
ALONE = set(
    """
    abs asin asinh atan atanh cbrt ceil conj convert_element_type copy copy_p device_put erf erf_inv
    expm1 floor imag log1p name neg optimization_barrier pvary real reduce_precision round
    sharding_constraint sign sin sinh sqrt square stop_gradient tan tanh
    """.split()
)  # ... if their operand is
CHANGES = {*ELEMENTWISE, "argmax", "argmin", "iota", "random_bits"} - ALONE
"""What may turn zeros into something else; whatever only moves or sums them does not."""
Zero: TypeAlias = tuple[bool, ...]
"""Per axis: whether an array is zero at the positions of units whose producers are cleared."""


def freeze_survivors(program: Program, frame: Frame, labels: Labels, uses: Uses) -> None:
    """Freezes units that meet another activation without being zero there."""
    if not uses.meetings:
        return
    inputs = [(False,) * len(program.shape(value)) for value in program.inputs]
    for leaf in range(len(uses.roles)):
        # Cleared are the producers of a unit (and its slices elsewhere): kernel, shift and mean.
        # A scale need not be, since scale * 0 is 0.
        roles = (uses.of_axis(leaf, axis) for axis in range(len(inputs[leaf])))
        inputs[leaf] = tuple(bool(roles_of_axis & {*STAND_INS, "in"}) for roles_of_axis in roles)
    leaves = [frame.labels[value] for value in program.inputs[: len(uses.roles)]]
    _Walker(labels, leaves).visit(program, frame, inputs)


class _Walker:
    """Carries zeros from the leaves to the contractions of two activations."""

    def __init__(self, labels: Labels, leaves: Sequence[AxisLabels]):
        self.labels = labels
        self.leaves = leaves

    @functools.cached_property
    def units(self) -> tuple[Solution, Flags]:
        """What the labels mean, and which atoms a leaf has: these can go."""
        solution = solve(self.labels, opened=True)
        removable = np.zeros(len(solution.atoms) + 1, bool)  # the last entry is for "none" (-1)
        for axis in (axis for axes in self.leaves for axis in axes):
            if not isinstance(axis, Fixed):
                removable[solution.atoms_of(axis)] = True
        removable[-1] = False
        return solution, removable

    def can_go(self, axis: Axis) -> bool:
        """Whether positions of an axis can be removed: the axis of a stack is no leaf's."""
        solution, removable = self.units
        return not isinstance(axis, Fixed) and bool(removable[solution.atoms_of(axis)].any())

    def visit(self, program: Program, frame: Frame, inputs: Sequence[Zero]) -> list[Zero]:
        """Zeros of the program's outputs, from those of its inputs."""
        zeros: list[Zero] = [(False,) * len(program.shape(v)) for v in range(len(program.avals))]
        for value, zero in zip(program.inputs, inputs):
            zeros[value] = zero
        for number, equation in enumerate(program.equations):
            if not equation.outputs:
                continue
            operands = [zeros[value] for value in equation.inputs]
            if equation.inner:
                results = self.nested(equation, frame.inner[number], operands)
            elif equation.name in CHANGES:
                results = [elementwise(program, frame, equation, operands)]
            elif equation.name == "reshape":
                results = [self.reshaped(program, frame, equation, operands[0])]
            else:
                results = moved(program, frame, equation, operands)
            # q . k = sum over d of q_d k_d: a term is gone if one of its factors is.
            if equation.name in CONTRACTIONS and all(
                frame.levels[value] == DATA for value in equation.inputs
            ):
                self.meet(program, frame, equation, operands)
            for value, zero in zip(equation.outputs, results):
                zeros[value] = zero
        return [zeros[value] for value in program.outputs]

    def meet(
        self, program: Program, frame: Frame, equation: Equation, operands: Sequence[Zero]
    ) -> None:
        """A contraction of two activations: units that are zero on neither side must stay."""
        for one, other in zip(*ordered_contracted_axes(equation)):
            axis = frame.labels[equation.inputs[0]][one]
            if isinstance(axis, Fixed) or operands[0][one] or operands[1][other]:
                continue
            reason = Reason(
                "contracted with another activation, where it is not zero without its producers",
                equation.name,
                describe(program, equation),
                user_line(equation.traceback),
                OPEN,
            )
            self.labels.reduce(axis, reason)

    def reshaped(self, program: Program, frame: Frame, equation: Equation, zeros: Zero) -> Zero:
        """A split or merged run of axes is zero where all its axes that can go are."""
        shapes = program.shape(equation.inputs[0]), program.shape(equation.outputs[0])
        axes: AxisLabels = frame.labels[equation.inputs[0]]
        result = [False] * len(shapes[1])
        for sources, targets in aligned(*shapes):
            zero = any(zeros[axis] for axis in sources) and all(
                zeros[axis] or not self.can_go(axes[axis])
                for axis in sources
                if not isinstance(axes[axis], Fixed)
            )
            for target in targets:
                result[target] = zero
        return tuple(result)

    def nested(
        self, equation: Equation, frames: Sequence[Frame], operands: Sequence[Zero]
    ) -> list[Zero]:
        """Equations with bodies; what a loop carries is not followed."""
        results: list[Zero] = []
        for body, frame in zip(nested(equation), frames):
            if not body.results:
                continue
            inputs = [operands[number] for number in body.operands]
            for place in body.carried:
                inputs[place] = (False,) * len(inputs[place])
            for place in body.stacked:
                inputs[place] = inputs[place][1:]
            outputs = self.visit(body.program, frame, inputs)
            outputs[: len(body.carried)] = [inputs[place] for place in body.carried]
            # Results of the turns are stacked on a new first axis.
            zeros = [
                (False, *outputs[output]) if result in body.collected else outputs[output]
                for result, output in enumerate(body.results)
            ]
            # Which branch is taken is not known: zero is what is zero in all of them.
            pairs = zip(results or zeros, zeros)
            results = [tuple(map(all, zip(*pair))) for pair in pairs]
        return results


def elementwise(
    program: Program, frame: Frame, equation: Equation, operands: Sequence[Zero]
) -> Zero:
    """Zeros of an elementwise function of several operands."""
    name, shape = equation.name, program.shape(equation.outputs[0])
    operands = list(operands)
    values = list(equation.inputs)
    if name == "select_n":
        values, operands = values[1:], operands[1:]
    nothing = [is_nothing(program, frame, value) for value in values]

    def zero(number: int, axis: int) -> bool:
        # An operand that is broadcast along the axis says nothing of single positions of it.
        whole = program.shape(values[number])[axis : axis + 1] == shape[axis : axis + 1]
        return nothing[number] or (whole and operands[number][axis])

    def result(axis: int) -> bool:
        zeros = [zero(number, axis) for number in range(len(values))]
        if name in ANY:
            return any(zeros)
        if name in ALL or name == "select_n":
            return all(zeros)
        if name == "clamp":
            low, high = program.known(values[0]), program.known(values[2])
            # relu6(0) = 0, but clip(0, 1, 6) = 1.
            inside = low is not None and high is not None and (low <= 0).all() and (high >= 0).all()
            return bool(zeros[1] and inside)
        # 0 ** y is 0 for y > 0 alone; 0 / y is nan where y is 0, in the dense net as well.
        return name in FIRST and zeros[0] and equation.params.get("y", 1) > 0

    return tuple(result(axis) for axis in range(len(shape)))


def is_nothing(program: Program, frame: Frame, value: int) -> bool:
    """Whether a value is the constant zero."""
    if frame.levels[value] != CONSTANT:
        return False
    number = program.known(value)
    return number is not None and not number.any()


def moved(
    program: Program, frame: Frame, equation: Equation, operands: Sequence[Zero]
) -> list[Zero]:
    """Zeros move as labels do: a result's axis has those of the axes it shares labels with."""
    joined = beside(program, equation)
    nothing = [bool(joined) and is_nothing(program, frame, value) for value in equation.inputs]
    sources = [
        (axis, zero)
        for value, zeros in zip(equation.inputs, operands)
        for axis, zero in zip(frame.labels[value], zeros)
        if not isinstance(axis, Fixed)
    ]

    def of_axis(number: int, axis: Axis) -> bool:
        if number in joined:
            return all(nothing[operand] or operands[operand][a] for operand, a in joined[number])
        shared = [zero for source, zero in sources if shares(axis, source)]
        return bool(shared) and all(shared)

    return [
        tuple(of_axis(number, axis) for number, axis in enumerate(frame.labels[value]))
        for value in equation.outputs
    ]


def beside(program: Program, equation: Equation) -> dict[int, list[tuple[int, int]]]:
    """Axis of the result -> (operand, its axis) of all whose positions stand side by side there."""
    name, params = equation.name, equation.params
    numbers, axes = range(len(equation.inputs)), range(len(program.shape(equation.outputs[0])))
    if name == "concatenate":
        others = (axis for axis in axes if axis != params["dimension"])
        return {axis: [(number, axis) for number in numbers] for axis in others}
    if name == "stack":
        new = params["axis"]
        others = (axis for axis in axes if axis != new)
        return {axis: [(number, axis - (axis > new)) for number in numbers] for axis in others}
    if name == "dynamic_update_slice":
        return {axis: [(0, axis), (1, axis)] for axis in axes}
    if name in SCATTERS:
        shapes = [program.shape(value) for value in equation.inputs]
        how = scatter_of(params, None, shapes[0], len(shapes[2]))
        of_updates = {axis: [(2, target)] for axis, target in how.passed.items()}
        of_updates.update({axis: [(2, how.batch[n])] for axis, n in how.tied.items()})
        of_updates.update({axis: [(2, target) for target in how.batch] for axis in how.written})
        return {axis: [(0, axis), *of_updates[axis]] for axis in axes}
    return {}


def shares(axis: Axis, source: Axis) -> bool:
    """Whether two axes have a label in common."""
    if isinstance(axis, Fixed) or isinstance(source, Fixed):
        return False
    return axis is source or bool(np.isin(axis, source).any())


def ordered_contracted_axes(equation: Equation) -> tuple[Sequence[int], Sequence[int]]:
    """Contracted axes of both operands, in matching order."""
    if equation.name == "dot_general":
        return equation.params["dimension_numbers"][0]
    left, right = contracted_axes(equation)
    return [*left], [*right]

"""Where arrays are zero once a unit is masked, so that what sums over the unit loses nothing.

The law, by induction over equations: at the positions of living units, the masked net holds the
numbers of the slim one. What works position by position hands this on. What ends an axis does so if
the terms of a removed unit u are no terms:

    contraction   sum_u a_u b_u    if a_u = 0 or b_u = 0, the other one being finite
    sum, or, xor  sum_u a_u        if a_u = 0, and no division by the number of terms follows
    maximum       max_u a_u        if a_u = 0, and nothing is negative

Masks clear *leaves*: the operand is zero where every function between leaf and operand maps 0 to 0.
tanh(w) and w * s do; softplus(w), w + 1 and (w - z) * s do not, and sum_i w_i^2 loses nothing by a
row that is cleared.

Places `in`, what a unit's consumers read it with, are cleared first. Where that is not enough
its producers stand in: a head dimension ends in q . k, and no consumer of it has parameters; a
consumer's kernel exp(w) is 1 where w is masked, but may meet relu(0) = 0. Where that is not enough
either, the unit must stay, unless it is opened.
"""

import functools
from collections.abc import Sequence
from functools import reduce
from typing import TypeAlias

import numpy as np

from jprune.graph.couple.arithmetic import ELEMENTWISE, REDUCTIONS
from jprune.graph.couple.divisors import counted
from jprune.graph.couple.interpret import Frame
from jprune.graph.couple.labels import (
    Axis,
    AxisLabels,
    Fixed,
    Flags,
    Indices,
    Labels,
    Reason,
    Solution,
)
from jprune.graph.couple.moves import aligned
from jprune.graph.couple.roles import CONTRACTIONS, Uses, contracted_axes
from jprune.graph.couple.rules import CONSTANT, DATA, OPEN
from jprune.graph.couple.scatters import SCATTERS, scatter_of
from jprune.graph.couple.solve import components, solve
from jprune.jaxprs import Equation, Program, describe, nested, user_line

STAND_INS = frozenset({"kernel", "shift", "mean"})
"""Roles whose places are cleared where a unit's consumers are not enough."""
# What a unit's positions on an axis are, as bits.
CONSUMERS = 1  # zero, once its `in` places are cleared
PRODUCERS = 2  # zero, once its producers are cleared too
ZERO = CONSUMERS | PRODUCERS
WILD = ZERO << 2  # the same two, for infinite or not a number: 0 times that is no zero
# Elementwise functions that are zero ...
ANY = {"mul", "and"}  # ... if one operand is
ALL = {"add", "add_any", "sub", "max", "min", "or", "xor", "atan2", "complex", "select_n"}
# ... if all operands are
FIRST = {"div", "rem", "integer_pow", "pow", "shift_left"}  # ... if the first one is
ALONE = set(
    """
    abs asin asinh atan atanh cbrt ceil conj convert_element_type copy copy_p device_put erf erf_inv
    expm1 floor imag log1p name neg optimization_barrier pvary real reduce_precision round
    sharding_constraint sign sin sinh sqrt square stop_gradient tan tanh
    """.split()
)  # ... if their operand is
POLES = {"log", "log2", "rsqrt", "digamma", "lgamma", "polygamma", "zeta", "bessel_k0e"}
CHANGES = {*ELEMENTWISE, "argmax", "argmin", "iota", "random_bits", "cumlogsumexp"} - ALONE
"""What may turn zeros into something else; whatever only moves or sums them does not."""
NEVER_NEGATIVE = {"abs", "square", "exp", "exp2", "sqrt", "rsqrt", "logistic", "cosh"}
SAME_SIGN = """
    broadcast_in_dim convert_element_type copy name reduce_max reduce_sum reshape squeeze
    stop_gradient transpose
""".split()
Zero: TypeAlias = tuple[int, ...]
"""Per axis: bits of what the array is at the positions of units that are cleared."""


def find_survivors(
    program: Program, frame: Frame, labels: Labels, uses: Uses, kernels: bool = True
) -> list[Indices]:
    """States which units must stay because what sums over them would change.

    Args:
        program: a function.
        frame: labels of its values.
        labels: are told what must stay unless it is opened.
        uses: of the program's leaves.
        kernels: whether contractions with parameters and activations are looked at, beside those
            with constants, sums and maxima.

    Returns:
        Axes whose units need their producers cleared.
    """
    leaves = [frame.labels[value] for value in program.inputs[: len(uses.roles)]]
    walker = _Walker(labels, leaves, kernels)
    inputs: list[Zero] = [(0,) * len(program.shape(value)) for value in program.inputs]
    for leaf in range(len(uses.roles)):
        axes = frame.labels[program.inputs[leaf]]
        inputs[leaf] = tuple(
            # A scale need not be cleared, since scale * 0 is 0.
            walker.bits_of(axis, uses.of_axis(leaf, number))
            for number, axis in enumerate(axes)
        )
    walker.visit(program, frame, inputs)
    if walker.unsure:
        walker.only_parameters = False
        walker.visit(program, frame, inputs)
    return walker.cleared


class _Walker:
    """Carries zeros from the leaves to what ends an axis."""

    def __init__(self, labels: Labels, leaves: Sequence[AxisLabels], kernels: bool):
        pairs = [np.stack([left, right]) for left, right in labels.ties]
        tied = np.concatenate([np.zeros((2, 0), np.int64), *pairs], axis=1)
        self.labels = labels
        self.leaves = leaves
        self.kernels = kernels
        self.component = components(tied, labels.count)
        self.lives: Flags = np.zeros(self.component.max(initial=-1) + 1, bool)
        """[components]: frozen for good, so that nothing is asked of it."""
        for frozen, _ in labels.frozen:
            self.lives[self.component[frozen]] = True
        self.cleared: list[Indices] = []
        # Most kernels are zero where their leaf is: values of parameters are followed first, and
        # data only if that leaves a question open.
        self.only_parameters = True
        self.unsure = False

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
        """Whether positions of an axis can be removed: those that some leaf has."""
        solution, removable = self.units
        return not isinstance(axis, Fixed) and bool(removable[solution.atoms_of(axis)].any())

    def bits_of(self, axis: Axis, roles: set[str]) -> int:
        """Bits of a leaf's axis."""
        if "in" in roles or self.stays(axis):
            return ZERO
        return PRODUCERS if roles & STAND_INS else 0

    def stays(self, axis: Axis) -> bool:
        """Whether no position can go."""
        return isinstance(axis, Fixed) or bool(self.lives[self.component[axis]].all())

    def visit(self, program: Program, frame: Frame, inputs: Sequence[Zero]) -> list[Zero]:
        """Zeros of the program's outputs, from those of its inputs."""
        zeros: list[Zero] = [(0,) * len(program.shape(v)) for v in range(len(program.avals))]
        for value, zero in zip(program.inputs, inputs):
            zeros[value] = zero
        means = counted(program, frame)
        for number, equation in enumerate(program.equations):
            if not equation.outputs:  # what prints or calls back
                continue
            operands = [zeros[value] for value in equation.inputs]
            if self.only_parameters and makes_data(frame, equation):
                # Data that may be zero, or wild, where consumers alone are cleared.
                self.unsure |= any(
                    bits & (CONSUMERS | CONSUMERS << 2) for z in operands for bits in z
                )
                continue
            if equation.inner:
                results = self.nested(equation, frame.inner[number], operands)
            elif equation.name in ALONE and len(operands) == 1:
                results = operands
            elif equation.name in CHANGES:
                results = [elementwise(program, frame, equation, operands)]
            elif equation.name in CONTRACTIONS:
                results = [self.contraction(program, frame, equation, operands)]
            else:
                if equation.name in REDUCTIONS:
                    is_mean = equation.outputs[0] in means
                    self.reduction(program, frame, equation, operands[0], is_mean)
                results = self.moved(program, frame, equation, operands)
            for value, zero in zip(equation.outputs, results):
                zeros[value] = zero
        return [zeros[value] for value in program.outputs]

    def contraction(
        self, program: Program, frame: Frame, equation: Equation, operands: Sequence[Zero]
    ) -> Zero:
        """Zeros of sum_u a_u b_u; units that are zero on neither side must stay."""
        levels = sorted(frame.levels[value] for value in equation.inputs)
        if levels == [CONSTANT, DATA]:
            text = "contracted with a constant, which no mask reaches"
        elif levels == [DATA, DATA]:
            text = "contracted with another activation, where it is not zero without its producers"
        else:
            text = "contracted with a kernel that is not zero where its leaves are"
        kernel = frame.labels[equation.inputs[1]]
        for one, two in zip(*ordered_contracted_axes(equation)):
            # The axis of the second operand is tied to that of the first one. With feature groups
            # it is the channel within its group: whole groups go with their outputs.
            bits = product_of([operands[0][one], operands[1][two]])
            if self.kernels or levels == [CONSTANT, DATA]:
                self.end(program, equation, kernel[two], bits, text)
        groups = equation.params.get("feature_group_count", 1)
        outputs = program.shape(equation.outputs[0])
        is_depthwise = (
            groups > 1 and groups == outputs[equation.params["dimension_numbers"].out_spec[1]]
        )
        return contraction_result(equation, operands, is_depthwise)

    def reduction(
        self, program: Program, frame: Frame, equation: Equation, zeros: Zero, is_mean: bool
    ) -> None:
        """Units whose term in a sum, or in a maximum, is not zero must stay."""
        name, source = equation.name, equation.inputs[0]
        neutral = name in ("reduce_sum", "reduce_or", "reduce_xor") and not is_mean
        if name == "reduce_max":
            neutral = is_never_negative(program, source)
        for axis in () if name.startswith("arg") else equation.params["axes"]:
            bits = zeros[axis] if neutral else 0
            text = f"{name} over the channels, without weights"
            self.end(program, equation, frame.labels[source][axis], bits, text)

    def end(self, program: Program, equation: Equation, axis: Axis, bits: int, text: str) -> None:
        """An axis that ends: its units must be zero there, or stay."""
        bits &= ZERO & ~(bits >> 2)
        if isinstance(axis, Fixed) or bits & CONSUMERS or self.stays(axis):
            return
        if self.only_parameters:
            self.unsure = True
            return
        if bits & PRODUCERS:
            self.cleared.append(axis)
            return
        line, place = user_line(equation.traceback), describe(program, equation)
        self.labels.reduce(axis, Reason(text, equation.name, place, line, OPEN))

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
                inputs[place] = (0,) * len(inputs[place])
            for place in body.stacked:
                inputs[place] = inputs[place][1:]
            outputs = self.visit(body.program, frame, inputs)
            outputs[: len(body.carried)] = [inputs[place] for place in body.carried]
            # Results of the turns are stacked on a new first axis.
            zeros = [
                (0, *outputs[output]) if result in body.collected else outputs[output]
                for result, output in enumerate(body.results)
            ]
            # Which branch is taken is not known: zero is what is zero in all of them.
            pairs = zip(results or zeros, zeros)
            results = [tuple(map(joined, zip(*pair))) for pair in pairs]
        return results

    def moved(
        self, program: Program, frame: Frame, equation: Equation, operands: Sequence[Zero]
    ) -> list[Zero]:
        """Zeros move as labels do: a result's axis has those of the axes that it is tied to."""
        if equation.name == "reshape":
            return [self.reshaped(program, frame, equation, operands[0])]
        if fills(program, frame, equation):
            return [(0,) * len(frame.labels[value]) for value in equation.outputs]
        sources = [
            (axis, zero)
            for value, zeros in zip(equation.inputs, operands)
            for axis, zero in zip(frame.labels[value], zeros)
            if not isinstance(axis, Fixed)
        ]
        alone = len(operands) == 1
        side = beside(program, equation)
        nothing = [bool(side) and is_nothing(program, frame, value) for value in equation.inputs]

        def of_axis(number: int, axis: Axis) -> int:
            if isinstance(axis, Fixed):
                return 0
            if number in side:
                rows = [ZERO if nothing[n] else operands[n][at] for n, at in side[number]]
                return joined(rows)
            same = [zero for source, zero in sources if source is axis] if alone else []
            return joined(same or [zero for source, zero in sources if self.shares(axis, source)])

        return [
            tuple(of_axis(number, axis) for number, axis in enumerate(frame.labels[value]))
            for value in equation.outputs
        ]

    def shares(self, axis: Indices, source: Axis) -> bool:
        """Whether two axes have channels in common."""
        if isinstance(source, Fixed):
            return False
        return axis is source or bool(np.isin(self.component[axis], self.component[source]).any())

    def reshaped(self, program: Program, frame: Frame, equation: Equation, zeros: Zero) -> Zero:
        """A split or merged run of axes is zero where all its axes with channels are."""
        shapes = program.shape(equation.inputs[0]), program.shape(equation.outputs[0])
        axes: AxisLabels = frame.labels[equation.inputs[0]]
        result = [0] * len(shapes[1])
        for sources, targets in aligned(*shapes):
            rows = [axis for axis in sources if not self.stays(axes[axis])]
            if any(zeros[axis] for axis in rows):  # the axis of a stack is no leaf's
                rows = [axis for axis in rows if zeros[axis] or self.can_go(axes[axis])]
            bits = joined([zeros[axis] for axis in rows])
            for target in targets:
                result[target] = bits
        return tuple(result)


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


def is_nothing(program: Program, frame: Frame, value: int) -> bool:
    """Whether a value is the constant zero."""
    if frame.levels[value] != CONSTANT:
        return False
    number = program.known(value)
    return number is not None and not number.any()


def makes_data(frame: Frame, equation: Equation) -> bool:
    """Whether an equation makes values that depend on inputs, and ends no axis."""
    ends = lambda one: bool(one.inner) or one.name in CONTRACTIONS or one.name in REDUCTIONS
    if all(frame.levels[value] != DATA for value in equation.inputs):
        return False
    if equation.inner:
        return not any(ends(one) for body in equation.inner for one in body.equations)
    return not ends(equation)


def joined(zeros: Sequence[int]) -> int:
    """Bits of what is made of several arrays: zero where all are, wild where one is."""
    if not zeros:
        return 0
    return reduce(int.__and__, zeros) & ZERO | reduce(int.__or__, zeros) & WILD


def product_of(zeros: Sequence[int]) -> int:
    """Bits of a product: zero where one factor is and none is wild."""
    bits = reduce(int.__or__, zeros)
    return bits & ~(bits >> 2)


def contraction_result(equation: Equation, operands: Sequence[Zero], is_depthwise: bool) -> Zero:
    """Zeros of a contraction on the axes that it keeps."""
    left, right = operands
    numbers = equation.params["dimension_numbers"]
    if equation.name == "dot_general":
        contracted, batch = numbers
        together = [product_of([left[one], right[two]]) for one, two in zip(*batch)]
        used = [{*contracted[side], *batch[side]} for side in (0, 1)]
        free = [
            bits
            for side, operand in enumerate(operands)
            for axis, bits in enumerate(operand)
            if axis not in used[side]
        ]
        return (*together, *free)
    result = [0] * len(numbers.out_spec)
    result[numbers.out_spec[0]] = left[numbers.lhs_spec[0]]
    channels, outputs = left[numbers.lhs_spec[1]], right[numbers.rhs_spec[0]]
    # Depthwise: an output is its channel times its kernel.
    result[numbers.out_spec[1]] = product_of([channels, outputs]) if is_depthwise else outputs
    return tuple(result)


def elementwise(
    program: Program, frame: Frame, equation: Equation, operands: Sequence[Zero]
) -> Zero:
    """Zeros of an elementwise function that may change them, or of several operands."""
    name, shape = equation.name, program.shape(equation.outputs[0])
    values, zeros = list(equation.inputs), list(operands)
    if name == "select_n":  # the first operand chooses among the others
        values, zeros = values[1:], zeros[1:]
    constants: list[np.ndarray | None] = []
    lengths = [program.shape(value) for value in values]
    result = [0] * len(shape)
    for axis in range(len(shape)):
        # An operand that is broadcast along the axis says nothing of single positions of it.
        row = [
            zero[axis] if len(own) == len(shape) and own[axis] == shape[axis] else 0
            for zero, own in zip(zeros, lengths)
        ]
        if any(row):
            constants = constants or [
                program.known(value) if frame.levels[value] == CONSTANT else None
                for value in values
            ]
            result[axis] = at_zero(equation, row, constants)
    return tuple(result)


def at_zero(
    equation: Equation, zeros: Sequence[int], constants: Sequence[np.ndarray | None]
) -> int:
    """Bits of an elementwise function from those of its operands on one axis."""
    name = equation.name
    wild = reduce(int.__or__, zeros) & WILD
    pure = [
        ZERO if constant is not None and is_neutral(name, constant) else bits & ~(bits >> 2) & ZERO
        for bits, constant in zip(zeros, constants)
    ]
    bits = 0
    if name in ANY:
        bits = reduce(int.__or__, pure)
    elif name in ALL:
        bits = reduce(int.__and__, pure)
    elif name == "clamp":
        low, _, high = constants
        # relu6(0) = 0, but clip(0, 1, 6) = 1.
        inside = low is not None and high is not None and (low <= 0).all() and (high >= 0).all()
        bits = pure[1] if inside else 0
    elif name in ("div", "rem"):
        # 0 / 0 is no zero. Where y is 0 in the dense net already, 0 / y is nan there as well.
        bits, wild = pure[0], wild | pure[1] << 2
    elif name in ("pow", "integer_pow"):
        power = equation.params.get("y") if name == "integer_pow" else constants[1]
        low = -1 if power is None else np.min(power)
        # 0 ** y is 0 for y > 0, 1 for y = 0, and else infinite.
        bits = pure[0] if low > 0 else 0
        wild |= pure[0] << 2 if low < 0 else 0
    elif name in FIRST:
        bits = pure[0]
    elif name in POLES:
        wild |= pure[0] << 2
    return bits & ~(wild >> 2) | wild


def is_neutral(name: str, constant: np.ndarray) -> bool:
    """Whether a constant operand leaves the zero of the other one alone."""
    if name == "max":
        return bool((constant <= 0).all())
    if name == "min":
        return bool((constant >= 0).all())
    return not constant.any()


def fills(program: Program, frame: Frame, equation: Equation) -> bool:
    """Whether a padding or a look-up writes something else than zeros beside what it moves."""
    if equation.name == "gather":
        return bool(equation.params.get("fill_value"))
    if equation.name != "pad":
        return False
    filling = equation.inputs[1]
    number = program.known(filling) if frame.levels[filling] == CONSTANT else None
    return number is None or bool(number.any())


def is_never_negative(program: Program, value: int) -> bool:
    """Whether a value is at least 0 everywhere, as far as the equations that make it say."""
    while (maker := program.makers.get(value)) is not None:
        if maker.name in NEVER_NEGATIVE:
            return True
        if maker.name == "integer_pow":
            return maker.params["y"] % 2 == 0
        if maker.name == "mul" and maker.inputs[0] == maker.inputs[1]:
            return True
        if maker.name not in SAME_SIGN:
            return False
        value = maker.inputs[0]
    return False


def ordered_contracted_axes(equation: Equation) -> tuple[Sequence[int], Sequence[int]]:
    """Contracted axes of both operands, in matching order."""
    if equation.name == "dot_general":
        return equation.params["dimension_numbers"][0]
    left, right = contracted_axes(equation)
    return [*left], [*right]

"""What an operation makes of zeros: bits of its result, from those of its operands.

`jprune.graph.couple.zeros` carries these bits through a program, and says what they are for.
"""

from collections.abc import Sequence
from functools import reduce
from typing import TypeAlias

import numpy as np

from jprune.graph.couple.arithmetic import ELEMENTWISE
from jprune.graph.couple.interpret import Frame
from jprune.graph.couple.rules import CONSTANT
from jprune.graph.couple.scatters import SCATTERS, scatter_of
from jprune.jaxprs import Equation, Program

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

"""The loop that carries labels through a program, control flow and custom derivatives included."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from jprune.graph.couple import arithmetic, moves
from jprune.graph.couple.labels import AxisLabels, Fixed, Labels
from jprune.graph.couple.rules import CONSTANT, DATA, PARAMETER, RULES, Context, unknown
from jprune.jaxprs import Equation, Program, scan_parts

RULE_BOOKS = (arithmetic, moves)
"""The modules whose rules are known here."""


class Frame(NamedTuple):
    """Labels of every value of a program, and of the programs inside its equations."""

    labels: list[AxisLabels]
    """By value id."""
    levels: list[int]
    """By value id: whether it depends on nothing, on the variables, or on the inputs."""
    inner: dict[int, tuple["Frame", ...]]
    """Equation number -> a frame per inner program."""


def interpret(
    labels: Labels,
    program: Program,
    inputs: Sequence[AxisLabels],
    levels: Sequence[int] | None = None,
) -> Frame:
    """Carries the labels of the inputs through a program.

    Args:
        labels: collects ties, frozen labels and products.
        program: what to interpret.
        inputs: labels of the program's inputs.
        levels: what the inputs depend on; parameters if nothing else is said.
    """
    count = len(program.avals)
    frame = Frame([()] * count, [CONSTANT] * count, {})
    for value in program.constants:
        # A closed-over constant may have a channel axis: it is sliced like a parameter.
        frame.labels[value] = tuple(labels.axis(length) for length in program.shape(value))
    for number, value in enumerate(program.inputs):
        frame.labels[value] = inputs[number]
        frame.levels[value] = PARAMETER if levels is None else levels[number]
    for number, equation in enumerate(program.equations):
        operands = [frame.labels[value] for value in equation.inputs]
        context = Context(
            labels, program, equation, [frame.levels[value] for value in equation.inputs]
        )
        level = max(context.levels, default=CONSTANT)
        # Functions within functions are interpreted where they stand, with the same labels.
        nested = NESTED_RULES.get(equation.name)
        if nested is None:
            results = RULES.get(equation.name, unknown)(context, operands)
        else:
            results, frame.inner[number] = nested(context, operands)
            # A loop mixes what it carries: its results count as data, whatever they are made of.
            level = level if nested is call else DATA
        for value, axes in zip(equation.outputs, results):
            frame.labels[value] = axes
            frame.levels[value] = level
    return frame


def outputs_of(program: Program, frame: Frame) -> list[AxisLabels]:
    """Labels of a program's outputs."""
    return [frame.labels[value] for value in program.outputs]


def walk(program: Program, frame: Frame) -> Iterator[tuple[Program, Frame, Equation]]:
    """All (program, frame, equation) of a program and of what is nested in it, in order."""
    for number, equation in enumerate(program.equations):
        yield program, frame, equation
        for body, inner in zip(equation.inner, frame.inner.get(number, ())):
            yield from walk(body, inner)


Nested: TypeAlias = tuple[list[AxisLabels], tuple[Frame, ...]]


NestedRule: TypeAlias = Callable[[Context, Sequence[AxisLabels]], Nested]


def tie_arrays(context: Context, left: Sequence[AxisLabels], right: Sequence[AxisLabels]) -> None:
    """Ties arrays of equal shapes, axis by axis."""
    for one, other in zip(left, right):
        for axis, partner in zip(one, other):
            context.tie(axis, partner)


def call(context: Context, operands: Sequence[AxisLabels]) -> Nested:
    """Custom derivatives and rematerialisation: the labels are those of the body."""
    body = context.equation.inner[0]
    frame = interpret(context.labels, body, operands, context.levels)
    return outputs_of(body, frame), (frame,)


def cond(context: Context, operands: Sequence[AxisLabels]) -> Nested:
    """All branches see the same operands and give the same results."""
    frames = tuple(
        interpret(context.labels, branch, operands[1:], context.levels[1:])
        for branch in context.equation.inner
    )
    results = [outputs_of(*pair) for pair in zip(context.equation.inner, frames)]
    for other in results[1:]:
        tie_arrays(context, results[0], other)
    return results[0], frames


def while_(context: Context, operands: Sequence[AxisLabels]) -> Nested:
    """What is carried keeps its labels from one turn to the next."""
    params = context.equation.params
    condition, body = context.equation.inner
    first, second = params["cond_nconsts"], params["body_nconsts"]
    carry = list(operands[first + second :])
    levels = list(context.levels)
    carried = [DATA] * len(carry)
    body_frame = interpret(
        context.labels,
        body,
        [*operands[first : first + second], *carry],
        [*levels[first : first + second], *carried],
    )
    # What a turn gives is what the next one gets: the same shape, so the same channels.
    tie_arrays(context, carry, outputs_of(body, body_frame))
    condition_frame = interpret(
        context.labels, condition, [*operands[:first], *carry], [*levels[:first], *carried]
    )
    return carry, (condition_frame, body_frame)


def scan(context: Context, operands: Sequence[AxisLabels]) -> Nested:
    """Stacked layers share their labels; the axis of the stack is fixed."""
    labels = context.labels
    (body,) = context.equation.inner
    constants, carried = scan_parts(context.equation)
    carry = list(operands[constants : constants + carried])
    stacked = operands[constants + carried :]
    stack = Fixed(context.reason("stacked layers of a scan"))
    # [layers, in, out]: every turn reads one layer, so all layers lose the same channels and no
    # layer goes.
    for axes in stacked:
        context.tie(axes[0], stack)
    levels = list(context.levels)
    levels[constants : constants + carried] = [DATA] * carried
    inputs = [*operands[:constants], *carry, *(axes[1:] for axes in stacked)]
    frame = interpret(labels, body, inputs, levels)
    results = outputs_of(body, frame)
    tie_arrays(context, carry, results[:carried])
    return [*carry, *((stack, *axes) for axes in results[carried:])], (frame,)


NESTED_RULES: dict[str, NestedRule] = {
    "custom_jvp_call": call,
    "custom_vjp_call": call,
    "custom_vjp_call_jaxpr": call,
    "checkpoint": call,
    "remat2": call,
    "cond": cond,
    "while": while_,
    "scan": scan,
}

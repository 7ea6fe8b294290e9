"""The loop that carries labels through a program, control flow and custom derivatives included."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jprune.graph.jaxprs import Program
from jprune.graph.labels import AxisLabels, Fixed, Labels
from jprune.graph.rules import RULES, Context, unknown


class Frame(NamedTuple):
    """Labels of every value of a program, and of the programs inside its equations."""

    labels: list[AxisLabels]
    """By value id."""
    inner: dict[int, tuple["Frame", ...]]
    """Equation number -> a frame per inner program."""


def interpret(labels: Labels, program: Program, inputs: Sequence[AxisLabels]) -> Frame:
    """Carries the labels of the inputs through a program.

    Args:
        labels: collects ties, frozen labels and products.
        program: what to interpret.
        inputs: labels of the program's inputs.
    """
    frame = Frame([()] * len(program.avals), {})
    for value in program.constants:
        # A closed-over constant may have a channel axis: it is sliced like a parameter.
        frame.labels[value] = tuple(labels.axis(length) for length in program.shape(value))
    for value, axes in zip(program.inputs, inputs):
        frame.labels[value] = axes
    for number, equation in enumerate(program.equations):
        context = Context(labels, program, equation)
        operands = [frame.labels[value] for value in equation.inputs]
        nested = NESTED_RULES.get(equation.name)
        if nested is not None:
            results, frame.inner[number] = nested(context, operands)
        else:
            results = RULES.get(equation.name, unknown)(context, operands)
        for value, axes in zip(equation.outputs, results):
            frame.labels[value] = axes
    return frame


def outputs_of(program: Program, frame: Frame) -> list[AxisLabels]:
    """Labels of a program's outputs."""
    return [frame.labels[value] for value in program.outputs]


def walk(program: Program, frame: Frame):
    """All (program, frame, equation) of a program and of what is nested in it, in order."""
    for number, equation in enumerate(program.equations):
        yield program, frame, equation
        for body, inner in zip(equation.inner, frame.inner.get(number, ())):
            yield from walk(body, inner)


NestedRule = Callable[[Context, Sequence[AxisLabels]], tuple[list[AxisLabels], tuple[Frame, ...]]]


def tie_arrays(context: Context, left: Sequence[AxisLabels], right: Sequence[AxisLabels]) -> None:
    """Ties arrays of equal shapes, axis by axis."""
    for one, other in zip(left, right):
        for axis, partner in zip(one, other):
            context.tie(axis, partner)


def call(context: Context, operands: Sequence[AxisLabels]):
    """Custom derivatives and rematerialisation: the labels are those of the body."""
    body = context.equation.inner[0]
    frame = interpret(context.labels, body, operands)
    return outputs_of(body, frame), (frame,)


def cond(context: Context, operands: Sequence[AxisLabels]):
    """All branches see the same operands and give the same results."""
    frames = tuple(
        interpret(context.labels, branch, operands[1:]) for branch in context.equation.inner
    )
    results = [outputs_of(*pair) for pair in zip(context.equation.inner, frames)]
    for other in results[1:]:
        tie_arrays(context, results[0], other)
    return results[0], frames


def while_(context: Context, operands: Sequence[AxisLabels]):
    """What is carried keeps its labels from one turn to the next."""
    params = context.equation.params
    condition, body = context.equation.inner
    first, second = params["cond_nconsts"], params["body_nconsts"]
    carry = list(operands[first + second :])
    body_frame = interpret(context.labels, body, [*operands[first : first + second], *carry])
    tie_arrays(context, carry, outputs_of(body, body_frame))
    condition_frame = interpret(context.labels, condition, [*operands[:first], *carry])
    return carry, (condition_frame, body_frame)


def scan(context: Context, operands: Sequence[AxisLabels]):
    """Stacked layers share their labels; the axis of the stack is fixed."""
    params, labels = context.equation.params, context.labels
    (body,) = context.equation.inner
    constants, carried = params["num_consts"], params["num_carry"]
    carry = list(operands[constants : constants + carried])
    stacked = operands[constants + carried :]
    stack = Fixed(context.reason("stacked layers of a scan"))
    for axes in stacked:
        context.tie(axes[0], stack)
    frame = interpret(
        labels, body, [*operands[:constants], *carry, *(axes[1:] for axes in stacked)]
    )
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

"""The loop that carries labels through a program, control flow and custom derivatives included."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jprune.graph.couple import arithmetic, moves, scatters
from jprune.graph.couple.labels import AxisLabels, Fixed, Labels
from jprune.graph.couple.rules import CONSTANT, DATA, PARAMETER, RULES, Context, unknown
from jprune.jaxprs import CONTROL_FLOW, NESTED, Equation, Program, nested

RULE_BOOKS = (arithmetic, moves, scatters)
"""The modules whose rules are known here."""


class Frame(NamedTuple):
    """Labels of every value of a program, and of the programs inside its equations.

    Attributes:
        labels: by value id.
        levels: by value id: whether it depends on nothing, on the variables, or on the inputs.
        inner: equation number -> a frame per inner program.
    """

    labels: list[AxisLabels]
    levels: list[int]
    inner: dict[int, tuple["Frame", ...]]


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
        if equation.name in arithmetic.RANDOM and level == PARAMETER:
            level = CONSTANT  # a key among the variables holds no weights
        if not equation.outputs:
            continue  # jax.debug.print and callbacks look at values, and change none
        if equation.name in NESTED:
            results, frame.inner[number] = enter(context, operands)
            # Results of control flow count as data, whatever they are made of.
            level = DATA if equation.name in CONTROL_FLOW else level
        else:
            results = RULES.get(equation.name, unknown)(context, operands)
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


def enter(
    context: Context, operands: Sequence[AxisLabels]
) -> tuple[list[AxisLabels], tuple[Frame, ...]]:
    """Carries labels through the bodies of an equation.

    Returns:
        Labels of the equation's results, and a frame per body.
    """
    results: list[AxisLabels] = []
    frames: list[Frame] = []
    stack = Fixed(context.reason("stacked layers of a scan"))
    for body in nested(context.equation):
        inputs = [operands[number] for number in body.operands]
        # A loop mixes what it carries: it counts as data, whatever it begins with.
        levels = [
            DATA if place in body.carried else context.levels[number]
            for place, number in enumerate(body.operands)
        ]
        for place in body.stacked:
            # [layers, in, out]: every turn reads one layer, so that all layers lose the same
            # channels, and no layer goes.
            context.tie(inputs[place][0], stack)
            inputs[place] = inputs[place][1:]
        frame = interpret(context.labels, body.program, inputs, levels)
        frames.append(frame)
        outputs = outputs_of(body.program, frame)
        if not body.results:
            continue
        # What a turn gives is what the next one gets: the same shape, so the same channels.
        carry = [inputs[place] for place in body.carried]
        tie_arrays(context, carry, outputs)
        outputs[: len(carry)] = carry
        of_body = [
            (stack, *outputs[output]) if result in body.collected else outputs[output]
            for result, output in enumerate(body.results)
        ]
        # Branches of a condition give the same results.
        tie_arrays(context, results, of_body)
        results = results or of_body
    return results, tuple(frames)


def tie_arrays(context: Context, left: Sequence[AxisLabels], right: Sequence[AxisLabels]) -> None:
    """Ties arrays of equal shapes, axis by axis."""
    for one, other in zip(left, right):
        for axis, partner in zip(one, other):
            context.tie(axis, partner)

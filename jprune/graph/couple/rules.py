"""How labels pass through primitives: the table, and what every rule may use.

A rule gets the context (labels, program, equation) and the labels of its operands, and returns
those of its results. To teach jprune a primitive, write such a function and decorate it with
`@rule("name")`; if the primitive has shapes among its parameters, `shrink/rules.py` needs one too.
The rules themselves are in `moves.py` (positions are moved), `scatters.py` (written at places) and
`arithmetic.py` (numbers are computed).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from jprune.graph.couple.labels import SPATIAL, Axis, AxisLabels, Fixed, Indices, Labels, Reason
from jprune.jaxprs import Equation, Program, describe, user_line

CONSTANT, PARAMETER, DATA = 0, 1, 2
"""What a value depends on at most: nothing, the variables, the inputs."""
OPEN = "name the group in jprune.trace(..., open=(...)) to accept that what is left changes"


class Context(NamedTuple):
    """What a rule may use: labels, the program, the equation.

    Attributes:
        labels: collects ties, products and frozen labels.
        program: that the equation is part of.
        equation: that the rule is asked about.
        levels: what every operand depends on: CONSTANT, PARAMETER or DATA.
    """

    labels: Labels
    program: Program
    equation: Equation
    levels: Sequence[int]

    def reason(self, text: str, remedy: str = "") -> Reason:
        """A reason that names this equation and the user's line."""
        equation = self.equation
        return Reason(
            text,
            equation.name,
            describe(self.program, equation),
            user_line(equation.traceback),
            remedy,
        )

    def in_shape(self, operand: int) -> tuple[int, ...]:
        """Shape of an operand."""
        return self.program.shape(self.equation.inputs[operand])

    def out_shape(self, result: int = 0) -> tuple[int, ...]:
        """Shape of a result."""
        return self.program.shape(self.equation.outputs[result])

    def known(self, operand: int) -> np.ndarray | None:
        """The number behind an operand that constants alone make."""
        if self.levels[operand] != CONSTANT:
            return None
        return self.program.known(self.equation.inputs[operand])

    def fresh(self, shape: Sequence[int]) -> AxisLabels:
        """New labels for every axis of an array that comes from nowhere (a constant, an iota)."""
        return tuple(self.labels.axis(length) for length in shape)

    def labelled(self, axis: Axis, length: int) -> Indices:
        """Labels of an axis; a fixed one gets frozen labels, so that it can stand beside others."""
        labels = axis if not isinstance(axis, Fixed) else self.labels.fresh(length)
        if isinstance(axis, Fixed):
            self.tie(labels, axis)
        return labels

    def product(self, whole: Indices, factors: Sequence[Axis]) -> None:
        """States at this equation that a whole is the conjunction of its factors."""
        labels = [self.labelled(factor, length) for factor, length in zip(factors, whole.shape)]
        self.labels.product(whole, labels, self.reason(""))

    def freeze(self, axis: Axis, text: str, remedy: str = "") -> None:
        """Freezes labels for a reason found at this equation."""
        if not isinstance(axis, Fixed):
            self.labels.freeze(axis, self.reason(text, remedy))

    def reduce(self, axis: Axis, text: str) -> None:
        """Freezes labels over which this equation sums or compares, until they are opened."""
        if not isinstance(axis, Fixed):
            self.labels.reduce(axis, self.reason(text, OPEN))

    def tie(self, left: Axis, right: Axis) -> Axis:
        """Ties two axes; if one is fixed, the other is frozen, with this equation as the place."""
        if isinstance(left, Fixed) == isinstance(right, Fixed):
            return self.labels.tie(left, right)
        free, fixed = (right, left) if isinstance(left, Fixed) else (left, right)
        assert isinstance(fixed, Fixed)
        if fixed.reason is SPATIAL.reason:
            self.labels.freeze(free, fixed.reason)
        else:
            self.freeze(free, fixed.reason.text, fixed.reason.remedy)
        return free

    def tie_all(self, axes: Sequence[Axis]) -> Axis:
        """Ties several axes."""
        joined = axes[0]
        for axis in axes[1:]:
            joined = self.tie(joined, axis)
        return joined


Rule: TypeAlias = Callable[[Context, Sequence[AxisLabels]], list[AxisLabels]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for primitives of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def unknown(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """A primitive without a rule: whatever it sees must stay as it is."""
    name = context.equation.name
    for axis in (axis for operand in operands for axis in operand):
        context.freeze(
            axis,
            f"no rule for the primitive {name!r}",
            f'add a rule for {name!r} with jprune.graph.couple.rules.rule("{name}")',
        )
    fixed = Fixed(context.reason(f"result of the primitive {name!r}, which has no rule"))
    return [
        tuple(fixed for _ in context.out_shape(result))
        for result in range(len(context.equation.outputs))
    ]

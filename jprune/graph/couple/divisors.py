"""Means over channels that were opened are divided by the number of remaining channels.

A mean is a sum, perhaps transposed or reshaped, divided by the number of terms: a constant of the
traced net. Sums are followed here from where they are made to where they are divided.
"""

import math
from typing import Any

import numpy as np

from jprune.graph.couple.interpret import Frame
from jprune.graph.couple.rules import CONSTANT
from jprune.jaxprs import Equation, Program

MOVES = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "convert_element_type", "copy"}


class Divisors:
    """Numbers of terms of the sums of one program, in the dense and in the slim net."""

    def __init__(self, program: Program, frame: Frame):
        self.program = program
        self.frame = frame
        self.terms: dict[int, tuple[int, int]] = {}
        """Value id of a sum -> terms in the whole net, terms that are left."""

    def note(self, equation: Equation, operand: Any) -> None:
        """Remembers the sum that an equation makes or moves; `operand` is its smaller operand."""
        source, result = equation.inputs[0], equation.outputs[0]
        if equation.name == "reduce_sum":
            whole, axes = self.program.shape(source), equation.params["axes"]
            before, after = self.terms.get(source, (1, 1))
            self.terms[result] = (
                before * math.prod(whole[axis] for axis in axes),
                after * math.prod(operand.shape[axis] for axis in axes),
            )
        elif equation.name in MOVES and source in self.terms:
            self.terms[result] = self.terms[source]

    def follow(self, equation: Equation, values: list[Any]) -> list[Any]:
        """The operands of a division or product, with the number of remaining terms as divisor.

        The number of terms less one (the divisor of an unbiased variance) is replaced too.
        """
        if equation.name not in ("div", "mul"):
            return values
        for side in (0, 1) if equation.name == "mul" else (0,):
            other = equation.inputs[1 - side]
            before, after = self.terms.get(equation.inputs[side], (1, 1))
            if before == after or self.frame.levels[other] != CONSTANT:
                continue
            constant = self.program.known(other)
            if constant is None or constant.size != 1:
                continue
            for less in (0, 1):
                old, new = before - less, after - less
                if equation.name == "mul":
                    old, new = 1 / old, 1 / max(new, 1)
                if new and np.asarray(old, constant.dtype) == constant:
                    values = list(values)
                    values[1 - side] = np.full_like(constant, new)
        return values

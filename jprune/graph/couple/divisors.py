"""Means over channels that were opened are divided by the number of remaining channels.

A mean is a sum, perhaps transposed or reshaped, divided by the number of terms: a constant of the
traced net. Sums are followed here from where they are made to where they are divided. Such a sum
counts its terms, zeros too, so it is never exact.
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
        for side in sides(equation):
            before, after = self.terms.get(equation.inputs[side], (1, 1))
            other = equation.inputs[1 - side]
            if before != after and self.frame.levels[other] == CONSTANT:
                new = divisor(equation, self.program.known(other), before, after)
                if new is not None:
                    values = list(values)
                    values[1 - side] = new
        return values


def sides(equation: Equation) -> tuple[int, ...]:
    """Operands that a division, or a product, may divide by a number of terms."""
    return {"mul": (0, 1), "div": (0,)}.get(equation.name, ())


def divisor(
    equation: Equation, constant: np.ndarray | None, before: int, after: int
) -> np.ndarray | None:
    """What takes the place of a constant, if it is the number of terms; else None."""
    if constant is None or constant.size != 1:
        return None
    for less in (0, 1):
        old, new = before - less, after - less
        if not old:
            continue
        if equation.name == "mul":
            old, new = 1 / old, 1 / max(new, 1)
        if new and np.asarray(old, constant.dtype) == constant:
            return np.full_like(constant, new)
    return None


def counted(program: Program, frame: Frame) -> set[int]:
    """Value ids of the sums that `Divisors` would divide by the number of their remaining terms."""
    terms: dict[int, tuple[int, frozenset[int]]] = {}
    means: set[int] = set()
    for equation in program.equations:
        source = equation.inputs[0] if equation.inputs else -1
        before, sums = terms.get(source, (1, frozenset[int]()))
        if equation.name == "reduce_sum":
            lengths = [program.shape(source)[axis] for axis in equation.params["axes"]]
            result = equation.outputs[0]
            # A batch of any size is no channel.
            if all(isinstance(length, int) for length in lengths):
                terms[result] = (before * math.prod(lengths), sums | {result})
        elif equation.name in MOVES and sums:
            terms[equation.outputs[0]] = before, sums
        for side in sides(equation) if terms else ():
            count, sums = terms.get(equation.inputs[side], (1, frozenset[int]()))
            other = equation.inputs[1 - side]
            is_constant = bool(sums) and frame.levels[other] == CONSTANT
            constant = program.known(other) if is_constant else None
            if divisor(equation, constant, count, count) is not None:
                means |= sums
    return means

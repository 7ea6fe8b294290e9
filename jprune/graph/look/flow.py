"""Who reads a value of a program, and what follows it channel by channel.

Transposes, squeezes and reshapes on the way are looked through, so that the same follows in every
layout and under `vmap`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jprune.graph.couple.arithmetic import ELEMENTWISE
from jprune.graph.couple.roles import Taint
from jprune.graph.look.moved import MOVES, axis_pairs, moved_axes
from jprune.jaxprs import Equation, Program

AFFINE = {"add", "add_any", "sub", "mul", "div", "neg", "convert_element_type", "copy"}
SUMS = {"add", "add_any"}
POINTWISE = {*ELEMENTWISE, "custom_jvp_call", "custom_vjp_call"}


class Read(NamedTuple):
    """An equation that reads a value, or what moves alone made of it.

    Attributes:
        number: of the equation.
        equation: no move, or one that splits or merges the axes.
        operand: the value id that it reads.
        axes: where the axes stand there.
    """

    number: int
    equation: Equation
    operand: int
    axes: tuple[int, ...]


class Flow:
    """Who reads a value, and along which axes a value is constant."""

    def __init__(self, program: Program, taints: Sequence[Taint]):
        self.program = program
        self.taints = taints
        self.readers: dict[int, list[int]] = {}
        self.maker: dict[int, int] = {}
        self.uniform: dict[int, frozenset[int]] = {}
        for number, equation in enumerate(program.equations):
            if not equation.outputs:
                continue  # jax.debug.print reads a value, and is no part of the net
            for value in equation.inputs:
                self.readers.setdefault(value, []).append(number)
            for value in equation.outputs:
                self.maker[value] = number
            self.uniform[equation.outputs[0]] = self._uniform(equation)

    def _along(self, value: int) -> frozenset[int]:
        """Axes along which a value is constant."""
        unit = {axis for axis, length in enumerate(self.program.shape(value)) if length == 1}
        return self.uniform.get(value, frozenset()) | unit

    def _uniform(self, equation: Equation) -> frozenset[int]:
        shape = self.program.shape(equation.outputs[0])
        if equation.name == "broadcast_in_dim":
            places = equation.params["broadcast_dimensions"]
            # A new axis repeats its operand; an old one is constant where it was.
            source = self._along(equation.inputs[0])
            varying = {places[axis] for axis in range(len(places)) if axis not in source}
            return frozenset(range(len(shape))) - varying
        if equation.name in POINTWISE:
            # x[n, h, w, c] * s[1, 1, 1, c] varies where one of its operands does.
            sets = [
                self._along(value)
                for value in equation.inputs
                if len(self.program.shape(value)) == len(shape) and shape
            ]
            return frozenset.intersection(*sets) if sets else frozenset()
        if equation.name in MOVES:
            source = self._along(equation.inputs[0])
            pairs = axis_pairs(self.program, equation) or ()
            return frozenset(a for before, after in pairs if source >= {*before} for a in after)
        return frozenset()

    def views(
        self, value: int, axes: tuple[int, ...], split: bool = True
    ) -> dict[int, tuple[int, ...]]:
        """{the value, and all that moves alone make of it: where some of its axes stand there}.

        Args:
            value: id.
            axes: of the value.
            split: whether a move may make several axes of one.
        """
        result, waiting = {value: axes}, [value]
        while waiting:
            source = waiting.pop()
            for number in self.readers.get(source, ()):
                equation = self.program.equations[number]
                if equation.name not in MOVES:
                    continue
                moved = moved_axes(self.program, equation, result[source])
                if moved is not None and (split or len(moved) == len(axes)):
                    result[equation.outputs[0]] = moved
                    waiting.append(equation.outputs[0])
        return result

    def reads(self, value: int, axes: tuple[int, ...], split: bool = True) -> list[Read]:
        """The equations that read a value or a view of it, in execution order."""
        views = self.views(value, axes, split)
        numbers = {(number, view) for view in views for number in self.readers.get(view, ())}
        return [
            Read(number, equation, view, views[view])
            for number, view in sorted(numbers)
            if (equation := self.program.equations[number]).outputs[0] not in views
        ]

    def per_channel(self, value: int, *axes: int) -> bool:
        """Whether a value varies along the channel axis (or axes) at most."""
        rank = len(self.program.shape(value))
        return rank == 0 or set(range(rank)) - set(axes) <= self._along(value)

    def is_beside(self, operand: int, equation: Equation, axis: int) -> bool:
        """Whether an operand has one number per channel, and is not a side of a residual sum.

        For one image with one position, an activation has one number per channel too.
        """
        return self.per_channel(operand, axis) and not self.is_sum(equation)

    def is_sum(self, equation: Equation) -> bool:
        """A sum of two activations: both depend on data and vary along more than the channels."""
        if equation.name not in SUMS:
            return False
        shape = self.program.shape(equation.outputs[0])
        # Both sides vary with the image and its positions: a bias or a gate a channel (squeeze
        # and excitation) is no side of a sum.
        return all(
            self.taints[value] is None
            and self.program.shape(value) == shape
            and len(shape) - len(self._along(value)) > 1 - (shape[:1] == (1,))
            for value in equation.inputs
        )

    def affine_end(self, value: int, axis: int) -> tuple[int, int]:
        """The end of the longest chain of per-channel affine steps from a value, and its axis."""
        # The chain forks where a stream is read by a norm and by a sum: the longest way is the
        # norm.
        steps: dict[int, list[int]] = {}
        places, waiting = {value: axis}, [value]
        while waiting:
            source = waiting.pop()
            if source not in steps:
                found = self._affine_steps(source, places[source])
                places |= found
                steps[source] = list(found)
                waiting += found
        ends: dict[int, tuple[int, int]] = {}
        """Value -> steps from there to the end of the chain, and the end."""
        for source in sorted(steps, reverse=True):  # results have greater numbers than operands
            onward = (ends[result] for result in steps[source])
            length, end = max(onward, key=lambda pair: pair[0], default=(-1, source))
            ends[source] = length + 1, end
        end = ends[value][1]
        return end, places[end]

    def _affine_steps(self, value: int, axis: int) -> dict[int, int]:
        """{result of a per-channel affine equation that reads a value: its channel axis}."""
        results: dict[int, int] = {}
        for _, equation, operand, (place,) in self.reads(value, (axis,), split=False):
            others = [other for other in equation.inputs if other != operand]
            result = equation.outputs[0]
            if (
                equation.name in AFFINE
                and len(others) == len(equation.inputs) - 1
                and not (equation.name == "div" and equation.inputs[0] != operand)
                and self.program.shape(result) == self.program.shape(operand)
                and all(self.is_beside(other, equation, place) for other in others)
            ):
                results[result] = place
        return results

    def activation_end(self, value: int, axis: int) -> tuple[tuple[int, int] | None, set[int]]:
        """The end of the elementwise function behind a value, and all values inside it.

        Returns:
            (value, axis) of its single end, or None; and the results of its equations.
        """
        start = self.views(value, (axis,), split=False)
        axes, inside = dict(start), set[int]()
        nonlinear = False
        waiting = sorted({read.number for read in self.reads(value, (axis,), split=False)})
        while waiting:
            number = waiting.pop(0)
            equation = self.program.equations[number]
            (result, *rest) = equation.outputs
            # swish(x) = x * sigmoid(x) has several equations: all elementwise readers are taken
            # in, until something else reads.
            if rest or result in inside or not self._goes_on(equation, axes):
                continue
            (place,) = {axes[operand] for operand in equation.inputs if operand in axes}
            inside.add(result)
            axes |= self.views(result, place, split=False)
            nonlinear |= equation.name not in AFFINE
            nonlinear |= sum(operand in start for operand in equation.inputs) > 1
            later = {read.number for read in self.reads(result, place, split=False)}
            waiting = sorted({*waiting, *later})
        # The function has one value that others read; with several, or a side that leaves the
        # function, it is no activation.
        ends = [
            result
            for result in sorted(inside)
            if not {*self.views(result, axes[result], split=False)}.isdisjoint(self.program.outputs)
            or any(
                not set(read.equation.outputs) & inside
                for read in self.reads(result, axes[result], split=False)
            )
        ]
        if nonlinear and len(ends) == 1:
            return (ends[0], axes[ends[0]][0]), inside
        return None, inside

    def _goes_on(self, equation: Equation, axes: Mapping[int, tuple[int, ...]]) -> bool:
        """Whether an elementwise function goes on: it reads values inside it, or beside it.

        Args:
            equation: that reads a value inside the function.
            axes: {value inside the function: its channel axis, in a tuple}.
        """
        shape = self.program.shape(equation.outputs[0])
        operands = [operand for operand in equation.inputs if operand in axes]
        places = {axes[operand] for operand in operands}
        return (
            equation.name in POINTWISE
            and len(places) == 1
            and all(self.program.shape(operand) == shape for operand in operands)
            and all(
                operand in axes or self.is_beside(operand, equation, *next(iter(places)))
                for operand in equation.inputs
            )
        )

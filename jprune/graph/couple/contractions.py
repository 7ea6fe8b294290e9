"""A product of data and parameters that is summed up is a contraction, and is read as one.

`(h * w).sum(-1)` is `h @ w` in another spelling: w is a kernel whose rows consume channels, and a
layer of the net. Here such equations are written as `dot_general`, before anything else reads the
program, so that no table has to know the other spelling.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune.graph.couple.rules import CONSTANT, DATA, PARAMETER
from jprune.jaxprs import CONTROL_FLOW, Equation, Program, nested, program_of, shapes_of


class Factor(NamedTuple):
    """An operand of a product.

    Attributes:
        value: before it was broadcast.
        axes: its axis -> axis of the product, for those along which it varies.
    """

    value: int
    axes: dict[int, int]

    def at(self, axes: Sequence[int]) -> list[int]:
        """Where axes of the product are among those along which it varies."""
        order = sorted(self.axes.values())
        return [order.index(axis) for axis in axes]


def with_contractions(program: Program, levels: Sequence[int]) -> Program:
    """The program with sums of products written as contractions, in its bodies too.

    Args:
        program: what to write anew.
        levels: what its inputs depend on: CONSTANT, PARAMETER or DATA.
    """
    if not sums_products(program):
        return program
    writer = _Writer(program, levels)
    equations = writer.equations()
    return program._replace(
        equations=tuple(equations),
        avals=tuple(writer.avals),
        shapes=shapes_of(writer.avals),
        makers={value: equation for equation in equations for value in equation.outputs},
        constants=writer.constants,
    )


def sums_products(program: Program) -> bool:
    """Whether a sum of a product is anywhere in the program."""
    return any(
        product_behind(program, equation)[1] is not None
        if equation.name == "reduce_sum"
        else any(map(sums_products, equation.inner))
        for equation in program.equations
    )


def product_behind(program: Program, total: Equation) -> tuple[list[int], Equation | None]:
    """The values that a sum reads, up to a product, and the product; None: it reads no product."""
    chain = [total.inputs[0]]
    product = program.makers.get(chain[0])
    if product is not None and product.name == "convert_element_type":
        chain.append(product.inputs[0])
        product = program.makers.get(chain[1])
    return chain, product if product is not None and product.name == "mul" else None


class _Writer:
    """Writes one program anew."""

    def __init__(self, program: Program, levels: Sequence[int]):
        self.program = program
        self.avals = list(program.avals)
        self.constants = dict(program.constants)
        self.levels: dict[int, int] = dict(zip(program.inputs, levels))
        self.reads: dict[int, int] = dict.fromkeys(program.outputs, 2)
        """How often a value is read; an output counts as read by others."""
        for equation in program.equations:
            for value in equation.inputs:
                self.reads[value] = self.reads.get(value, 0) + 1

    def level(self, value: int) -> int:
        """What a value depends on at most."""
        return self.levels.get(value, CONSTANT)

    def equations(self) -> list[Equation]:
        """The equations, in order."""
        result: list[Equation] = []
        idle: set[int] = set()
        for equation in self.program.equations:
            level = max(map(self.level, equation.inputs), default=CONSTANT)
            if equation.inner:
                equation = equation._replace(inner=self.bodies(equation))
                level = DATA if equation.name in CONTROL_FLOW else level
            self.levels.update(dict.fromkeys(equation.outputs, level))
            written = self.contraction(equation, idle) if equation.name == "reduce_sum" else None
            result += [equation] if written is None else written
        return [e for e in result if not e.outputs or not idle.issuperset(e.outputs)]

    def bodies(self, equation: Equation) -> tuple[Program, ...]:
        """The bodies of an equation, written anew."""
        written: list[Program] = []
        for body in nested(equation):
            levels = [self.level(equation.inputs[number]) for number in body.operands]
            for place in body.carried:
                levels[place] = DATA
            written.append(with_contractions(body.program, levels))
        return tuple(written)

    def contraction(self, total: Equation, idle: set[int]) -> list[Equation] | None:
        """The equations in place of a sum, if it is one of a product; notes what is idle now."""
        chain, product = product_behind(self.program, total)
        # Whoever else reads the product needs it.
        if product is None or any(self.reads[value] > 1 for value in chain):
            return None
        data, kernel = sorted(product.inputs, key=self.level, reverse=True)
        if (self.level(data), self.level(kernel)) != (DATA, PARAMETER):
            return None
        shape = self.program.shape(chain[-1])
        if not jnp.issubdtype(self.avals[chain[-1]].dtype, jnp.inexact):
            return None
        behind: list[int] = []
        factors = [self.factor(value, shape, behind) for value in (data, kernel)]
        # Of two axes of length 1 one is enough.
        for place, axis in list(factors[1].axes.items()):
            if shape[axis] == 1 and axis in factors[0].axes.values():
                del factors[1].axes[place]
        shared = {*factors[0].axes.values()} & {*factors[1].axes.values()}
        if not shared & {*total.params["axes"]}:
            return None
        idle.update(chain, behind)
        return self.spliced(total, factors, sorted(shared))

    def factor(self, value: int, shape: Sequence[int], behind: list[int]) -> Factor:
        """An operand of a product of this shape; broadcast values that are idle go to `behind`."""
        axes = {axis: axis for axis in range(len(self.program.shape(value)))}
        alone = True
        while (maker := self.program.makers.get(value)) is not None:
            if maker.name != "broadcast_in_dim":
                break
            alone = alone and self.reads[value] == 1
            behind += [value] if alone else []
            value = maker.inputs[0]
            places = maker.params["broadcast_dimensions"]
            axes = {own: axes[place] for own, place in enumerate(places)}
        lengths = self.program.shape(value)
        return Factor(value, {own: a for own, a in axes.items() if lengths[own] == shape[a]})

    def spliced(
        self, total: Equation, factors: Sequence[Factor], shared: Sequence[int]
    ) -> list[Equation]:
        """A contraction of two factors, with ids of this program."""
        reduced = total.params["axes"]
        contracted = [axis for axis in shared if axis in reduced]
        batch = [axis for axis in shared if axis not in reduced]
        free = [a for factor in factors for a in sorted(factor.axes.values()) if a not in shared]
        order = [*batch, *free]
        left = [axis for axis in order if axis not in reduced]
        data, kernel = factors
        numbers = (
            (data.at(contracted), kernel.at(contracted)),
            (data.at(batch), kernel.at(batch)),
        )

        def squeezed(operand: Any, factor: Factor) -> Any:
            idle = [axis for axis in range(operand.ndim) if axis not in factor.axes]
            return jax.lax.squeeze(operand, idle)

        def product(*operands: Any) -> Any:
            # sum over c of h[n, c] w[c, o], which rounds as the sum that it stands for
            result = jax.lax.dot_general(
                squeezed(operands[0], data),
                squeezed(operands[1], kernel),
                numbers,
                precision=jax.lax.Precision.HIGHEST,
                preferred_element_type=self.avals[total.outputs[0]].dtype,
            )
            rest = [order.index(axis) for axis in order if axis in reduced]
            result = result.sum(rest) if rest else result
            return jax.lax.transpose(result, [left.index(axis) for axis in sorted(left)])

        avals = [self.avals[factor.value] for factor in factors]
        shapes = (jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals)
        piece, _ = program_of(product, *shapes)
        ids = dict(zip(piece.inputs, (factor.value for factor in factors)))
        ids[piece.outputs[0]] = total.outputs[0]
        for value, aval in enumerate(piece.avals):
            if value not in ids:
                ids[value] = len(self.avals)
                self.avals.append(aval)
        self.constants.update((ids[value], c) for value, c in piece.constants.items())
        return [
            equation._replace(
                inputs=tuple(ids[value] for value in equation.inputs),
                outputs=tuple(ids[value] for value in equation.outputs),
                traceback=total.traceback,
            )
            for equation in piece.equations
        ]

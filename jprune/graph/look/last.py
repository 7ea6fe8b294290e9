"""Which layers are last: their results reach an output, and no other layer consumes them.

Fates of values are carried from the outputs back to the inputs: a contraction ends the fate of its
data (its kernel is the consumer), every other equation gives its operands the fates of its results.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

from jprune.graph.couple.roles import Uses
from jprune.jaxprs import Body, Equation, Program, nested


class Fate(NamedTuple):
    """Where a value goes: to which kernels, and whether to an output.

    Attributes:
        consumers: kernels (by leaf, as bits) that are the next to contract it.
        ends: whether it reaches a main output without being contracted.
    """

    consumers: int = 0
    ends: bool = False

    def also(self, other: "Fate") -> "Fate":
        """The fate of a value that two readers share."""
        return Fate(self.consumers | other.consumers, self.ends or other.ends)


NOWHERE = Fate()
LOOPS = ("scan", "while", "cond")


def last_layers(program: Program, uses: Uses, main: int | None) -> set[int]:
    """Numbers of the kernels with a result that reaches a main output, and no other kernel.

    Args:
        program: the whole net.
        uses: of its leaves.
        main: how many outputs count; None for all.
    """
    finder = _Finder(program, uses)
    count = len(program.outputs) if main is None else main
    outputs = [Fate(0, number < count) for number in range(len(program.outputs))]
    finder.visit(program, outputs)
    return {
        leaf
        for (leaf, fate) in finder.results.values()
        # A kernel that is applied again to its own result (a recurrence) does not count as another
        # layer.
        if fate.ends and not fate.consumers & ~(1 << leaf)
    }


class _Finder:
    """Goes through programs from their outputs to their inputs."""

    def __init__(self, program: Program, uses: Uses):
        self.kernels = {(id(c.program), c.equation): c for c in uses.contractions}
        # Most nested programs are activations: where none has a kernel, all but loops are one step.
        self.deep = any(c.program is not program for c in uses.contractions)
        self.results: dict[tuple[int, int], tuple[int, Fate]] = {}
        """(program, equation) of a contraction -> its kernel and the fate of its result."""

    def visit(self, program: Program, outputs: Sequence[Fate]) -> list[Fate]:
        """Fates of the inputs of a program from those of its outputs."""
        fates: dict[int, Fate] = {}

        def note(values: Sequence[int], new: Sequence[Fate]) -> None:
            for value, fate in zip(values, new):
                # Most values of statistics and branches go nowhere: no entry keeps the table small.
                if fate is not NOWHERE:
                    fates[value] = fates[value].also(fate) if value in fates else fate

        note(program.outputs, outputs)
        for number in range(len(program.equations) - 1, -1, -1):
            equation = program.equations[number]
            results = [fates[value] for value in equation.outputs if value in fates]
            kernel = self.kernels.get((id(program), number))
            if kernel is not None:
                fate = results[0] if results else NOWHERE
                self.results[id(program), number] = (kernel.leaf, fate)
                data = equation.inputs[1 - kernel.kernel]
                # Whatever becomes of the result later, the data end here, in this kernel.
                note([data], [Fate(1 << kernel.leaf)])
            elif equation.name in LOOPS or (equation.inner and self.deep):
                all_results = [fates.get(value, NOWHERE) for value in equation.outputs]
                note(equation.inputs, self.nested(equation, all_results))
            elif results:
                # Results are of one equation: an operand may reach any of them.
                fate = reduce(Fate.also, results)
                note(equation.inputs, [fate] * len(equation.inputs))
        return [fates.get(value, NOWHERE) for value in program.inputs]

    def nested(self, equation: Equation, results: Sequence[Fate]) -> list[Fate]:
        """Fates of the operands of an equation with bodies."""
        fates = [NOWHERE] * len(equation.inputs)
        for body in nested(equation):
            if not body.results:
                continue
            for number, fate in zip(body.operands, self.body(body, results)):
                fates[number] = fates[number].also(fate)
        return fates

    def body(self, body: Body, results: Sequence[Fate]) -> list[Fate]:
        """Fates of the inputs of a body: what is carried is read again at the next turn."""
        outputs = list(results)
        # A loop's carry is read by the next turn: fates only grow, so this comes to rest.
        while True:
            inputs = self.visit(body.program, outputs)
            carry = [inputs[place] for place in body.carried]
            after = [
                *(one.also(other) for one, other in zip(results, carry)),
                *results[len(carry) :],
            ]
            if after == outputs:
                break
            outputs = after
        for place, fate in zip(body.carried, outputs):
            inputs[place] = fate
        return inputs

"""Which layers are last: their results reach an output, and no other layer consumes them."""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

from jprune.graph.couple.roles import Uses
from jprune.jaxprs import Equation, Program, scan_parts


class Fate(NamedTuple):
    """What becomes of a value."""

    consumers: int = 0
    """Kernels (by leaf, as bits) that are the next to contract it."""
    ends: bool = False
    """Whether it reaches a main output without being contracted."""

    def also(self, other: "Fate") -> "Fate":
        """What becomes of a value that two readers share."""
        return Fate(self.consumers | other.consumers, self.ends or other.ends)


NOWHERE = Fate()


LOOPS = ("scan", "while", "cond")


def last_layers(program: Program, uses: Uses, main: int | None) -> set[int]:
    """Leaves of the kernels a result of which reaches a main output and no other kernel.

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

        def note(values: Sequence[int], found: Sequence[Fate]) -> None:
            for value, fate in zip(values, found):
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
                note([data], [Fate(1 << kernel.leaf)])
            elif equation.name in LOOPS or (equation.inner and self.deep):
                all_results = [fates.get(value, NOWHERE) for value in equation.outputs]
                note(equation.inputs, self.nested(equation, all_results))
            elif results:
                fate = reduce(Fate.also, results)
                note(equation.inputs, [fate] * len(equation.inputs))
        return [fates.get(value, NOWHERE) for value in program.inputs]

    def nested(self, equation: Equation, results: Sequence[Fate]) -> list[Fate]:
        """Fates of the operands of an equation with bodies."""
        if equation.name == "scan":
            constants, carried = scan_parts(equation)
            return self.loop(equation.inner[0], results, constants, carried)
        if equation.name == "while":
            first, second = equation.params["cond_nconsts"], equation.params["body_nconsts"]
            (_, body) = equation.inner
            inside = self.loop(body, results, second, len(results))
            return [*[NOWHERE] * first, *inside]
        found = [self.visit(body, results) for body in equation.inner]
        joined = [NOWHERE] * max(map(len, found), default=0)
        for fates in found:
            joined = [one.also(other) for one, other in zip(joined, fates)]
        # The index of a condition is no operand of its branches.
        return [NOWHERE] * (len(equation.inputs) - len(joined)) + joined

    def loop(
        self, body: Program, results: Sequence[Fate], constants: int, carried: int
    ) -> list[Fate]:
        """Fates of the operands of a loop: what is carried is read again at the next turn."""
        outputs = list(results)
        while True:
            inputs = self.visit(body, outputs)
            carry = inputs[constants : constants + carried]
            after = [
                *(one.also(other) for one, other in zip(results, carry)),
                *results[carried:],
            ]
            if after == outputs:
                return [*inputs[:constants], *after[:carried], *inputs[constants + carried :]]
            outputs = after

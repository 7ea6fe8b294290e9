"""Branches: the side of a residual sum that has weights, as a unit that can go as a whole.

Of the two operands of a sum one may need all the parameters that the other needs, and more: that
one is the branch, the other one the identity. Where both sides have parameters of their own (a
projection), there is no branch. A removed branch takes its equations with it, and the leaves that
nothing else reads become None.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jprune.base import Branch
from jprune.graph.couple.interpret import Frame
from jprune.graph.couple.roles import reaching
from jprune.graph.look.sites import Spot
from jprune.jaxprs import Equation, Program

PREFIX = "branch/"


class Fork(NamedTuple):
    """A branch in a program.

    Attributes:
        equation: number of the sum.
        branch: value id of the operand that can go.
        identity: value id of the other operand.
    """

    name: str
    equation: int
    branch: int
    identity: int


def dependencies(program: Program, leaves: int) -> list[int]:
    """By value id: the leaves that a value depends on, as bits of an integer."""
    bits = [0] * len(program.avals)
    for leaf, value in enumerate(program.inputs[:leaves]):
        bits[value] = 1 << leaf
    for equation in program.equations:
        joined = 0
        # Python's integers have as many bits as there are leaves, and `|` unites sets in one step.
        for value in equation.inputs:
            joined |= bits[value]
        for value in equation.outputs:
            bits[value] = joined
    return bits


def find_forks(program: Program, spots: Sequence[Spot], leaves: int) -> list[Fork]:
    """All branches of a program, in execution order."""
    bits = dependencies(program, leaves)
    forks: list[Fork] = []
    for spot in spots:
        if spot.kind != "join":
            continue
        left, right = program.equations[spot.equation].inputs
        # One side's leaves must include the other's: left | right is one of them. Equal sets (a net
        # added to itself) have no identity.
        if bits[left] == bits[right] or bits[left] | bits[right] not in (bits[left], bits[right]):
            continue
        identity, branch = (
            (left, right) if bits[left] | bits[right] == bits[right] else (right, left)
        )
        forks.append(Fork(PREFIX + spot.layer, spot.equation, branch, identity))
    return forks


def branch_spots(forks: Sequence[Fork], spots: Sequence[Spot]) -> list[Spot]:
    """Sites of the kind `branch`: the operands of sums that are branches."""
    joins = {spot.equation: spot for spot in spots if spot.kind == "join"}
    return [
        joins[fork.equation]._replace(kind="branch", layer=fork.name, value=fork.branch)
        for fork in forks
    ]


def without(
    program: Program, frame: Frame, cut: Sequence[Fork], outputs: Sequence[int] | None = None
) -> tuple[Program, Frame]:
    """The program without some branches and without the equations that only they need.

    Args:
        program: the whole program.
        frame: its labels.
        cut: the branches to remove.
        outputs: the outputs that are wanted; all of them if None.

    Returns:
        Program and frame with the same value ids.
    """
    # x + branch(x) -> x: whoever read the sum reads the identity.
    alias = {program.equations[fork.equation].outputs[0]: fork.identity for fork in cut}
    removed = {fork.equation for fork in cut}

    def follow(value: int) -> int:
        while value in alias:
            value = alias[value]
        return value

    wanted = tuple(follow(value) for value in (program.outputs if outputs is None else outputs))
    needed = set(wanted)
    remaining: list[tuple[int, Equation]] = []
    # Backwards: an equation stays if a later one that stays reads it.
    for number in range(len(program.equations) - 1, -1, -1):
        equation = program.equations[number]
        if number in removed or not any(value in needed for value in equation.outputs):
            continue
        inputs = tuple(follow(value) for value in equation.inputs)
        needed.update(inputs)
        remaining.append((number, equation._replace(inputs=inputs)))
    remaining = _with_looks(program, remaining, follow)
    # Equations have new numbers, so the frames of their bodies are numbered anew.
    inner = {
        place: frame.inner[number]
        for place, (number, _) in enumerate(remaining)
        if number in frame.inner
    }
    smaller = program._replace(
        equations=tuple(equation for _, equation in remaining), outputs=wanted
    )
    return smaller, frame._replace(inner=inner)


def _with_looks(
    program: Program, remaining: list[tuple[int, Equation]], follow: Callable[[int], int]
) -> list[tuple[int, Equation]]:
    """The equations in order, with those that look at values that are still made (debug prints)."""
    made = {value for _, equation in remaining for value in equation.outputs}
    made.update(program.inputs, program.constants)
    looks: list[tuple[int, Equation]] = []
    for number, equation in enumerate(program.equations):
        inputs = tuple(follow(value) for value in equation.inputs)
        if not equation.outputs and made.issuperset(inputs):
            looks.append((number, equation._replace(inputs=inputs)))
    return sorted((*remaining, *looks), key=lambda pair: pair[0])


class Needs:
    """Readers and makers of values, among the equations that some outputs need."""

    def __init__(self, program: Program, outputs: Sequence[int]):
        self.program = program
        self.wanted = set(outputs)
        self.readers: dict[int, list[int]] = {}
        self.maker: dict[int, int] = {}
        for number in sorted(reaching(program, outputs)):
            equation = program.equations[number]
            for value in equation.inputs:
                self.readers.setdefault(value, []).append(number)
            self.maker.update(dict.fromkeys(equation.outputs, number))

    def only(self, fork: Fork) -> tuple[set[int], set[int]]:
        """Equations (by number) and values that only a branch needs, its sum included."""
        removed = {fork.equation}
        waiting = {fork.branch}
        # A heap of negative numbers gives the latest equation first.
        heap = [-self.maker[fork.branch]] if fork.branch in self.maker else []
        needed = self.wanted | {fork.identity}

        def unused(value: int) -> bool:
            readers = self.readers.get(value, ())
            return value not in needed and all(reader in removed for reader in readers)

        while heap:  # the latest first: whoever reads its results was looked at before
            number = -heapq.heappop(heap)
            equation = self.program.equations[number]
            if number not in removed and all(map(unused, equation.outputs)):
                removed.add(number)
                waiting.update(equation.inputs)
                for value in equation.inputs:
                    if value in self.maker:
                        heapq.heappush(heap, -self.maker[value])
        return removed, set(filter(unused, waiting))


def find_branches(
    program: Program, spots: Sequence[Spot], paths: Sequence[str], main: int | None
) -> tuple[Branch, ...]:
    """The static part of all branches.

    Args:
        program: the whole program.
        spots: its sites.
        paths: of the leaves.
        main: how many outputs count (the others are new statistics); None for all.
    """
    needs = Needs(program, program.outputs[:main])
    branches: list[Branch] = []
    for fork in find_forks(program, spots, len(paths)):
        _, unused = needs.only(fork)
        own = (path for path, value in zip(paths, program.inputs) if value in unused)
        branches.append(Branch(fork.name, tuple(own)))
    return tuple(branches)

"""Branches: the side of a residual sum that has weights, as a unit that can go as a whole.

Of the two operands of a sum one may need all the parameters that the other needs, and more: that
one is the branch, the other one the identity. Where both sides have parameters of their own (a
projection), there is no branch. A removed branch takes its equations with it, and the leaves that
nothing else reads become None.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jprune.base import Branch
from jprune.graph.interpret import Frame
from jprune.graph.jaxprs import Program
from jprune.graph.sites import Spot

PREFIX = "branch/"


class Fork(NamedTuple):
    """A branch in a program."""

    name: str
    equation: int
    """Number of the sum."""
    branch: int
    """Value id of the operand that can go."""
    identity: int
    """Value id of the other operand."""


def dependencies(program: Program, leaves: int) -> list[int]:
    """By value id: the leaves that a value depends on, as bits of an integer."""
    bits = [0] * len(program.avals)
    for leaf, value in enumerate(program.inputs[:leaves]):
        bits[value] = 1 << leaf
    for equation in program.equations:
        joined = 0
        for value in equation.inputs:
            joined |= bits[value]
        for value in equation.outputs:
            bits[value] = joined
    return bits


def find_forks(program: Program, spots: Sequence[Spot], leaves: int) -> list[Fork]:
    """All branches of a program, in execution order."""
    bits = dependencies(program, leaves)
    forks = []
    for spot in spots:
        if spot.kind != "join":
            continue
        left, right = program.equations[spot.equation].inputs
        if bits[left] == bits[right] or bits[left] | bits[right] not in (bits[left], bits[right]):
            continue
        identity, branch = (
            (left, right) if bits[left] | bits[right] == bits[right] else (right, left)
        )
        forks.append(Fork(PREFIX + spot.layer, spot.equation, branch, identity))
    return forks


def branch_spots(forks: Sequence[Fork], spots: Sequence[Spot]) -> list[Spot]:
    """The operands of sums that are branches, as sites."""
    axes = {spot.equation: spot.axis for spot in spots if spot.kind == "join"}
    return [
        Spot("branch", fork.name, fork.branch, fork.equation, axes[fork.equation]) for fork in forks
    ]


def without(
    program: Program, frame: Frame, cut: Sequence[Fork], outputs: Sequence[int] | None = None
) -> tuple[Program, Frame]:
    """The program with some branches cut off, and nothing that only they needed.

    Args:
        program: the whole program.
        frame: its labels.
        cut: the branches to remove.
        outputs: the outputs that are wanted; all of them if None.

    Returns:
        Program and frame with the same value ids.
    """
    alias = {program.equations[fork.equation].outputs[0]: fork.identity for fork in cut}
    gone = {fork.equation for fork in cut}

    def follow(value: int) -> int:
        while value in alias:
            value = alias[value]
        return value

    wanted = tuple(follow(value) for value in (program.outputs if outputs is None else outputs))
    needed = set(wanted)
    kept = []
    for number in range(len(program.equations) - 1, -1, -1):
        equation = program.equations[number]
        if number in gone or not any(value in needed for value in equation.outputs):
            continue
        inputs = tuple(follow(value) for value in equation.inputs)
        needed.update(inputs)
        kept.append((number, equation._replace(inputs=inputs)))
    kept.reverse()
    inner = {
        place: frame.inner[number]
        for place, (number, _) in enumerate(kept)
        if number in frame.inner
    }
    smaller = program._replace(equations=tuple(equation for _, equation in kept), outputs=wanted)
    return smaller, frame._replace(inner=inner)


def inside(program: Program, frame: Frame, fork: Fork, outputs: Sequence[int]) -> set[int]:
    """Numbers of the equations that only a branch needs, its sum included."""
    of = lambda smaller: {equation.outputs for equation in smaller.equations}
    whole = of(without(program, frame, (), outputs)[0])
    left = of(without(program, frame, (fork,), outputs)[0])
    gone = whole - left
    return {number for number, e in enumerate(program.equations) if e.outputs in gone}


def read_leaves(program: Program, leaves: int) -> set[int]:
    """Leaves that an equation or an output reads."""
    read = {value for equation in program.equations for value in equation.inputs}
    read.update(program.outputs)
    return {leaf for leaf, value in enumerate(program.inputs[:leaves]) if value in read}


def find_branches(
    program: Program, frame: Frame, spots: Sequence[Spot], paths: Sequence[str], main: int | None
) -> tuple[Branch, ...]:
    """The static part of all branches.

    Args:
        program: the whole program.
        frame: its labels.
        spots: its sites.
        paths: of the leaves.
        main: how many outputs count (the others are new statistics); None for all.
    """
    outputs = program.outputs[:main]
    whole = read_leaves(without(program, frame, (), outputs)[0], len(paths))
    branches = []
    for fork in find_forks(program, spots, len(paths)):
        left = read_leaves(without(program, frame, (fork,), outputs)[0], len(paths))
        own = tuple(paths[leaf] for leaf in sorted(whole - left))
        branches.append(Branch(fork.name, own))
    return tuple(branches)

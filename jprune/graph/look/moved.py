"""Where the axes of a value stand behind a move: a transpose, a squeeze, a reshape.

`vmap` and layouts with channels first put moves between a contraction and what follows it. They
change no number, so that whoever follows a value by its channels looks through them.
"""

import math
from collections.abc import Sequence

from jprune.jaxprs import Equation, Program

MOVES = ("transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim")
"""Primitives that change the shape of a value and none of its numbers."""

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes before a move, and the axes behind it that hold the same positions."""


def moved_axes(program: Program, equation: Equation, axes: Sequence[int]) -> tuple[int, ...] | None:
    """Where some axes of the operand stand behind a move.

    Args:
        program: that has the equation.
        equation: one of `MOVES`.
        axes: of its operand.

    Returns:
        Axes of the result, more where an axis is split; None where the axes are merged with others,
        or the value is repeated.
    """
    pairs = axis_pairs(program, equation)
    if pairs is None:
        return None
    result: list[int] = []
    for sources, targets in pairs:
        inside = {axis in axes for axis in sources}
        if len(inside) > 1:
            return None
        if inside == {True}:
            result += targets
    return tuple(result)


def axis_pairs(program: Program, equation: Equation) -> list[Pair] | None:
    """Which axes became which; None where the value is repeated."""
    before, after = program.shape(equation.inputs[0]), program.shape(equation.outputs[0])
    if equation.name == "transpose":
        return [((source,), (a,)) for a, source in enumerate(equation.params["permutation"])]
    if math.prod(before) != math.prod(after) or 0 in before:
        return None
    if equation.name == "broadcast_in_dim":
        places = equation.params["broadcast_dimensions"]
        return [((axis,), (int(place),)) for axis, place in enumerate(places)]
    if equation.name == "squeeze":
        gone = {axis % len(before) for axis in equation.params["dimensions"]}
        rest = [axis for axis in range(len(before)) if axis not in gone]
        return [((source,), (axis,)) for axis, source in enumerate(rest)]
    return _pairs_of_reshape(before, after)


def _pairs_of_reshape(before: Sequence[int], after: Sequence[int]) -> list[Pair]:
    """Pairs of the fewest axes of equal products, from the last axes on.

    Axes of length 1 belong together where they stand at the same place from the right; what is left
    over of them is in no pair.
    """
    sources, targets = list(range(len(before))), list(range(len(after)))
    pairs: list[Pair] = []
    while sources and targets:
        last, other = before[sources[-1]], after[targets[-1]]
        if last != other and 1 in (last, other):
            # A length of 1 beside a longer axis: it was put there, or goes.
            (sources if last == 1 else targets).pop()
            continue
        of_source, of_target = [sources.pop()], [targets.pop()]
        while last != other:
            if last < other:
                of_source.insert(0, sources.pop())
                last *= before[of_source[0]]
            else:
                of_target.insert(0, targets.pop())
                other *= after[of_target[0]]
        long = tuple(axis for axis in of_source if before[axis] != 1)
        pairs.append((long or (of_source[0],), tuple(of_target)))
    return pairs[::-1]

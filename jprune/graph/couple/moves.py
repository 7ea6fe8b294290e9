"""Rules of primitives that move positions: broadcasts, slices, joins, reshapes, gathers."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jprune.graph.couple.labels import SYMBOLIC, UNIT, Axis, AxisLabels, Fixed, Indices
from jprune.graph.couple.rules import Context, rule

COMPUTED = "cut at a place that is only known when the net runs", "slice at a constant place"
LOOKED_UP = "looked up at places that are only known when the net runs", "use constant indices"
OUTSIDE = "looked up out of bounds, or together with another axis", "use indices within one axis"


@rule("broadcast_in_dim")
def broadcast_in_dim(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Broadcast axes get labels of their own: they follow whatever they are combined with."""
    shape = context.out_shape()
    places = context.equation.params["broadcast_dimensions"]
    result: list[Axis | None] = [None] * len(shape)
    for source, target in enumerate(places):
        axis = operands[0][source]
        # [c] -> [n, h, w, c]: the axis keeps its labels; [1] -> [c]: one channel that all others
        # copy cannot go alone.
        if context.in_shape(0)[source] == shape[target]:
            result[target] = axis
        else:
            context.freeze(axis, "a single channel that is broadcast over many")
    return [
        tuple(
            context.labels.axis(length) if axis is None else axis
            for axis, length in zip(result, shape)
        )
    ]


@rule("tile")
def tile(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Repeats axes: position i of every copy has the label of position i."""
    result: list[Axis] = []
    for axis, times, length in zip(
        operands[0], context.equation.params["reps"], context.in_shape(0), strict=True
    ):
        if times > 1 and length == 1:
            context.freeze(axis, "a single channel that is broadcast over many")
        result.append(axis if isinstance(axis, Fixed) else np.tile(axis, times))
    return [tuple(result)]


@rule("transpose")
def transpose(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Permutes axes."""
    permutation: Sequence[int] = context.equation.params["permutation"]
    return [tuple(operands[0][axis] for axis in permutation)]


@rule("squeeze")
def squeeze(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Drops axes of length one, whose position must therefore stay."""
    dropped: Sequence[int] = context.equation.params["dimensions"]
    for axis in dropped:
        context.freeze(operands[0][axis], "the only position of an axis that is squeezed away")
    return [tuple(a for position, a in enumerate(operands[0]) if position not in dropped)]


@rule("unstack")
def unstack(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Takes an axis apart, all of whose positions must therefore stay."""
    unstacked, axes = context.equation.params["axis"], operands[0]
    context.freeze(axes[unstacked], "an axis that is unstacked")
    # Every result is one position of the axis: without it the function would have a result less.
    remaining = tuple(axis for position, axis in enumerate(axes) if position != unstacked)
    return [remaining] * len(context.equation.outputs)


@rule("stack")
def stack(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Ties all axes; the new one follows whatever it is combined with."""
    # Channel j of one operand stands beside channel j of the others, at one position of the
    # result.
    result = [context.tie_all(axes) for axes in zip(*operands)]
    result.insert(context.equation.params["axis"], context.labels.fresh(len(operands)))
    return [tuple(result)]


@rule("rev")
def rev(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Reverses axes."""
    turned = context.equation.params["dimensions"]
    return [
        tuple(
            axis[::-1] if position in turned and not isinstance(axis, Fixed) else axis
            for position, axis in enumerate(operands[0])
        )
    ]


@rule("slice")
def slice_(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """The result has the labels of the positions that the slice takes."""
    params = context.equation.params
    strides = params["strides"] or (1,) * len(params["start_indices"])
    windows = zip(params["start_indices"], params["limit_indices"], strides)
    return [
        tuple(
            axis if isinstance(axis, Fixed) else axis[start:stop:stride]
            for axis, (start, stop, stride) in zip(operands[0], windows)
        )
    ]


@rule("split")
def split(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Several slices of one axis."""
    cut = context.equation.params["axis"]
    offsets = np.cumsum([0, *context.equation.params["sizes"]]).tolist()
    return [
        tuple(
            axis[start:stop] if position == cut and not isinstance(axis, Fixed) else axis
            for position, axis in enumerate(operands[0])
        )
        for start, stop in itertools.pairwise(offsets)
    ]


@rule("concatenate")
def concatenate(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Joins labels along one axis and ties the others."""
    joined_axis = context.equation.params["dimension"]
    result: list[Axis] = []
    for position, axes in enumerate(zip(*operands)):
        if position != joined_axis:
            result.append(context.tie_all(axes))
        # Images joined side by side: no channel is among them.
        elif all(isinstance(axis, Fixed) for axis in axes):
            result.append(axes[0])
        else:
            lengths = [context.in_shape(number)[position] for number in range(len(operands))]
            # DenseNet: channels of all operands one after the other, each with the labels that it
            # has.
            parts = [context.labelled(axis, length) for axis, length in zip(axes, lengths)]
            result.append(np.concatenate(parts))
    return [tuple(result)]


@rule("pad")
def pad(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Padded positions get new labels; cropped ones lose theirs."""
    result: list[Axis] = []
    for axis, (low, high, interior) in zip(operands[0], context.equation.params["padding_config"]):
        if isinstance(axis, Fixed) or not (low or high or interior):
            result.append(axis)
            continue
        # Interior padding puts new positions between the old ones.
        if interior:
            length = len(axis) + interior * (len(axis) - 1)
            spread = context.labels.fresh(length)
            spread[:: interior + 1] = axis
            axis = spread
        # Negative padding crops.
        axis = axis[max(0, -low) : len(axis) - max(0, -high)]
        before, after = (context.labels.fresh(max(0, width)) for width in (low, high))
        result.append(np.concatenate([before, axis, after]))
    return [tuple(result)]


@rule("reshape")
def reshape(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Aligns runs of axes with equal products; a run is passed on, merged, split, or both."""
    source, target = context.in_shape(0), context.out_shape()
    result: list[Axis] = [UNIT] * len(target)
    # An axis of length 1 is in no run: its position has nowhere to be said.
    for axis, length in zip(operands[0], source):
        if length == 1:
            context.freeze(axis, "the only position of an axis that is reshaped away")
    # [2, 3, 4] -> [6, 2, 2] has the runs (2 3 -> 6) and (4 -> 2 2).
    for sources, targets in aligned(source, target):
        axes = [operands[0][position] for position in sources]
        lengths = [target[position] for position in targets]
        merged = merge(context, axes, [source[position] for position in sources])
        for position, axis in zip(targets, split_axis(context, merged, lengths)):
            result[position] = axis
    return [tuple(result)]


def aligned(source: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Shortest runs of axes (longer than one) of both shapes with equal products."""
    runs: list[tuple[list[int], list[int]]] = []
    left = [axis for axis, length in enumerate(source) if length != 1]
    right = [axis for axis, length in enumerate(target) if length != 1]
    if 0 in source:
        return []
    while left:
        first, second = [left.pop(0)], [right.pop(0)]
        # The side with the smaller product takes its next axis until both say the same number of
        # positions.
        while (a := math.prod(source[i] for i in first)) != (
            b := math.prod(target[i] for i in second)
        ):
            (first if a < b else second).append((left if a < b else right).pop(0))
        runs.append((first, second))
    return runs


def merge(context: Context, axes: Sequence[Axis], lengths: Sequence[int]) -> Axis:
    """One axis from several (row-major): positions repeat the labels of the axes they come from."""
    varying = [place for place, axis in enumerate(axes) if not isinstance(axis, Fixed)]
    if len(axes) == 1 or not varying:
        return axes[0]
    # A batch of any size times channels: no label can be written for every position.
    if not all(isinstance(length, int | np.integer) for length in lengths):
        for axis in axes:
            context.labels.freeze(axis, SYMBOLIC.reason)
        return SYMBOLIC
    # Flattening [h, w, c]: position (y, x, c) is channel c, so its label occurs h w times.
    if len(varying) == 1:
        shape = [-1 if place == varying[0] else 1 for place in range(len(axes))]
        axis = axes[varying[0]]
        assert not isinstance(axis, Fixed)
        return np.broadcast_to(axis.reshape(shape), tuple(lengths)).reshape(-1)
    # Heads and head dimensions merged: position (i, j) lives while head i and dimension j both
    # do.
    whole = context.labels.fresh(math.prod(lengths))
    context.product(whole.reshape(tuple(lengths)), axes)
    return whole


def split_axis(context: Context, axis: Axis, lengths: Sequence[int]) -> list[Axis]:
    """Several axes from one, of which whole rows or whole columns can be removed."""
    if len(lengths) == 1 or isinstance(axis, Fixed):
        return [axis] * len(lengths)
    # A dense array loses whole rows or whole columns only: axis[i, j] = rows[i] and columns[j].
    factors = [context.labels.fresh(length) for length in lengths]
    context.product(axis.reshape(tuple(lengths)), factors)
    return [*factors]


class Gather(NamedTuple):
    """What a gather does to the axes of its operand.

    Attributes:
        passed: operand axis -> result axis, for axes of which a window is taken.
        batch: result axes that follow the leading axes of the indices, in order.
        looked_up: operand axes at whose positions the indices point.
        tied: operand axis -> axis of the indices that runs beside it.
        known: [leading axes of the indices]: known numbers within the axis, where one axis is
            looked up.
    """

    passed: dict[int, int]
    batch: tuple[int, ...]
    looked_up: tuple[int, ...]
    tied: dict[int, int]
    known: Indices | None


def gather_of(params: dict[str, Any], indices: Any, shape: Sequence[int], out_rank: int) -> Gather:
    """Reads the dimension numbers of a gather.

    Args:
        params: of the equation.
        indices: if constants alone make them, else None.
        shape: of the operand.
        out_rank: of the result.
    """
    numbers = params["dimension_numbers"]
    # Axes of the operand that are neither looked up nor tied are in the window, and so in the
    # result.
    away = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    windows = (axis for axis in range(len(shape)) if axis not in away)
    tied = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims))
    looked_up = tuple(numbers.start_index_map)
    single = len(looked_up) == 1 and looked_up == tuple(numbers.collapsed_slice_dims)
    return Gather(
        dict(zip(windows, numbers.offset_dims)),
        tuple(axis for axis in range(out_rank) if axis not in numbers.offset_dims),
        looked_up,
        tied,
        within(indices, shape[looked_up[0]]) if single else None,
    )


def within(indices: Any, length: int) -> Indices | None:
    """[leading axes] constant indices of one axis; None if they leave it, or are not known.

    Out of bounds JAX clamps, fills or drops: positions would no longer be channels.
    """
    if indices is None:
        return None
    index = np.asarray(indices)[..., 0].astype(np.int64)
    return index if ((index >= 0) & (index < length)).all() else None


@rule("gather")
def gather(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """With constant indices a permutation or repetition; else a table that is looked up."""
    source, indices = operands
    shape, sizes = context.in_shape(0), context.equation.params["slice_sizes"]
    rank = len(context.out_shape())
    indices_known = context.known(1)
    how = gather_of(context.equation.params, indices_known, shape, rank)
    result: list[Axis] = [UNIT] * rank
    # The result follows the indices on its leading axes, the operand on those of the window.
    for number, axis in enumerate(how.batch):
        result[axis] = indices[number]
    for axis, number in how.tied.items():
        result[how.batch[number]] = context.tie(source[axis], indices[number])
    for axis, target in how.passed.items():
        result[target] = source[axis]
        # A part of the axis, from a place that the indices say: which channels these are nobody
        # knows.
        if sizes[axis] != shape[axis]:
            context.freeze(source[axis], *COMPUTED)
            result[target] = Fixed(context.reason("part of a gather"))
    for axis in how.looked_up:
        labels, index = source[axis], how.known
        if isinstance(labels, Fixed):
            continue
        if index is None:
            context.freeze(labels, *(LOOKED_UP if indices_known is None else OUTSIDE))
        elif not index.ndim:
            context.freeze(labels[index[None]], "a single channel that is taken out")
        else:
            # A constant permutation or repetition: the labels are looked up as the numbers would
            # be.
            taken = labels[index.reshape(-1)]
            for target, part in zip(how.batch, split_axis(context, taken, index.shape)):
                result[target] = part
    return [tuple(result)]


@rule("dynamic_slice", "dynamic_update_slice")
def dynamic_slice(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Axes taken whole pass; one that is cut at a computed place must stay."""
    update = context.equation.name == "dynamic_update_slice"
    sizes: Any = context.in_shape(1) if update else context.equation.params["slice_sizes"]
    result: list[Axis] = []
    for position, (axis, size) in enumerate(zip(operands[0], sizes)):
        if size == context.in_shape(0)[position]:
            result.append(context.tie(axis, operands[1][position]) if update else axis)
        else:
            context.freeze(axis, *COMPUTED)
            result.append(Fixed(context.reason("part of a dynamic slice")))
            if update:
                # What is written is cut, too; what it is written into keeps its labels, which are
                # frozen.
                context.tie(operands[1][position], result[-1])
                result[-1] = axis
    return [tuple(result)]

"""Rules of scatters: updates are written, or added, at places of an operand."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jprune.graph.couple.labels import AxisLabels, Fixed, Indices
from jprune.graph.couple.moves import COMPUTED, LOOKED_UP, OUTSIDE, split_axis, within
from jprune.graph.couple.rules import Context, rule

SCATTERS = "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max".split()


class Scatter(NamedTuple):
    """What a scatter does to the axes of its operand; the inverse of `moves.Gather`.

    Attributes:
        passed: operand axis -> axis of the updates, for axes of which a window is written.
        batch: axes of the updates that follow the leading axes of the indices, in order.
        written: operand axes at single positions of which is written, where the indices point.
        tied: operand axis -> axis of the indices that runs beside it.
        known: [leading axes of the indices]: known numbers within the axis, where one axis is
            written at.
    """

    passed: dict[int, int]
    batch: tuple[int, ...]
    written: tuple[int, ...]
    tied: dict[int, int]
    known: Indices | None


def scatter_of(
    params: dict[str, Any], indices: Any, shape: Sequence[int], update_rank: int
) -> Scatter:
    """Reads the dimension numbers of a scatter.

    Args:
        params: of the equation.
        indices: if constants alone make them, else None.
        shape: of the operand.
        update_rank: of the updates.
    """
    numbers = params["dimension_numbers"]
    tied = dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims))
    written = tuple(numbers.inserted_window_dims)
    windows = (axis for axis in range(len(shape)) if axis not in {*written, *tied})
    single = len(written) == 1 and written == tuple(numbers.scatter_dims_to_operand_dims)
    return Scatter(
        dict(zip(windows, numbers.update_window_dims)),
        tuple(axis for axis in range(update_rank) if axis not in numbers.update_window_dims),
        written,
        tied,
        within(indices, shape[written[0]]) if single and not tied else None,
    )


@rule(*SCATTERS)
def scatter(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """The result has the operand's labels; updates are tied to what they are written at."""
    operand, indices, updates = operands
    shape, sizes = context.in_shape(0), context.in_shape(2)
    numbers = context.known(1)
    how = scatter_of(context.equation.params, numbers, shape, len(sizes))
    result = list(operand)
    for number, axis in enumerate(how.batch):
        context.tie(updates[axis], indices[number])
    for axis, number in how.tied.items():
        result[axis] = context.tie(operand[axis], updates[how.batch[number]])
    for axis, target in how.passed.items():
        if sizes[target] == shape[axis]:
            result[axis] = context.tie(operand[axis], updates[target])
        else:
            # A part of the axis, from a place that the indices say.
            for part in (operand[axis], updates[target]):
                context.freeze(part, *COMPUTED)
    for axis in how.written:
        labels, index = operand[axis], how.known
        if index is not None and index.ndim and not isinstance(labels, Fixed):
            # x.at[:, [4, 1]].set(y): y's channels are channels 4 and 1 of x.
            parts = split_axis(context, labels[index.reshape(-1)], index.shape)
            for target, part in zip(how.batch, parts):
                context.tie(updates[target], part)
            continue
        why = LOOKED_UP if numbers is None else OUTSIDE
        if index is not None and not isinstance(labels, Fixed):
            context.freeze(labels[index[None]], "a single channel that is written")
        else:
            context.freeze(labels, *why)
        for target in how.batch:
            context.freeze(updates[target], *why)
    return [tuple(result)]

"""One short rule per primitive: how labels pass through it, and what it ties.

A rule gets the context (labels, program, equation) and the labels of its operands, and returns
those of its results. To teach jprune a primitive, write such a function and decorate it with
`@rule("name")`; if the primitive has shapes among its parameters, `shrink.py` needs a rule of the
same name.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jprune.graph.jaxprs import Equation, Program, describe, user_line
from jprune.graph.labels import SPATIAL, SYMBOLIC, UNIT, Axis, AxisLabels, Fixed, Labels, Reason


class Context(NamedTuple):
    """What a rule may use."""

    labels: Labels
    program: Program
    equation: Equation

    def reason(self, text: str, remedy: str = "") -> Reason:
        """A reason that names this equation and the user's line."""
        equation = self.equation
        return Reason(
            text,
            equation.name,
            describe(self.program, equation),
            user_line(equation.traceback),
            remedy,
        )

    def in_shape(self, operand: int) -> tuple[int, ...]:
        """Shape of an operand."""
        return self.program.shape(self.equation.inputs[operand])

    def out_shape(self, result: int = 0) -> tuple[int, ...]:
        """Shape of a result."""
        return self.program.shape(self.equation.outputs[result])

    def fresh(self, shape: Sequence[int]) -> AxisLabels:
        """New labels for every axis of an array that comes from nowhere (a constant, an iota)."""
        return tuple(self.labels.axis(length) for length in shape)

    def freeze(self, axis: Axis, text: str, remedy: str = "") -> None:
        """Freezes labels for a reason found at this equation."""
        if not isinstance(axis, Fixed):
            self.labels.freeze(axis, self.reason(text, remedy))

    def tie(self, left: Axis, right: Axis) -> Axis:
        """Ties two axes; what a fixed one freezes is frozen at this equation."""
        if isinstance(left, Fixed) == isinstance(right, Fixed):
            return self.labels.tie(left, right)
        free, fixed = (right, left) if isinstance(left, Fixed) else (left, right)
        assert isinstance(fixed, Fixed)
        reason = fixed.reason
        if reason is SPATIAL.reason:
            self.labels.freeze(free, reason)
        else:
            self.freeze(free, reason.text, reason.remedy)
        return free


Rule = Callable[[Context, Sequence[AxisLabels]], list[AxisLabels]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for primitives of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def unknown(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """A primitive without a rule: whatever it sees must stay as it is."""
    name = context.equation.name
    for axis in (axis for operand in operands for axis in operand):
        context.freeze(
            axis,
            f"no rule for the primitive {name!r}",
            f'add a rule for {name!r} with jprune.graph.rules.rule("{name}")',
        )
    fixed = Fixed(context.reason(f"result of the primitive {name!r}, which has no rule"))
    return [
        tuple(fixed for _ in context.out_shape(result))
        for result in range(len(context.equation.outputs))
    ]


ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp complex conj convert_element_type copy copy_p cos
    cosh device_put digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag
    integer_pow igamma igammac is_finite le lgamma log log1p logistic lt max min mul name ne
    neg nextafter not optimization_barrier or polygamma population_count pow pvary real
    reduce_precision regularized_incomplete_beta rem round rsqrt select_n sharding_constraint
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
    stop_gradient sub tan tanh xor zeta
""".split()


@rule(*ELEMENTWISE)
def elementwise(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Ties equal axes. Scalars tie nothing; an axis of length one that broadcasts cannot go."""
    if len(context.equation.outputs) > 1:  # optimization_barrier passes its operands through
        return list(operands)
    result: list[Axis] = []
    for position, length in enumerate(context.out_shape()):
        joined: Axis | None = None
        for number, operand in enumerate(operands):
            if not operand:
                continue
            axis = operand[position]
            if context.in_shape(number)[position] != length:
                context.freeze(axis, "a single channel that is broadcast over many")
            elif joined is None:
                joined = axis
            else:
                joined = context.tie(joined, axis)
        result.append(UNIT if joined is None else joined)
    return [tuple(result)]


@rule("broadcast_in_dim")
def broadcast_in_dim(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Broadcast axes get labels of their own: they follow whatever they are combined with."""
    shape = context.out_shape()
    places = context.equation.params["broadcast_dimensions"]
    result: list[Axis | None] = [None] * len(shape)
    for source, target in enumerate(places):
        axis = operands[0][source]
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


@rule("transpose")
def transpose(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Permutes axes."""
    return [tuple(operands[0][axis] for axis in context.equation.params["permutation"])]


@rule("squeeze")
def squeeze(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Drops axes of length one, whose position must therefore stay."""
    dropped = context.equation.params["dimensions"]
    for axis in dropped:
        context.freeze(operands[0][axis], "the only position of an axis that is squeezed away")
    return [tuple(a for position, a in enumerate(operands[0]) if position not in dropped)]


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
    """Takes the labels of the positions that it takes."""
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
            joined = axes[0]
            for axis in axes[1:]:
                joined = context.tie(joined, axis)
            result.append(joined)
        elif all(isinstance(axis, Fixed) for axis in axes):
            result.append(axes[0])
        else:
            result.append(
                np.concatenate([labelled(context, i, position, a) for i, a in enumerate(axes)])
            )
    return [tuple(result)]


def labelled(context: Context, operand: int, position: int, axis: Axis) -> np.ndarray:
    """Labels of an axis; a fixed one gets frozen labels, so that it can stand beside others."""
    if not isinstance(axis, Fixed):
        return axis
    labels = context.labels.fresh(context.in_shape(operand)[position])
    context.labels.freeze(labels, axis.reason)
    return labels


@rule("pad")
def pad(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Padding makes new positions with labels of their own; cropping forgets labels."""
    result: list[Axis] = []
    for axis, (low, high, interior) in zip(operands[0], context.equation.params["padding_config"]):
        if isinstance(axis, Fixed) or not (low or high or interior):
            result.append(axis)
            continue
        if interior:
            length = len(axis) + interior * (len(axis) - 1)
            spread = context.labels.fresh(length)
            spread[:: interior + 1] = axis
            axis = spread
        axis = axis[max(0, -low) : len(axis) - max(0, -high)]
        before, after = (context.labels.fresh(max(0, width)) for width in (low, high))
        result.append(np.concatenate([before, axis, after]))
    return [tuple(result)]


@rule("reshape")
def reshape(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Aligns runs of axes with equal products; a run is passed on, merged, split, or both."""
    source, target = context.in_shape(0), context.out_shape()
    result: list[Axis] = [UNIT] * len(target)
    for axis, length in zip(operands[0], source):
        if length == 1:
            context.freeze(axis, "the only position of an axis that is reshaped away")
    for sources, targets in aligned(source, target):
        axes = [operands[0][position] for position in sources]
        lengths = [target[position] for position in targets]
        merged = merge(context.labels, axes, [source[position] for position in sources])
        for position, axis in zip(targets, split_axis(context.labels, merged, lengths)):
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
        while (a := math.prod(source[i] for i in first)) != (
            b := math.prod(target[i] for i in second)
        ):
            (first if a < b else second).append((left if a < b else right).pop(0))
        runs.append((first, second))
    return runs


def merge(labels: Labels, axes: Sequence[Axis], lengths: Sequence[int]) -> Axis:
    """One axis from several (row-major): positions repeat the labels of the axes they come from."""
    varying = [place for place, axis in enumerate(axes) if not isinstance(axis, Fixed)]
    if len(axes) == 1 or not varying:
        return axes[0]
    if not all(isinstance(length, (int, np.integer)) for length in lengths):
        for axis in axes:
            labels.freeze(axis, SYMBOLIC.reason)
        return SYMBOLIC
    if len(varying) == 1:
        shape = [-1 if place == varying[0] else 1 for place in range(len(axes))]
        axis = axes[varying[0]]
        assert not isinstance(axis, Fixed)
        return np.broadcast_to(axis.reshape(shape), tuple(lengths)).reshape(-1)
    whole = labels.fresh(math.prod(lengths))
    labels.product(whole.reshape(tuple(lengths)), tuple(axes))
    return whole


def split_axis(labels: Labels, axis: Axis, lengths: Sequence[int]) -> list[Axis]:
    """Several axes from one: whole rows or whole columns are what can go."""
    if len(lengths) == 1 or isinstance(axis, Fixed):
        return [axis] * len(lengths)
    factors = tuple(labels.fresh(length) for length in lengths)
    labels.product(axis.reshape(tuple(lengths)), factors)
    return list(factors)


@rule("conv_general_dilated")
def convolution(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Ties the kernel's input axis to the activation; the output has the kernel's output labels.

    With feature groups, rows (whole groups) and columns (the same channel of every group) can go.
    """
    params, labels = context.equation.params, context.labels
    data, kernel = operands
    numbers = params["dimension_numbers"]
    for operand, places in ((data, numbers.lhs_spec), (kernel, numbers.rhs_spec)):
        for position in places[2:]:
            labels.freeze(operand[position], SPATIAL.reason)
    channels = data[numbers.lhs_spec[1]]
    outputs, inputs = kernel[numbers.rhs_spec[0]], kernel[numbers.rhs_spec[1]]
    batch = data[numbers.lhs_spec[0]]
    if params["batch_group_count"] > 1:
        for axis in (batch, channels, outputs, inputs):
            context.freeze(axis, "convolution with batch groups")
        batch = Fixed(context.reason("convolution with batch groups"))
    elif params["feature_group_count"] == 1:
        context.tie(channels, inputs)
    else:
        outputs = grouped(context, params["feature_group_count"], channels, inputs, outputs)
    result: list[Axis] = [SPATIAL] * len(numbers.out_spec)
    result[numbers.out_spec[0]] = batch
    result[numbers.out_spec[1]] = outputs
    return [tuple(result)]


def grouped(context: Context, groups: int, channels: Axis, inputs: Axis, outputs: Axis) -> Axis:
    """Rows g and columns of a grouped convolution: input (g, i), kernel input i, output (g, o)."""
    labels = context.labels
    if isinstance(inputs, Fixed) or isinstance(outputs, Fixed):
        for axis in (channels, inputs, outputs):
            context.freeze(axis, "grouped convolution whose kernel has fixed axes")
        return outputs
    rows = labels.fresh(groups)
    per_group, out_per_group = len(inputs), len(outputs) // groups
    if per_group == 1:
        context.freeze(inputs, "the only input channel of every group")
        context.tie(rows, channels)
    elif isinstance(channels, Fixed):
        for axis in (rows, inputs):
            labels.freeze(axis, channels.reason)
    else:
        labels.product(channels.reshape(groups, per_group), (rows, inputs))
    if out_per_group == 1:
        labels.tie(outputs, rows)
    else:
        columns = labels.fresh(out_per_group)
        labels.product(outputs.reshape(groups, out_per_group), (rows, columns))
    return outputs


@rule("dot_general")
def dot_general(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Ties contracted axes and batch axes."""
    (left_in, right_in), (left_batch, right_batch) = context.equation.params["dimension_numbers"]
    left, right = operands
    for one, other in zip(left_in, right_in):
        context.tie(left[one], right[other])
    batch = [context.tie(left[i], right[j]) for i, j in zip(left_batch, right_batch)]
    free = [
        axis
        for operand, used in ((left, (*left_in, *left_batch)), (right, (*right_in, *right_batch)))
        for position, axis in enumerate(operand)
        if position not in used
    ]
    return [(*batch, *free)]


REDUCTIONS = """
    reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin
""".split()


@rule(*REDUCTIONS)
def reduction(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Channels that are reduced over without weights must stay."""
    axes = context.equation.params["axes"]
    for axis in axes:
        context.freeze(
            operands[0][axis],
            f"{context.equation.name} over the channels, without weights",
            "a normalisation or softmax over channels sees all of them",
        )
    return [tuple(axis for position, axis in enumerate(operands[0]) if position not in axes)]


WINDOWS = """
    reduce_window reduce_window_max reduce_window_min reduce_window_sum select_and_gather_add
    select_and_scatter_add
""".split()


@rule(*WINDOWS)
def window(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Pooling: axes with a window of one pass, the others become positions."""
    params = context.equation.params
    lengths = params["window_dimensions"]
    strides = params.get("window_strides") or (1,) * len(lengths)
    padding = params.get("padding") or ((0, 0),) * len(lengths)
    arrays = [operand for operand in operands if operand]
    result: list[Axis] = []
    for position, length in enumerate(lengths):
        axes = [operand[position] for operand in arrays]
        if (length, strides[position], tuple(padding[position])) == (1, 1, (0, 0)):
            joined = axes[0]
            for axis in axes[1:]:
                joined = context.tie(joined, axis)
            result.append(joined)
        else:
            for axis in axes:
                context.freeze(axis, "pooling over the channels")
            result.append(SPATIAL)
    return [tuple(result)] * len(context.equation.outputs)


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """A running sum sees every position before it."""
    context.freeze(operands[0][context.equation.params["axis"]], "running sum over the channels")
    return list(operands)


@rule("sort")
def sort(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Sorting moves positions; the other axes pass."""
    dimension = context.equation.params["dimension"]
    for operand in operands:
        context.freeze(operand[dimension], "sorted along the channels")
    tied = elementwise_axes(context, operands)
    return [tied] * len(context.equation.outputs)


def elementwise_axes(context: Context, operands: Sequence[AxisLabels]) -> AxisLabels:
    """Axes of operands of one shape, tied."""
    joined = operands[0]
    for operand in operands[1:]:
        joined = tuple(context.tie(a, b) for a, b in zip(joined, operand))
    return joined


@rule("iota", "random_bits", "random_gamma", "rng_uniform", "empty", "empty2")
def from_nowhere(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Arrays made from nothing: their positions follow what they are combined with."""
    return [context.fresh(context.out_shape(i)) for i in range(len(context.equation.outputs))]


@rule(
    "random_wrap", "random_unwrap", "random_seed", "random_fold_in", "random_split", "threefry2x32"
)
def keys(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Random keys are no channels."""
    del operands
    fixed = Fixed(Reason("random key"))
    return [
        tuple(fixed for _ in context.out_shape(i)) for i in range(len(context.equation.outputs))
    ]


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
            context.freeze(axis, "cut at a place that is only known when the net runs")
            result.append(Fixed(context.reason("part of a dynamic slice")))
            if update:
                context.tie(operands[1][position], result[-1])
                result[-1] = axis
    return [tuple(result)]

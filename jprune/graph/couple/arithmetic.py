"""Rules of primitives that compute: elementwise functions, contractions, reductions, windows."""

from collections.abc import Sequence
from typing import TypeAlias

from jax.lax import ConvDimensionNumbers

from jprune.graph.couple.labels import SPATIAL, UNIT, Axis, AxisLabels, Fixed, Reason
from jprune.graph.couple.rules import Context, rule

Pair: TypeAlias = tuple[Sequence[int], Sequence[int]]
DotDimensionNumbers: TypeAlias = tuple[Pair, Pair]
"""Contracted axes and batch axes, each for both operands."""
ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos
    cosh device_put digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt imag
    integer_pow igamma igammac is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min
    mul mulhi name
    ne neg nextafter not one_minus_square optimization_barrier or polygamma polynomial
    population_count pow pvary real
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
    shapes = [context.in_shape(number) for number in range(len(operands))]
    # x + b with x [n, c] and b [1, c]: c of one is c of the other; the axis of length 1 must
    # stay.
    for position, length in enumerate(context.out_shape()):
        joined: Axis | None = None
        for shape, operand in zip(shapes, operands):
            if not operand:
                continue
            axis = operand[position]
            if shape[position] != length:
                context.freeze(axis, "a single channel that is broadcast over many")
            elif joined is None:
                joined = axis
            else:
                joined = context.tie(joined, axis)
        result.append(UNIT if joined is None else joined)
    return [tuple(result)]


@rule("conv_general_dilated")
def convolution(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Ties the kernel's input axis to the activation; the output has the kernel's output labels.

    With feature groups, rows (whole groups) and columns (the same channel of every group) can go.
    """
    params, labels = context.equation.params, context.labels
    data, kernel = operands
    numbers: ConvDimensionNumbers = params["dimension_numbers"]
    # Specs are (batch, channels, window...) of the data and (outputs, inputs, window...) of the
    # kernel, whatever their layout: NHWC and OIHW need no case of their own.
    for operand, places in ((data, numbers.lhs_spec), (kernel, numbers.rhs_spec)):
        for position in places[2:]:
            labels.freeze(operand[position], SPATIAL.reason)
    batch, channels = data[numbers.lhs_spec[0]], data[numbers.lhs_spec[1]]
    outputs, inputs = kernel[numbers.rhs_spec[0]], kernel[numbers.rhs_spec[1]]
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
    data_shape, kernel_shape = context.in_shape(0), context.in_shape(1)
    numbers: ConvDimensionNumbers = context.equation.params["dimension_numbers"]
    # out[(g, o)] = sum over i of kernel[i, (g, o)] data[(g, i)]: both channel axes are rows g of
    # columns.
    per_group = kernel_shape[numbers.rhs_spec[1]]
    out_per_group = kernel_shape[numbers.rhs_spec[0]] // groups
    whole_in = context.labelled(channels, data_shape[numbers.lhs_spec[1]])
    whole_out = context.labelled(outputs, groups * out_per_group)
    rows = labels.fresh(groups)
    # Depthwise: a row is one channel of the data, and goes with it.
    if per_group == 1:
        context.freeze(inputs, "the only input channel of every group")
        labels.tie(rows, whole_in)
    else:
        context.product(whole_in.reshape(groups, per_group), (rows, inputs))
    # One output a group: it is the row.
    if out_per_group == 1:
        labels.tie(whole_out, rows)
    else:
        # Else an output goes with its whole group, or with output o of every group: an array that
        # is dense again has as many outputs in each group.
        columns = labels.fresh(out_per_group)
        context.product(whole_out.reshape(groups, out_per_group), (rows, columns))
    return whole_out


@rule("dot_general")
def dot_general(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Ties contracted axes and batch axes."""
    numbers: DotDimensionNumbers = context.equation.params["dimension_numbers"]
    (left_in, right_in), (left_batch, right_batch) = numbers
    left, right = operands
    for one, other in zip(left_in, right_in):
        context.tie(left[one], right[other])
    batch = [context.tie(left[i], right[j]) for i, j in zip(left_batch, right_batch)]
    # Results are ordered: batch axes, free axes of the left operand, free axes of the right one.
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
    """The axes that are left. Whether the others may lose channels is asked in `zeros.py`."""
    name = context.equation.name
    axes: tuple[int, ...] = context.equation.params["axes"]
    # argmax gives the number of a channel: with fewer channels the numbers change.
    for axis in axes if name.startswith("arg") else ():
        context.freeze(operands[0][axis], f"{name} over the channels gives their numbers")
    return [tuple(axis for position, axis in enumerate(operands[0]) if position not in axes)]


COLLECTIVES = "psum pmax pmin".split()


@rule(*COLLECTIVES)
def collective(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Over the examples of a `vmap` with a named axis: the axis has a number by then."""
    name = context.equation.name
    axes = [axis for axis in context.equation.params["axes"] if isinstance(axis, int)]
    for operand in operands:
        for axis in axes:
            context.reduce(operand[axis], f"{name} over the channels, without weights")
    return [
        tuple(axis for position, axis in enumerate(operand) if position not in axes)
        for operand in operands
    ]


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
        # A window of one position, step 1, no padding: the axis is passed on.
        if (length, strides[position], tuple(padding[position])) == (1, 1, (0, 0)):
            result.append(context.tie_all(axes))
        else:
            for axis in axes:
                context.freeze(axis, "pooling over the channels")
            result.append(SPATIAL)
    return [tuple(result)] * len(context.equation.outputs)


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """A running sum sees every position before it."""
    axis: int = context.equation.params["axis"]
    context.freeze(operands[0][axis], "running sum over the channels")
    return list(operands)


@rule("sort")
def sort(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Sorting moves positions; the other axes pass."""
    dimension: int = context.equation.params["dimension"]
    for operand in operands:
        context.freeze(operand[dimension], "sorted along the channels")
    tied = tuple(context.tie_all(axes) for axes in zip(*operands))
    return [tied] * len(context.equation.outputs)


@rule("top_k")
def top_k(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Along one axis the result has places of an order; the other axes pass."""
    along: int = context.equation.params["axis"]
    (axes,) = operands
    context.freeze(axes[along], "sorted along the channels")
    order = Fixed(context.reason("places of an order"))
    result = tuple(order if axis == along else labels for axis, labels in enumerate(axes))
    return [result, result]


@rule("iota", "random_bits", "random_gamma", "rng_uniform", "empty", "empty2")
def from_nowhere(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Arrays made from nothing: their positions follow what they are combined with."""
    return [context.fresh(context.out_shape(i)) for i in range(len(context.equation.outputs))]


KEYS = """
    random_clone random_fold_in random_seed random_split random_unwrap random_wrap threefry2x32
""".split()
RANDOM = {*KEYS, "random_bits", "random_gamma"}
"""What random keys go through: a leaf behind these is no weight."""


@rule(*KEYS)
def keys(context: Context, operands: Sequence[AxisLabels]) -> list[AxisLabels]:
    """Random keys are no channels, and neither are the words that they are made of."""
    for axis in (axis for operand in operands for axis in operand):
        context.freeze(axis, "random key")
    fixed = Fixed(Reason("random key"))
    return [
        tuple(fixed for _ in context.out_shape(i)) for i in range(len(context.equation.outputs))
    ]

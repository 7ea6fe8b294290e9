"""Depthwise convolutions as shifted multiply-adds, which CPUs run many times faster.

XLA has no depthwise convolution of its own on CPUs. The same sum, written out as one multiply-add
per position of the window, becomes a single loop over contiguous channels:

    out[n, p, (c, m)] = sum_t  padded[n, stride * p + dilation * t, c] * kernel[t, c, m]
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jprune.jaxprs import NESTED, REMAT, Equation, Program, bind, program_of

Function = Callable[..., Any]
MAXIMUM_TAPS = 64
"""Windows of more positions (over 8x8) stay convolutions: the gradient of so many multiply-adds
takes seconds to compile and is no faster."""


def shift_depthwise(fn: Function, platform: str | None = None) -> Function:
    """The same function, its depthwise convolutions rewritten where that is faster: on CPUs.

    A convolution is depthwise if every channel is a feature group of its own: any multiplier,
    stride, dilation (of the window or of the data), padding, number of spatial axes and layout.
    Those inside `jit`, `checkpoint`, control flow and functions with derivatives of their own are
    rewritten too; such functions keep their derivatives. All other equations are run as they are,
    and so are windows of more than `MAXIMUM_TAPS` positions.

    The function is traced anew for every call, so wrap it in `jax.jit`. Rewrite first and
    differentiate then, `jax.grad(shift_depthwise(loss))`: the weight gradient of a depthwise
    convolution is another kind of convolution, which is not recognised.

    Args:
        fn: any function of arrays, dense or slim.
        platform: where the result will run, `"cpu"`, `"gpu"` or `"tpu"`; None takes JAX's default
            backend when the function is called. On other platforms than `"cpu"` nothing is
            rewritten. Name it when exporting for another platform than this one: a rewritten net
            is right there too, but slower.

    Returns:
        `fn'` with the arguments and results of `fn`.

    Example:
        >>> import jax.numpy as jnp
        >>> def fn(kernel, x):
        ...     layout = ("NWC", "WIO", "NWC")
        ...     return jax.lax.conv_general_dilated(
        ...         x, kernel, (1,), "SAME", dimension_numbers=layout, feature_group_count=2)
        >>> kernel, x = jnp.ones((3, 1, 2)), jnp.arange(8.0).reshape(1, 4, 2)
        >>> shift_depthwise(fn, platform="cpu")(kernel, x)[0, :, 0]
        Array([ 2.,  6., 12., 10.], dtype=float32)
        >>> "conv" in str(jax.make_jaxpr(shift_depthwise(fn, platform="cpu"))(kernel, x))
        False
    """

    def shifted(*args: Any, **kwargs: Any) -> Any:
        if (platform or jax.default_backend()) != "cpu":
            return fn(*args, **kwargs)
        return _rewritten(lambda args, kwargs: fn(*args, **kwargs))(args, kwargs)

    return shifted


def _rewritten(fn: Function) -> Function:
    """`shift_depthwise` for a function that is known to run on a CPU."""

    def rewritten(*args: Any) -> Any:
        program, output = program_of(fn, *args)
        # The function itself, not its program: nothing of it is to change then, error messages
        # included.
        if not _has_depthwise(program):
            return fn(*args)
        results = _run(program, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(output), results)

    return rewritten


def _run(program: Program, inputs: Sequence[Any]) -> list[Any]:
    """Runs a program, its depthwise convolutions rewritten."""
    values: dict[int, Any] = {**program.constants, **dict(zip(program.inputs, inputs))}
    for equation in program.equations:
        operands = [values[value] for value in equation.inputs]
        results = _equation(program, equation, operands)
        values.update(zip(equation.outputs, results))
    return [values[value] for value in program.outputs]


def _equation(program: Program, equation: Equation, operands: Sequence[Any]) -> list[Any]:
    """Results of one equation."""
    if _is_depthwise(program, equation):
        aval = program.avals[equation.outputs[0]]
        return [_shifted_sum(equation.params, operands[0], operands[1], aval)]
    if not any(_has_depthwise(body) for body in equation.inner):
        return bind(equation, operands)
    if equation.name == "custom_jvp_call":
        return _custom_jvp(equation)(*operands)
    if equation.name.startswith("custom_vjp_call"):
        return _custom_vjp(equation)(*operands)
    if equation.name in REMAT:
        body, params = equation.inner[0], equation.params
        again = jax.checkpoint(
            lambda *xs: _run(body, xs), prevent_cse=params["prevent_cse"], policy=params["policy"]
        )
        return again(*operands)
    return _control_flow(equation, operands)


def _control_flow(equation: Equation, operands: Sequence[Any]) -> list[Any]:
    """`scan`, `while` and `cond` with rewritten bodies."""
    bodies = iter([_closed(body) for body in equation.inner])
    params = dict(equation.params)
    for key in NESTED[equation.name]:
        # `cond` has a tuple of bodies, the loops one under each key.
        held = params[key]
        params[key] = tuple(next(bodies) for _ in held) if key == "branches" else next(bodies)
    return bind(equation, operands, params)


def _closed(body: Program) -> Any:
    """A rewritten body as a jaxpr."""
    shapes = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
        for aval in (body.avals[value] for value in body.inputs)
    ]
    return jax.make_jaxpr(lambda *xs: _run(body, xs))(*shapes)


def _custom_jvp(equation: Equation) -> Function:
    """The rewritten function with the derivative that it came with, rewritten as well."""
    body = equation.inner[0]
    whole = lambda *xs: bind(equation, xs)
    function = jax.custom_jvp(lambda *xs: _run(body, xs))
    # `jax.jvp` of the whole function calls the rule that it came with; what that computes is
    # rewritten too.
    push = _rewritten(lambda primals, tangents: jax.jvp(whole, primals, tangents))
    function.defjvp(push)
    return function


def _custom_vjp(equation: Equation) -> Function:
    """As `_custom_jvp`; what the function saves for its backward rule is a tree of arrays."""
    body = equation.inner[0]
    whole = lambda *xs: bind(equation, xs)
    function = jax.custom_vjp(lambda *xs: _run(body, xs))
    forward = _rewritten(lambda *xs: jax.vjp(whole, *xs))
    backward = lambda pull, cotangents: _rewritten(pull)(cotangents)
    function.defvjp(forward, backward)
    return function


def _has_depthwise(program: Program) -> bool:
    return any(
        _is_depthwise(program, equation) or any(map(_has_depthwise, equation.inner))
        for equation in program.equations
    )


def _is_depthwise(program: Program, equation: Equation) -> bool:
    if equation.name != "conv_general_dilated":
        return False
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    data, kernel = (program.shape(value) for value in equation.inputs)
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    # As many groups as channels: every filter reads one channel.
    return 1 < groups == data[numbers.lhs_spec[1]] and taps <= MAXIMUM_TAPS


def _shifted_sum(params: dict[str, Any], data: Any, kernel: Any, aval: Any) -> Any:
    """One depthwise convolution in the layout of its data.

    Args:
        params: of the convolution.
        data: array, its channels `c` on any axis.
        kernel: array of `c * m` filters with one input channel.
        aval: shape and type of the result.
    """
    numbers, channels = params["dimension_numbers"], params["feature_group_count"]
    channel_axis, spatial = numbers.lhs_spec[1], numbers.lhs_spec[2:]
    lengths = [aval.shape[axis] for axis in numbers.out_spec[2:]]
    # XLA's convolution of half-precision arrays also sums in single precision.
    inexact = jnp.issubdtype(aval.dtype, jnp.inexact)
    work = jnp.promote_types(aval.dtype, jnp.float32) if inexact else aval.dtype
    window = [kernel.shape[axis] for axis in numbers.rhs_spec[2:]]
    taps = _taps(numbers, kernel.astype(work), channels)
    padded = _padded(params, data.astype(work), spatial)
    # A new axis behind the channels holds the multiplier.
    side = [channels if axis == channel_axis else 1 for axis in range(data.ndim)]
    side.insert(channel_axis + 1, taps.shape[2])
    total: Any = 0
    for number, place in enumerate(itertools.product(*map(range, window))):
        part = padded
        for axis, position, length, stride, dilation in zip(
            spatial, place, lengths, params["window_strides"], params["rhs_dilation"]
        ):
            # positions of the window at tap t: dilation t, dilation t + stride, ...: as many as the
            # result has
            start = position * dilation
            stop = start + (length - 1) * stride + 1
            part = jax.lax.slice_in_dim(part, start, stop, stride, axis)
        weights = jax.lax.index_in_dim(taps, number, 0, keepdims=False).reshape(side)
        # out[n, p, (c, m)] += padded[n, stride p + dilation t, c] kernel[t, c, m]
        total = total + jnp.expand_dims(part, channel_axis + 1) * weights
    return _in_output_layout(numbers, total, aval)


def _taps(numbers: Any, kernel: Any, channels: int) -> Any:
    """[positions of the window, channels, multiplier] from a kernel of any layout."""
    out_axis, in_axis, *spatial = numbers.rhs_spec
    taps = math.prod(kernel.shape[axis] for axis in spatial)
    order = (*spatial, in_axis, out_axis)
    # outputs of a group stand side by side: (c, m), as in the formula above
    return kernel.transpose(order).reshape(taps, channels, kernel.shape[out_axis] // channels)


def _padded(params: dict[str, Any], data: Any, spatial: Sequence[int]) -> Any:
    """The data with its padding, and with zeros between positions if the data are dilated."""
    config = [(0, 0, 0)] * data.ndim
    for axis, (low, high), dilation in zip(spatial, params["padding"], params["lhs_dilation"]):
        config[axis] = (low, high, dilation - 1)
    return jax.lax.pad(data, jnp.zeros((), data.dtype), config)


def _in_output_layout(numbers: Any, total: Any, aval: Any) -> Any:
    """Merges channels and multiplier, and moves the axes to where the convolution has them."""
    shape = [0] * len(aval.shape)
    order = [0] * len(aval.shape)
    # `total` has the layout of the data, with (c, m) where it has channels.
    for source, target in zip(numbers.lhs_spec, numbers.out_spec):
        shape[source] = aval.shape[target]
        order[target] = source
    return total.reshape(shape).transpose(order).astype(aval.dtype)

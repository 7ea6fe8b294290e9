"""A contraction as a window that slides over positions: helpers that leaf types share.

A kernel [window..., inputs, outputs] is seen as a matrix [taps, outputs]. A tap is a pair of a
place in the window and an input channel; a dense kernel [inputs, outputs] has a window of no axes.
Contractions come here rewritten for this order (`layout.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune.forms.layout import kernel_axes
from jprune.jaxprs import Equation, program_of


class Static:
    """Static integers of a leaf type, compared and hashed by value.

    Static parts of a pytree are keys of jit's cache, and NumPy arrays can be neither hashed nor
    compared as one.
    """

    def __init__(self, values: Any):
        self.values = np.asarray(values)
        self.key = (self.values.shape, self.values.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def static(values: Any) -> Static:
    """Flags as static values of a leaf type."""
    return values if isinstance(values, Static) else Static(np.asarray(values, bool))


def flags(places: Sequence[int], count: int) -> np.ndarray:
    """Bool [count], True at these places."""
    result = np.zeros(count, bool)
    result[np.asarray(places, int)] = True
    return result


class Slide(NamedTuple):
    """Data with channels last, padded, and how the window moves over it.

    Attributes:
        data: [batch, positions..., channels]; for a dense kernel [..., channels].
        strides: of the window, per position axis.
        dilation: of the window, per position axis.
    """

    data: jax.Array
    strides: Sequence[int]
    dilation: Sequence[int]


def plain_kernels(
    fn: Callable[..., Any], variables: Any, *args: Any, casts: bool = False, grouped: bool = False
) -> dict[str, tuple[int, ...]]:
    """The leaves that are read by plain contractions alone, as their kernel, all in one layout.

    A kernel may be transposed before it is read.

    Args:
        fn: the function.
        variables: its first argument; shapes are enough.
        *args: its other arguments.
        casts: whether a kernel may be cast to another type before it is read.
        grouped: whether convolutions with feature groups count as plain.

    Returns:
        {path: axes of the leaf as (window..., inputs, outputs)}.

    Example:
        >>> fn = lambda v, x: jnp.maximum(v["a"] @ x, 0) @ v["b"]
        >>> plain_kernels(fn, {"a": jnp.ones((5, 3)), "b": jnp.ones((5, 2))}, jnp.ones(3))
        {'a': (1, 0), 'b': (0, 1)}
    """
    program, _ = program_of(fn, variables, *args)
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    # {a leaf, transposed or cast: (number of the leaf, which axis of it every axis is)}
    views = {
        value: (number, tuple(range(len(program.shape(value)))))
        for number, value in enumerate(program.inputs[: len(paths)])
    }
    readers: list[list[tuple[int, ...] | None]] = [[] for _ in paths]
    for equation in program.equations:
        for operand, value in enumerate(equation.inputs):
            if value not in views:
                continue
            number, order = views[value]
            if equation.name == "transpose":
                order = tuple(order[axis] for axis in equation.params["permutation"])
                views[equation.outputs[0]] = (number, order)
            elif casts and equation.name == "convert_element_type":
                views[equation.outputs[0]] = (number, order)
            else:
                axes = kernel_axes(equation, operand, len(order), grouped)
                readers[number].append(axes and tuple(order[axis] for axis in axes))
    returned = {views[value][0] for value in program.outputs if value in views}
    layouts = {path: set(readers[n]) for n, path in enumerate(paths) if n not in returned}
    return {
        path: axes
        for path, of_leaf in layouts.items()
        if len(of_leaf) == 1 and (axes := of_leaf.pop()) is not None
    }


def channel_axes(equation: Equation) -> tuple[int, int]:
    """Channel axis of data and of result, for a plain contraction of data with a kernel."""
    numbers = equation.params["dimension_numbers"]
    if equation.name == "conv_general_dilated":
        return numbers.lhs_spec[1], numbers.out_spec[1]
    return numbers[0][0][0], -1


def slide_over(x: jax.Array, equation: Equation) -> Slide:
    """The data of a plain contraction, channels last, padded and dilated with zeros."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    if equation.name == "dot_general":
        return Slide(jnp.moveaxis(x, numbers[0][0][0], -1), (), ())
    batch, channels, *places = numbers.lhs_spec
    data = jnp.transpose(x, (batch, *places, channels))
    # Dilation of the data puts d - 1 zeros between neighbours; negative edges crop.
    inside = [d - 1 for d in params["lhs_dilation"]]
    edges = [(low, high, gap) for (low, high), gap in zip(params["padding"], inside)]
    data = jax.lax.pad(data, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return Slide(data, params["window_strides"], params["rhs_dilation"])


def patches(x: jax.Array, equation: Equation, taps: np.ndarray) -> jax.Array:
    """The patch matrix of some taps: the number that each of them reads at every output position.

    Args:
        x: the data of the contraction.
        equation: the contraction.
        taps: bool [window..., channels].

    Returns:
        [batch, output positions..., taps that are True], in row-major order of the taps.
    """
    slide = slide_over(x, equation)
    columns = [
        jnp.take(_strided(slide, place, taps.shape[:-1]), np.flatnonzero(channels), axis=-1)
        for place, channels in _places(taps)
    ]
    return jnp.concatenate(columns, axis=-1)


def _places(taps: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """(place in the window, bool [channels]) where at least one channel is kept."""
    for place in np.ndindex(*taps.shape[:-1]):
        if taps[place].any():
            yield place, taps[place]


def _strided(slide: Slide, place: Sequence[int], window: Sequence[int]) -> jax.Array:
    """The data under one place of the window, at every output position."""
    data, spatial = slide.data, range(len(window))
    if not window:
        return data
    # A window of w taps at dilation d spans (w - 1) d + 1 pixels. Tap i reads the pixels
    # i d, i d + s, ..., i d + last, where last is the largest multiple of the stride s that fits.
    # Example: 7 pixels, w = 3, d = 1, s = 2: span 3, last = 4; tap 1 reads pixels 1, 3, 5.
    spans = [(window[axis] - 1) * slide.dilation[axis] + 1 for axis in spatial]
    lasts = [(data.shape[a + 1] - spans[a]) // slide.strides[a] * slide.strides[a] for a in spatial]
    starts = [place[axis] * slide.dilation[axis] for axis in spatial]
    stops = [start + last + 1 for start, last in zip(starts, lasts)]
    return jax.lax.slice(
        data, (0, *starts, 0), (data.shape[0], *stops, data.shape[-1]), (1, *slide.strides, 1)
    )


def precision_of(equation: Equation) -> dict[str, Any]:
    """Precision and result type of a contraction, as arguments of `jnp.matmul` and its like."""
    names = ("precision", "preferred_element_type")
    return {name: equation.params[name] for name in names}


def restore_layout(result: jax.Array, equation: Equation) -> jax.Array:
    """[batch, positions..., outputs] transposed to the layout of the equation's result."""
    if equation.name == "dot_general":
        return result
    batch, channels, *places = equation.params["dimension_numbers"].out_spec
    # order[i] is where axis i of the result goes; transpose wants where each axis comes from.
    order = (batch, *places, channels)
    return jnp.transpose(result, tuple(int(axis) for axis in np.argsort(order)))


def scattered(part: jax.Array, chosen: np.ndarray) -> jax.Array:
    """[..., chosen] put at the chosen places of zeros [..., all]; `chosen` is bool [all]."""
    if chosen.all():
        return part
    whole = jnp.zeros((*part.shape[:-1], chosen.size), part.dtype)
    return whole.at[..., np.flatnonzero(chosen)].set(part)

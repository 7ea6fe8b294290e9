"""Kernels in any layout: which of their axes are the window, the inputs and the outputs.

Forms hold a kernel in one order, [window..., inputs, outputs], and with it its own `axes`:
`kernel.transpose(axes)` is in that order. Libraries write kernels otherwise ([outputs, inputs,
window...] in Equinox), and contractions say by their dimension numbers what each axis does. So
`applied` rewrites a contraction for the one order, and no form looks at a layout.
"""

import copy
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.jaxprs import Equation

Axes = tuple[int, ...] | None
"""Axes of a kernel as (window..., inputs, outputs); None: they stand in this order."""


def as_axes(axes: Sequence[int] | None) -> Axes:
    """Axes as a form stores them: None where they stand in order."""
    order = None if axes is None else tuple(int(axis) for axis in axes)
    return None if order is None or order == tuple(range(len(order))) else order


def in_order(kernel: Any, axes: Axes) -> Any:
    """A kernel, or a mask of it, as [window..., inputs, outputs]."""
    return kernel if axes is None else kernel.transpose(axes)


def as_it_stands(kernel: Any, axes: Axes) -> Any:
    """The inverse of `in_order`.

    Example:
        >>> kernel = np.ones((7, 5, 3, 2))  # [outputs, inputs, window...]
        >>> ordered = in_order(kernel, (2, 3, 1, 0))
        >>> ordered.shape, as_it_stands(ordered, (2, 3, 1, 0)).shape
        ((3, 2, 5, 7), (7, 5, 3, 2))
    """
    return kernel if axes is None else kernel.transpose(_back(axes))


def shape_of(ordered: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """The kernel's own shape, from that of [window..., inputs, outputs]."""
    return tuple(ordered) if axes is None else tuple(ordered[place] for place in _back(axes))


def turned(leaf: Any, permutation: Sequence[int]) -> Any:
    """A form of the kernel with its axes permuted: what `transpose` makes of it."""
    axes = leaf.axes or range(len(permutation))
    result = copy.copy(leaf)
    # Axis a of the kernel is axis permutation.index(a) of the transposed one.
    result.axes = as_axes([tuple(permutation).index(axis) for axis in axes])
    return result


def _back(axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(place) for place in np.argsort(axes))


def kernel_axes(
    equation: Equation, place: int, rank: int, grouped: bool = False
) -> tuple[int, ...] | None:
    """What the axes of an operand do, if the equation is a plain contraction with it as the kernel.

    Args:
        equation: any.
        place: which operand is the kernel.
        rank: of the kernel.
        grouped: whether a convolution with feature groups is plain too.

    Returns:
        Its axes as (window..., inputs, outputs). None if the equation is none that a form can run:
        a grouped convolution (unless `grouped`), a product with batch axes or several axes of a
        kind.
    """
    if equation.name == "conv_general_dilated":
        outputs, inputs, *window = equation.params["dimension_numbers"].rhs_spec
        alone = grouped or equation.params["feature_group_count"] == 1
        alone = alone and equation.params["batch_group_count"] == 1
        return (*window, inputs, outputs) if alone and place == 1 else None
    if equation.name != "dot_general" or rank != 2:
        return None
    contracted, batch = equation.params["dimension_numbers"]
    if len(contracted[place]) != 1 or tuple(map(tuple, batch)) != ((), ()):
        return None
    (inputs,) = contracted[place]
    return inputs, 1 - inputs


def applied(leaf: Any, x: jax.Array, equation: Equation, place: int) -> jax.Array:
    """A contraction of data with a kernel that is held in another form.

    Args:
        leaf: a leaf type. One that has `axes` runs the contraction rewritten for a kernel
            [window..., inputs, outputs]; another one runs it as it is. One that says
            `grouped = True` runs feature groups too.
        x: the data.
        equation: the contraction.
        place: which operand is the kernel.

    Raises:
        StructureError: the contraction is not plain, or reads the kernel in another layout than
            that of the form.
    """
    if not hasattr(leaf, "axes"):
        return leaf.apply(x, equation)
    rank = len(leaf.shape)
    axes = kernel_axes(equation, place, rank, getattr(leaf, "grouped", False))
    if axes is None or as_axes(axes) != leaf.axes:
        raise errors.StructureError(
            f"a leaf type met {equation.name} with dimension numbers "
            f"{equation.params.get('dimension_numbers')}; its kernel must be read as (window..., "
            f"inputs, outputs) = {leaf.axes or tuple(range(rank))}, without feature groups. Use "
            "leaf.dense() for this layer."
        )
    result = leaf.apply(x, _in_order(equation, place))
    # kernel x data has the outputs first, data x kernel last.
    first = equation.name == "dot_general" and place == 0
    return jnp.moveaxis(result, -1, 0) if first else result


def _in_order(equation: Equation, place: int) -> Equation:
    """A plain contraction, of data with a kernel [window..., inputs, outputs]."""
    params = dict(equation.params)
    numbers = params["dimension_numbers"]
    if equation.name == "conv_general_dilated":
        rank = len(numbers.rhs_spec)
        # rhs_spec is (output axis, input axis, window axes...) of the kernel.
        spec = (rank - 1, rank - 2, *range(rank - 2))
        params["dimension_numbers"] = numbers._replace(rhs_spec=spec)
        return equation._replace(params=params)
    (read,) = numbers[0][1 - place]
    params["dimension_numbers"] = (((read,), (0,)), ((), ()))
    if place == 0 and isinstance(params["precision"], tuple):
        params["precision"] = params["precision"][::-1]
    return equation._replace(params=params)

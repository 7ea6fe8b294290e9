"""Leaf types: a kernel held in another form, which slim nets execute as it is.

A leaf type stands where an array stood in the variables. `slim` hands it every contraction in
which that array was the kernel; anything else that the net does with the array sees `dense()`. To
make one, write a pytree with `apply`, `dense`, `shape` and `dtype`, and wrap the slim variables'
leaf in it.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.graph.jaxprs import Equation, bind


@runtime_checkable
class LeafType(Protocol):
    """A kernel in another form."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that it stands for."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of the array that it stands for."""
        ...

    def apply(self, x: jax.Array, equation: Equation) -> jax.Array:
        """The contraction `equation` of data `x` with this kernel."""
        ...

    def dense(self) -> jax.Array:
        """The array that it stands for."""
        ...


def is_leaf_type(node: Any) -> bool:
    """Whether a node of a tree is a leaf type (and no array)."""
    # Asked of every leaf of every tree: the quick question first.
    return hasattr(node, "dense") and isinstance(node, LeafType) and not hasattr(node, "at")


class _Frozen:
    """Static integers beside a leaf type's arrays, compared by value."""

    def __init__(self, values: Any):
        self.values = np.asarray(values)
        self.key = (self.values.shape, self.values.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@jax.tree_util.register_pytree_node_class
class Thin:
    """A convolution kernel of which whole columns are gone: taps (h, w, c) of all filters.

    The contraction gathers the kept taps only and multiplies a patch matrix of that many columns
    (Lebedev and Lempitsky 2016, arXiv 1506.02515).

    Args:
        weights: [kept taps, filters].
        taps: bool [h, w, c]; True where a tap is kept.

    Example:
        >>> kernel, taps = jnp.ones((3, 3, 2, 4)), np.arange(18).reshape(3, 3, 2) % 2 == 0
        >>> thin = Thin.of(kernel, taps)
        >>> thin.weights.shape, bool((thin.dense() == kernel * taps[..., None]).all())
        ((9, 4), True)
    """

    def __init__(self, weights: jax.Array, taps: Any):
        self.weights = weights
        self._taps = taps if isinstance(taps, _Frozen) else _Frozen(np.asarray(taps, bool))

    @classmethod
    def of(cls, kernel: jax.Array, taps: np.ndarray) -> "Thin":
        """The kept columns of a kernel [h, w, c, filters]."""
        if np.shape(taps) != kernel.shape[:-1] or not np.any(taps):
            raise errors.StructureError(
                f"taps of shape {np.shape(taps)}, {int(np.sum(taps))} of them kept, for a kernel "
                f"of shape {kernel.shape}: taps are bool {kernel.shape[:-1]} and keep at least one."
            )
        return cls(kernel[np.asarray(taps, bool)], taps)

    @property
    def taps(self) -> np.ndarray:
        """Bool [h, w, c]."""
        return self._taps.values

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense kernel."""
        return (*self.taps.shape, self.weights.shape[-1])

    @property
    def dtype(self) -> Any:
        """Of the weights."""
        return self.weights.dtype

    def dense(self) -> jax.Array:
        """[h, w, c, filters] with zeros where taps are gone."""
        return jnp.zeros(self.shape, self.dtype).at[self.taps].set(self.weights)

    def apply(self, x: jax.Array, equation: Equation) -> jax.Array:
        """Patches of the kept taps times the weights."""
        data, geometry = _channels_last(x, equation)
        columns = [
            jnp.take(_shifted(data, tap, geometry), np.flatnonzero(kept), axis=-1)
            for tap, kept in _window_taps(self.taps)
        ]
        result = jnp.concatenate(columns, axis=-1) @ self.weights
        return _as_before(result, equation)

    def tree_flatten(self) -> tuple[Any, Any]:
        """Weights are data, taps are static."""
        return (self.weights,), self._taps

    @classmethod
    def tree_unflatten(cls, static: Any, children: Sequence[Any]) -> "Thin":
        """Inverse of `tree_flatten`."""
        return cls(children[0], static)


@jax.tree_util.register_pytree_node_class
class Rows:
    """A kernel that reads some of its input channels and writes some of its output channels.

    Gather, contraction, scatter: for a row or column pattern that stands on one leaf alone, so
    that its neighbours keep their width.

    Args:
        kernel: [..., kept inputs, kept outputs].
        inputs: bool [inputs].
        outputs: bool [outputs].
    """

    def __init__(self, kernel: jax.Array, inputs: Any, outputs: Any):
        self.kernel = kernel
        self._inputs = inputs if isinstance(inputs, _Frozen) else _Frozen(np.asarray(inputs, bool))
        self._outputs = (
            outputs if isinstance(outputs, _Frozen) else _Frozen(np.asarray(outputs, bool))
        )

    @classmethod
    def of(cls, kernel: jax.Array, inputs: np.ndarray, outputs: np.ndarray) -> "Rows":
        """The kept part of a kernel [..., inputs, outputs]."""
        small = jnp.take(kernel, np.flatnonzero(inputs), axis=-2)
        return cls(jnp.take(small, np.flatnonzero(outputs), axis=-1), inputs, outputs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense kernel."""
        return (*self.kernel.shape[:-2], self._inputs.values.size, self._outputs.values.size)

    @property
    def dtype(self) -> Any:
        """Of the kernel."""
        return self.kernel.dtype

    def dense(self) -> jax.Array:
        """[..., inputs, outputs] with zeros elsewhere."""
        places = np.ix_(np.flatnonzero(self._inputs.values), np.flatnonzero(self._outputs.values))
        return jnp.zeros(self.shape, self.dtype).at[(..., *places)].set(self.kernel)

    def apply(self, x: jax.Array, equation: Equation) -> jax.Array:
        """Gather, contraction, scatter into zeros."""
        in_axis, out_axis = _channel_axes(equation)
        small = jnp.take(x, np.flatnonzero(self._inputs.values), axis=in_axis)
        part = jnp.moveaxis(bind(equation, (small, self.kernel))[0], out_axis, -1)
        whole = jnp.zeros((*part.shape[:-1], self._outputs.values.size), part.dtype)
        whole = whole.at[..., np.flatnonzero(self._outputs.values)].add(part)
        return jnp.moveaxis(whole, -1, out_axis)

    def tree_flatten(self) -> tuple[Any, Any]:
        """The kernel is data, the places are static."""
        return (self.kernel,), (self._inputs, self._outputs)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Sequence[Any]) -> "Rows":
        """Inverse of `tree_flatten`."""
        return cls(children[0], *static)


@jax.tree_util.register_pytree_node_class
class Factored:
    """A kernel as rotation, core, rotation.

    `kernel[..., c, f] = sum over i, o of left[c, i] core[..., i, o] right[o, f]`.

    For EigenDamage's eigenbasis (Wang et al. 2019, arXiv 1905.05934) and low-rank kernels.

    Args:
        left: [inputs, i].
        core: [..., i, o].
        right: [o, outputs].

    Example:
        >>> leaf = Factored(jnp.ones((3, 2)), jnp.ones((2, 1)), jnp.ones((1, 4)))
        >>> leaf.dense().shape
        (3, 4)
    """

    def __init__(self, left: jax.Array, core: jax.Array, right: jax.Array):
        self.left, self.core, self.right = left, core, right

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense kernel."""
        return (*self.core.shape[:-2], self.left.shape[0], self.right.shape[1])

    @property
    def dtype(self) -> Any:
        """Of the core."""
        return self.core.dtype

    def dense(self) -> jax.Array:
        """[..., inputs, outputs]."""
        return self.left @ self.core @ self.right

    def apply(self, x: jax.Array, equation: Equation) -> jax.Array:
        """Rotates the channels, contracts with the core, rotates back."""
        in_axis, out_axis = _channel_axes(equation)
        turned = jnp.moveaxis(jnp.moveaxis(x, in_axis, -1) @ self.left, -1, in_axis)
        part = bind(equation, (turned, self.core))[0]
        return jnp.moveaxis(jnp.moveaxis(part, out_axis, -1) @ self.right, -1, out_axis)

    def tree_flatten(self) -> tuple[Any, Any]:
        """All three factors are data."""
        return (self.left, self.core, self.right), None

    @classmethod
    def tree_unflatten(cls, static: Any, children: Sequence[Any]) -> "Factored":
        """Inverse of `tree_flatten`."""
        del static
        return cls(*children)


def _plain(equation: Equation) -> None:
    """Refuses contractions whose kernel is not [..., inputs, outputs] behind plain data.

    Raises:
        StructureError: a grouped convolution, or a kernel in another layout.
    """
    numbers = equation.params["dimension_numbers"]
    if equation.name == "conv_general_dilated":
        rank = len(numbers.rhs_spec)
        fits = numbers.rhs_spec[:2] == (rank - 1, rank - 2)
        fits &= equation.params["feature_group_count"] == 1 == equation.params["batch_group_count"]
    else:
        (_, right), batch = numbers
        fits = right == (0,) and batch == ((), ())
    if not fits:
        raise errors.StructureError(
            f"a leaf type met {equation.name} with dimension numbers {numbers}; its kernel must be "
            "[window..., inputs, outputs] without feature groups. Use leaf.dense() for this layer."
        )


def _channel_axes(equation: Equation) -> tuple[int, int]:
    """Channel axis of data and of result, for a plain contraction."""
    _plain(equation)
    numbers = equation.params["dimension_numbers"]
    if equation.name == "conv_general_dilated":
        return numbers.lhs_spec[1], numbers.out_spec[1]
    return numbers[0][0][0], -1


def _channels_last(x: jax.Array, equation: Equation) -> tuple[jax.Array, dict[str, Any]]:
    """Data [batch, positions..., channels], padded, and the geometry of the window."""
    _plain(equation)
    if equation.name == "dot_general":
        ((axis,), _), _ = equation.params["dimension_numbers"]
        return jnp.moveaxis(x, axis, -1), {"strides": (), "dilation": (), "kernel": ()}
    params, numbers = equation.params, equation.params["dimension_numbers"]
    batch, channels, *places = numbers.lhs_spec
    data = jnp.transpose(x, (batch, *places, channels))
    inside = [d - 1 for d in params["lhs_dilation"]]
    edges = [(low, high, gap) for (low, high), gap in zip(params["padding"], inside)]
    data = jax.lax.pad(data, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return data, {"strides": params["window_strides"], "dilation": params["rhs_dilation"]}


def _window_taps(taps: np.ndarray):
    """(position in the window, bool [channels]) where at least one channel is kept."""
    for tap in np.ndindex(*taps.shape[:-1]):
        if taps[tap].any():
            yield (tap, taps.shape[:-1]), taps[tap]


def _shifted(data: jax.Array, tap: Any, geometry: dict[str, Any]) -> jax.Array:
    """What one tap of the window sees at every output position."""
    place, window = tap
    if not window:
        return data
    start, stop, stride = [0], [data.shape[0]], [1]
    for axis, offset in enumerate(place):
        dilation, step = geometry["dilation"][axis], geometry["strides"][axis]
        span = (window[axis] - 1) * dilation + 1
        count = (data.shape[axis + 1] - span) // step + 1
        start.append(offset * dilation)
        stop.append(offset * dilation + (count - 1) * step + 1)
        stride.append(step)
    return jax.lax.slice(data, (*start, 0), (*stop, data.shape[-1]), (*stride, 1))


def _as_before(result: jax.Array, equation: Equation) -> jax.Array:
    """[batch, positions..., filters] in the layout that the equation has."""
    if equation.name == "dot_general":
        return result
    batch, channels, *places = equation.params["dimension_numbers"].out_spec
    order = (batch, *places, channels)
    return jnp.transpose(result, tuple(int(axis) for axis in np.argsort(order)))

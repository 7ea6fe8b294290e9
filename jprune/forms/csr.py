"""CSR: a kernel as a sparse matrix with a row per output, for any irregular pattern.

    out[n, p, f] = sum over j in row f of values[j] x[n, p * stride + tap_j, channel_j]

Park, Li, Wen, Tang, Li, Chen, Dubey, Faster CNNs with direct sparse convolutions and guided
pruning, 2017, arXiv 1608.01409 [11]. As there, the input is read in place, through offsets into
padded lines: on CPUs by a compiled kernel that XLA calls on its own buffers (`jprune.kernels`;
numba). Elsewhere, and without numba, XLA computes the same sums over the taps that at least one row
reads: this plain form runs on every backend, but is mostly slower than a dense convolution of the
masked kernel. Derivatives are those of the dense contraction.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors, kernels
from jprune.forms.layout import Axes, as_axes, as_it_stands, in_order, shape_of
from jprune.forms.slide import Static, patches, precision_of, restore_layout
from jprune.jaxprs import Equation, bind


@jax.tree_util.register_pytree_node_class
class CSR:
    """A kernel [window..., c, filters] as a sparse matrix [filters, window * c] in rows.

    Convolutions may have feature groups; c is then the number of inputs of a group.

    Args:
        values: [non-zeros], row after row.
        columns: int [non-zeros], positions among the taps (window..., c) in row-major order.
        pointers: int [filters + 1]; row f is `values[pointers[f]:pointers[f + 1]]`.
        window: (window..., c).
        axes: of the kernel that it stands for, as (window..., c, filters); None: in order.

    Example:
        >>> leaf = CSR.of(jnp.array([[0.0, 2.0], [-1.0, 0.0]]), np.array([[0, 1], [1, 0]], bool))
        >>> leaf.values.tolist(), leaf.columns.tolist(), leaf.pointers.tolist()
        ([-1.0, 2.0], [1, 0], [0, 1, 2])
    """

    grouped = True

    def __init__(
        self, values: jax.Array, columns: Any, pointers: Any, window: Any, axes: Axes = None
    ):
        self.values, self.axes = values, as_axes(axes)
        as_static = lambda numbers: numbers if isinstance(numbers, Static) else Static(numbers)
        self._columns, self._pointers, self._window = map(as_static, (columns, pointers, window))

    def __repr__(self) -> str:
        weights = int(np.prod(self.shape))
        return f"CSR({len(self.columns)} of {weights} weights, {self.dtype})"

    @classmethod
    def of(cls, kernel: jax.Array, mask: np.ndarray, axes: Axes = None) -> "CSR":
        """The kept weights of a kernel, its axes as `axes` says; the mask has its shape.

        Raises:
            StructureError: a mask of another shape, or one that keeps nothing.
        """
        mask = np.asarray(mask, bool)
        if mask.shape != kernel.shape or not mask.any():
            raise errors.StructureError(
                f"a mask of shape {mask.shape}, {int(mask.sum())} weights kept, for a kernel of "
                f"shape {kernel.shape}: the mask has its shape and keeps at least one weight."
            )
        kernel, mask = in_order(kernel, axes), in_order(mask, axes)
        # [filters, window * c]; np.nonzero goes through it row by row, which is the CSR order.
        by_row = mask.reshape(-1, mask.shape[-1]).T
        rows, columns = np.nonzero(by_row)
        values = kernel.reshape(by_row.shape[::-1])[columns, rows]
        pointers = np.concatenate([[0], np.cumsum(by_row.sum(axis=1))])
        return cls(values, columns, pointers, kernel.shape[:-1], axes)

    @classmethod
    def planned(cls, kernel: jax.Array, plan: Mapping[str, Any]) -> "CSR":
        """This form of a dense kernel, with the pattern that `plan` returned."""
        axes = as_axes(plan.get("axes"))
        shape = in_order(kernel, axes).shape
        mask = np.zeros((shape[-1], int(np.prod(shape[:-1]))), bool)
        mask[np.repeat(np.arange(len(mask)), np.diff(plan["pointers"])), plan["columns"]] = True
        return cls.of(kernel, as_it_stands(mask.T.reshape(shape), axes), axes)

    def plan(self) -> dict[str, Any]:
        """Which weights are kept, as plain data."""
        return {"columns": self.columns.tolist(), "pointers": self.pointers.tolist()}

    @property
    def columns(self) -> np.ndarray:
        """Int [non-zeros]: the tap of every weight."""
        return self._columns.values

    @property
    def pointers(self) -> np.ndarray:
        """Int [filters + 1]: where each filter's weights begin, and the end."""
        return self._pointers.values

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense kernel."""
        return shape_of(self._ordered, self.axes)

    @property
    def _ordered(self) -> tuple[int, ...]:
        """(window..., c, filters)."""
        return (*(int(n) for n in self._window.values), len(self.pointers) - 1)

    @property
    def dtype(self) -> Any:
        """Type of the values."""
        return self.values.dtype

    def dense(self) -> jax.Array:
        """The kernel with zeros elsewhere."""
        return as_it_stands(self._whole(self.values), self.axes)

    def _whole(self, values: jax.Array) -> jax.Array:
        """[window..., c, filters] with these values."""
        *window, filters = self._ordered
        matrix = jnp.zeros((int(np.prod(window)), filters), values.dtype)
        places = matrix.at[self.columns, self._rows]
        return places.set(values, unique_indices=True).reshape(self._ordered)

    @property
    def _rows(self) -> np.ndarray:
        """Int [non-zeros]: the filter of every weight."""
        return np.repeat(np.arange(len(self.pointers) - 1), np.diff(self.pointers))

    def _places(self, equation: Equation) -> np.ndarray:
        """Int [window axes + 1, non-zeros]: place in the window, and channel of the data."""
        *window, inputs, filters = self._ordered
        *place, channel = np.unravel_index(self.columns, (*window, inputs))
        group = self._rows // (filters // equation.params.get("feature_group_count", 1))
        return np.array([*place, channel + group * inputs])

    def apply(self, x: jax.Array, equation: Equation) -> jax.Array:
        """Output after output, the sum over its row; a filter without weights gives zeros."""
        native = _native(self, x, equation)
        plain = lambda x, values: self._plain(x, values, equation)
        if native is None:
            return plain(x, self.values)
        run = jax.custom_jvp(
            lambda x, values: jax.lax.platform_dependent(x, values, cpu=native, default=plain)
        )
        # The contraction is linear in either argument, and its derivatives are dense.
        product = lambda x, values: bind(equation, [x, self._whole(values)])[0]
        run.defjvps(
            lambda tangent, _, x, values: product(tangent, values),
            lambda tangent, _, x, values: product(x, tangent),
        )
        return run(x, self.values)

    def _plain(self, x: jax.Array, values: jax.Array, equation: Equation) -> jax.Array:
        """The sums as XLA can write them on every backend."""
        groups = equation.params.get("feature_group_count", 1)
        *window, inputs, _ = self._ordered
        # Patches are made of the used taps only: [used taps, batch, positions...].
        taps = np.zeros((*window, inputs * groups), bool)
        columns = np.ravel_multi_index(tuple(self._places(equation)), taps.shape)
        used, column = np.unique(columns, return_inverse=True)
        taps.reshape(-1)[used] = True
        read = jnp.moveaxis(patches(x, equation, taps), -1, 0)
        # Rows padded to equal length, so that one program serves all: padding has the value 0.
        counts = np.diff(self.pointers)
        place = self.pointers[:-1, None] + np.arange(counts.max())
        inside = np.arange(counts.max()) < counts[:, None]
        place = np.where(inside, place, 0)
        padded = jnp.where(inside, values[place], 0)

        def row(item: tuple[jax.Array, jax.Array]) -> jax.Array:
            index, weights = item
            # out[n, p, f] = sum over j in row f of values[j] x[n, p * stride + tap_j, channel_j]
            return jnp.tensordot(weights, read[index], axes=1, **precision_of(equation))

        # Rematerialised: the backward pass would otherwise store a copy of the input per weight.
        result = jax.lax.map(jax.checkpoint(row), (column[place], padded))
        return restore_layout(jnp.moveaxis(result, 0, -1), equation)

    def tree_flatten(self) -> tuple[Any, Any]:
        """Values are data, the pattern is static."""
        return (self.values,), (self._columns, self._pointers, self._window, self.axes)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Sequence[Any]) -> "CSR":
        """Inverse of `tree_flatten`."""
        return cls(children[0], *static)


def _native(
    leaf: CSR, x: jax.Array, equation: Equation
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """The contraction by the compiled kernel, (x, values) -> result.

    None where the kernel cannot run: it is not installed or not wanted, the numbers are none of its
    types, or the window has three axes or more.
    """
    result = equation.params["preferred_element_type"]
    same = x.dtype == leaf.dtype and (result is None or result == x.dtype)
    if not same or str(x.dtype) not in kernels.DTYPES or not kernels.wanted():
        return None
    if equation.name == "dot_general":
        return _native_product(leaf, x, equation)
    return _native_convolution(leaf, x, equation) if len(leaf.shape) in (3, 4) else None


def _native_product(leaf: CSR, x: jax.Array, equation: Equation) -> Any:
    """A dense layer is a convolution of images of one pixel."""
    (read,) = equation.params["dimension_numbers"][0][0]
    others = [size for axis, size in enumerate(x.shape) if axis != read]
    shape = (int(np.prod(others)), x.shape[read], 1, 1)
    (channel,) = leaf._places(equation)
    taps = np.stack([np.zeros_like(channel), np.zeros_like(channel), channel])
    kernel = kernels.sparse_convolution(shape, taps, leaf.pointers, (1, 1))
    if kernel is None:
        return None

    def run(x: jax.Array, values: jax.Array) -> jax.Array:
        return kernel(jnp.moveaxis(x, read, -1).reshape(shape), values).reshape(*others, -1)

    return run


def _native_convolution(leaf: CSR, x: jax.Array, equation: Equation) -> Any:
    params = equation.params
    batch, channels, *spatial = params["dimension_numbers"].lhs_spec
    flat = len(spatial) == 1
    ones = lambda values, other: (other, *values) if flat else tuple(values)
    # What the kernel's padding cannot say is done before it: gaps in the data, and cropping.
    odd = max(params["lhs_dilation"]) > 1 or min(map(min, params["padding"])) < 0
    edges = [
        (low, high, gap - 1) for (low, high), gap in zip(params["padding"], params["lhs_dilation"])
    ]
    padding = ones([(0, 0)] * len(spatial) if odd else params["padding"], (0, 0))

    def prepared(x: jax.Array) -> jax.Array:
        images = jnp.transpose(x, (batch, channels, *spatial))
        if odd:
            zero = jnp.zeros((), x.dtype)
            images = jax.lax.pad(images, zero, [(0, 0, 0), (0, 0, 0), *edges])
        return images[:, :, None] if flat else images

    shape = jax.eval_shape(prepared, x).shape
    places = leaf._places(equation)
    taps = np.concatenate([np.zeros((1, places.shape[1]), int), places]) if flat else places
    window = ones(leaf._ordered[:-2], 1)
    strides = ones(params["window_strides"], 1)
    dilation = ones(params["rhs_dilation"], 1)
    kernel = kernels.sparse_convolution(
        shape, taps, leaf.pointers, window, strides=strides, padding=padding, dilation=dilation
    )
    if kernel is None:
        return None

    def run(x: jax.Array, values: jax.Array) -> jax.Array:
        result = kernel(prepared(x), values)
        result = result[:, :, 0] if flat else result
        return restore_layout(jnp.moveaxis(result, 1, -1), equation)

    return run

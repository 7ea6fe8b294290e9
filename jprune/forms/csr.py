"""CSR: a kernel as a sparse matrix with a row per output, for any irregular pattern.

    out[n, p, f] = sum over j in row f of values[j] x[n, p * stride + tap_j, channel_j]

Park, Li, Wen, Tang, Li, Chen, Dubey, Faster CNNs with direct sparse convolutions and guided
pruning, 2017, arXiv 1608.01409 [11]. There the input is read in place through offsets into padded
planes; here XLA computes the same sums over the taps that at least one row reads, so that the form
runs on every backend, in every layout, and has a gradient. A dense convolution of the masked kernel
is mostly faster on CPUs and GPUs: what the form surely saves is memory, with two numbers per
weight.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.forms.layout import Axes, as_axes, as_it_stands, in_order, shape_of
from jprune.forms.slide import Static, patches, precision_of, restore_layout
from jprune.jaxprs import Equation


@jax.tree_util.register_pytree_node_class
class CSR:
    """A kernel [window..., c, filters] as a sparse matrix [filters, window * c] in rows.

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
        *window, filters = self._ordered
        rows = np.repeat(np.arange(filters), np.diff(self.pointers))
        matrix = jnp.zeros((int(np.prod(window)), filters), self.dtype)
        whole = matrix.at[self.columns, rows].set(self.values).reshape(self._ordered)
        return as_it_stands(whole, self.axes)

    def apply(self, x: jax.Array, equation: Equation) -> jax.Array:
        """Output after output, the sum over its row; a filter without weights gives zeros."""
        # Patches are made of the used taps only: [used taps, batch, positions...].
        used, column = np.unique(self.columns, return_inverse=True)
        taps = np.zeros(self._ordered[:-1], bool)
        taps.reshape(-1)[used] = True
        inputs = jnp.moveaxis(patches(x, equation, taps), -1, 0)
        # Rows padded to equal length, so that one program serves all: padding has the value 0.
        counts = np.diff(self.pointers)
        place = self.pointers[:-1, None] + np.arange(counts.max())
        inside = np.arange(counts.max()) < counts[:, None]
        place = np.where(inside, place, 0)
        values = jnp.where(inside, self.values[place], 0)

        def row(item: tuple[jax.Array, jax.Array]) -> jax.Array:
            index, weights = item
            # out[n, p, f] = sum over j in row f of values[j] x[n, p * stride + tap_j, channel_j]
            return jnp.tensordot(weights, inputs[index], axes=1, **precision_of(equation))

        # Rematerialised: the backward pass would otherwise store a copy of the input per weight.
        result = jax.lax.map(jax.checkpoint(row), (column[place], values))
        return restore_layout(jnp.moveaxis(result, 0, -1), equation)

    def tree_flatten(self) -> tuple[Any, Any]:
        """Values are data, the pattern is static."""
        return (self.values,), (self._columns, self._pointers, self._window, self.axes)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Sequence[Any]) -> "CSR":
        """Inverse of `tree_flatten`."""
        return cls(children[0], *static)

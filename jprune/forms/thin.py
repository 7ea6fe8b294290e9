"""Thin: a kernel without some of its columns, each a tap of all filters."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.forms.layout import Axes, as_axes, as_it_stands, in_order, shape_of
from jprune.forms.slide import (
    flags,
    patches,
    precision_of,
    restore_layout,
    scattered,
    static,
)
from jprune.jaxprs import Equation


@jax.tree_util.register_pytree_node_class
class Thin:
    """A kernel without some of its columns: a column is a tap (h, w, c) of all filters.

    The contraction gathers only the kept taps, and multiplies a patch matrix of that many columns
    (Lebedev and Lempitsky 2016, arXiv 1506.02515). Whole filters may be removed too: their outputs
    are zeros.

    Args:
        weights: [kept taps, kept filters].
        taps: bool [window..., c]; True where a tap is kept.
        outputs: bool [filters]; all are kept if None.
        axes: of the kernel that it stands for, as (window..., c, filters); None: in order.

    Example:
        >>> kernel, taps = jnp.ones((3, 3, 2, 4)), np.arange(18).reshape(3, 3, 2) % 2 == 0
        >>> thin = Thin.of(kernel, taps)
        >>> thin.weights.shape, bool((thin.dense() == kernel * taps[..., None]).all())
        ((9, 4), True)
    """

    def __init__(self, weights: jax.Array, taps: Any, outputs: Any = None, axes: Axes = None):
        self.weights, self.axes = weights, as_axes(axes)
        self._taps = static(taps)
        self._outputs = static(np.ones(weights.shape[-1]) if outputs is None else outputs)

    def __repr__(self) -> str:
        taps, outputs = self.taps, self._outputs.values
        counts = f"{taps.sum()} of {taps.size} taps, {outputs.sum()} of {outputs.size} outputs"
        return f"Thin({counts}, {self.dtype})"

    @classmethod
    def of(
        cls,
        kernel: jax.Array,
        taps: np.ndarray,
        outputs: np.ndarray | None = None,
        axes: Axes = None,
    ) -> "Thin":
        """The kept columns of a kernel, its axes as `axes` says."""
        kernel = in_order(kernel, axes)
        if np.shape(taps) != kernel.shape[:-1] or not np.any(taps):
            raise errors.StructureError(
                f"taps of shape {np.shape(taps)}, {int(np.sum(taps))} of them kept, for a kernel "
                f"of shape {kernel.shape}: taps are bool {kernel.shape[:-1]} and keep at least one."
            )
        # A bool index over all axes but the last: [kept taps, filters], taps in row-major order.
        weights = kernel[np.asarray(taps, bool)]
        weights = weights if outputs is None else weights[:, np.asarray(outputs)]
        return cls(weights, taps, outputs, axes)

    @classmethod
    def planned(cls, kernel: jax.Array, plan: Mapping[str, Any]) -> "Thin":
        """This form of a dense kernel, with the pattern that `plan` returned."""
        axes = as_axes(plan.get("axes"))
        *window, filters = in_order(kernel, axes).shape
        taps = flags(plan["taps"], int(np.prod(window))).reshape(window)
        return cls.of(kernel, taps, flags(plan["outputs"], filters), axes)

    def plan(self) -> dict[str, Any]:
        """Which taps and outputs are kept, as plain data."""
        taps, outputs = self.taps.reshape(-1), self._outputs.values
        return {"taps": np.flatnonzero(taps).tolist(), "outputs": np.flatnonzero(outputs).tolist()}

    @property
    def taps(self) -> np.ndarray:
        """Bool [window..., c]."""
        return self._taps.values

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense kernel."""
        return shape_of((*self.taps.shape, self._outputs.values.size), self.axes)

    @property
    def dtype(self) -> Any:
        """Type of the weights."""
        return self.weights.dtype

    def dense(self) -> jax.Array:
        """The kernel with zeros at the removed taps."""
        filters = scattered(self.weights, self._outputs.values)
        whole = jnp.zeros((*self.taps.shape, filters.shape[-1]), self.dtype)
        return as_it_stands(whole.at[self.taps].set(filters), self.axes)

    def apply(self, x: jax.Array, equation: Equation) -> jax.Array:
        """Patches of the kept taps times the weights."""
        # [batch, positions..., kept taps] @ [kept taps, kept filters]
        columns = patches(x, equation, self.taps)
        result = jnp.matmul(columns, self.weights, **precision_of(equation))
        return restore_layout(scattered(result, self._outputs.values), equation)

    def tree_flatten(self) -> tuple[Any, Any]:
        """Weights are data, taps and outputs are static."""
        return (self.weights,), (self._taps, self._outputs, self.axes)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Sequence[Any]) -> "Thin":
        """Inverse of `tree_flatten`."""
        return cls(children[0], *static)

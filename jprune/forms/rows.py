"""Rows: a kernel that reads some of its inputs and writes some of its outputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.forms.layout import Axes, as_axes, as_it_stands, in_order, shape_of
from jprune.forms.slide import (
    channel_axes,
    flags,
    scattered,
    static,
)
from jprune.jaxprs import Equation, bind


@jax.tree_util.register_pytree_node_class
class Rows:
    """A kernel that reads some of its input channels and writes some of its output channels.

    It gathers channels, contracts, and scatters the result: for whole inputs or outputs pruned in
    one kernel alone, while the layers before and after it keep their widths.

    Args:
        kernel: [..., kept inputs, kept outputs].
        inputs: bool [inputs].
        outputs: bool [outputs].
        axes: of the kernel that it stands for, as (window..., inputs, outputs); None: in order.

    Example:
        >>> leaf = Rows.of(jnp.ones((3, 2)), np.array([True, False, True]), np.array([True, False]))
        >>> leaf.kernel.shape, leaf.dense().tolist()
        ((2, 1), [[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    """

    def __init__(self, kernel: jax.Array, inputs: Any, outputs: Any, axes: Axes = None):
        self.kernel, self.axes = kernel, as_axes(axes)
        self._inputs, self._outputs = static(inputs), static(outputs)

    def __repr__(self) -> str:
        sides = {"inputs": self._inputs.values, "outputs": self._outputs.values}
        counts = (f"{flags.sum()} of {flags.size} {side}" for side, flags in sides.items())
        return f"Rows({', '.join(counts)}, {self.dtype})"

    @classmethod
    def of(
        cls, kernel: jax.Array, inputs: np.ndarray, outputs: np.ndarray, axes: Axes = None
    ) -> "Rows":
        """The kept part of a kernel, its axes as `axes` says; masks are bool, True keeps."""
        kernel = in_order(kernel, axes)
        if (np.size(inputs), np.size(outputs)) != kernel.shape[-2:]:
            raise errors.StructureError(
                f"masks of {np.size(inputs)} inputs and {np.size(outputs)} outputs for a kernel of "
                f"shape {kernel.shape}: they are bool [{kernel.shape[-2]}] and "
                f"[{kernel.shape[-1]}]."
            )
        # [..., kept inputs, outputs] -> [..., kept inputs, kept outputs]
        small = jnp.take(kernel, np.flatnonzero(inputs), axis=-2)
        return cls(jnp.take(small, np.flatnonzero(outputs), axis=-1), inputs, outputs, axes)

    @classmethod
    def planned(cls, kernel: jax.Array, plan: Mapping[str, Any]) -> "Rows":
        """This form of a dense kernel, with the pattern that `plan` returned."""
        axes = as_axes(plan.get("axes"))
        inputs, outputs = in_order(kernel, axes).shape[-2:]
        return cls.of(kernel, flags(plan["inputs"], inputs), flags(plan["outputs"], outputs), axes)

    def plan(self) -> dict[str, Any]:
        """Which inputs and outputs are kept, as plain data."""
        sides = {"inputs": self._inputs.values, "outputs": self._outputs.values}
        return {name: np.flatnonzero(flags).tolist() for name, flags in sides.items()}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense kernel."""
        sizes = (self._inputs.values.size, self._outputs.values.size)
        return shape_of((*self.kernel.shape[:-2], *sizes), self.axes)

    @property
    def dtype(self) -> Any:
        """Type of the kernel."""
        return self.kernel.dtype

    def dense(self) -> jax.Array:
        """The kernel with zeros elsewhere."""
        places = np.ix_(np.flatnonzero(self._inputs.values), np.flatnonzero(self._outputs.values))
        sizes = (self._inputs.values.size, self._outputs.values.size)
        whole = jnp.zeros((*self.kernel.shape[:-2], *sizes), self.dtype)
        return as_it_stands(whole.at[(..., *places)].set(self.kernel), self.axes)

    def apply(self, x: jax.Array, equation: Equation) -> jax.Array:
        """Gather, contraction, scatter into zeros."""
        # The equation itself is bound again: it does not state its numbers of channels.
        in_axis, out_axis = channel_axes(equation)
        small = jnp.take(x, np.flatnonzero(self._inputs.values), axis=in_axis)
        part = jnp.moveaxis(bind(equation, (small, self.kernel))[0], out_axis, -1)
        return jnp.moveaxis(scattered(part, self._outputs.values), -1, out_axis)

    def tree_flatten(self) -> tuple[Any, Any]:
        """The kernel is data, the places are static."""
        return (self.kernel,), (self._inputs, self._outputs, self.axes)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Sequence[Any]) -> "Rows":
        """Inverse of `tree_flatten`."""
        return cls(children[0], *static)

"""Factored: a kernel as the product of a rotation, a core and a rotation."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jprune.forms.layout import Axes, as_axes, as_it_stands, in_order, shape_of
from jprune.forms.slide import channel_axes
from jprune.jaxprs import Equation, bind


@jax.tree_util.register_pytree_node_class
class Factored:
    """A kernel as the product of a rotation, a core and a rotation.

    `kernel[..., c, f] = sum over i, o of left[c, i] core[..., i, o] right[o, f]`.

    For EigenDamage's eigenbasis (Wang et al. 2019, arXiv 1905.05934) and low-rank kernels.

    Args:
        left: [inputs, i].
        core: [..., i, o].
        right: [o, outputs].
        axes: of the kernel that it stands for, as (window..., inputs, outputs); None: in order.

    Example:
        >>> leaf = Factored(jnp.ones((3, 2)), jnp.ones((2, 1)), jnp.ones((1, 4)))
        >>> leaf.dense().shape
        (3, 4)
    """

    parts = ("left", "core", "right")

    def __init__(self, left: jax.Array, core: jax.Array, right: jax.Array, axes: Axes = None):
        self.left, self.core, self.right, self.axes = left, core, right, as_axes(axes)

    def __repr__(self) -> str:
        return f"Factored({self.left.shape} {self.core.shape} {self.right.shape}, {self.dtype})"

    @classmethod
    def of(cls, kernel: jax.Array, inputs: int, outputs: int, axes: Axes = None) -> "Factored":
        """A kernel, its axes as `axes` says, approximated with ranks `inputs` and `outputs`.

        Exact for a kernel of these ranks; otherwise the error is at most sqrt(2) times that of the
        best approximation (truncated higher-order singular value decomposition: De Lathauwer, De
        Moor, Vandewalle, 2000).
        """
        kernel = in_order(kernel, axes)
        # U_in and U_out: leading left singular vectors of the kernel unfolded along each axis.
        # core = U_in^T K U_out, and K ~ U_in core U_out^T.
        flat = lambda axis: jnp.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
        left, right = (
            jnp.linalg.svd(flat(axis), full_matrices=False)[0][:, :rank]
            for axis, rank in ((-2, inputs), (-1, outputs))
        )
        return cls(left, left.T @ kernel @ right, right.T, axes)

    @classmethod
    def planned(cls, kernel: jax.Array, plan: Mapping[str, Any]) -> "Factored":
        """A dense kernel with the ranks that `plan` returned, in its own bases."""
        return cls.of(kernel, plan["inputs"], plan["outputs"], as_axes(plan.get("axes")))

    def plan(self) -> dict[str, Any]:
        """Both ranks, as plain data."""
        return {"inputs": self.left.shape[1], "outputs": self.right.shape[0]}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense kernel."""
        ordered = (*self.core.shape[:-2], self.left.shape[0], self.right.shape[1])
        return shape_of(ordered, self.axes)

    @property
    def dtype(self) -> Any:
        """Type of the core."""
        return self.core.dtype

    def dense(self) -> jax.Array:
        """The product of the three."""
        return as_it_stands(self.left @ self.core @ self.right, self.axes)

    def apply(self, x: jax.Array, equation: Equation) -> jax.Array:
        """Rotates the channels, contracts with the core, rotates back."""
        # Three contractions: the rotations mix channels only, like 1 x 1 convolutions; stride,
        # padding and window stay with the core.
        in_axis, out_axis = channel_axes(equation)
        turned = jnp.moveaxis(jnp.moveaxis(x, in_axis, -1) @ self.left, -1, in_axis)
        part = bind(equation, (turned, self.core))[0]
        return jnp.moveaxis(jnp.moveaxis(part, out_axis, -1) @ self.right, -1, out_axis)

    def tree_flatten(self) -> tuple[Any, Any]:
        """All three factors are data."""
        return (self.left, self.core, self.right), self.axes

    @classmethod
    def tree_unflatten(cls, static: Any, children: Sequence[Any]) -> "Factored":
        """Inverse of `tree_flatten`."""
        return cls(*children, axes=static)

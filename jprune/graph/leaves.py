"""Leaf types: a kernel held in another form, which slim nets execute as it is.

A leaf type stands where an array stood in the variables. `slim` hands it every contraction in
which that array was the kernel; anything else that the net does with the array sees `dense()`. To
make one, write a pytree with `apply`, `dense`, `shape` and `dtype`, and wrap the slim variables'
leaf in it; with `plan` and `planned` it is kept in plans too. `csr.py` holds a fourth one, and
`jprune.granularity.leaf_of` chooses among them by the pattern.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.graph.jaxprs import Equation, bind
from jprune.graph.windows import (
    Static,
    channel_axes,
    patches,
    precision_of,
    restore_layout,
    scattered,
)


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


def _static(values: Any) -> Static:
    return values if isinstance(values, Static) else Static(np.asarray(values, bool))


def _flags(kept: Sequence[int], count: int) -> np.ndarray:
    """Bool [count], True at the kept positions."""
    flags = np.zeros(count, bool)
    flags[np.asarray(kept, int)] = True
    return flags


@jax.tree_util.register_pytree_node_class
class Thin:
    """A kernel of which whole columns are gone: taps (h, w, c) of all filters.

    The contraction gathers the kept taps only and multiplies a patch matrix of that many columns
    (Lebedev and Lempitsky 2016, arXiv 1506.02515). Filters may be gone beside them: their outputs
    are zeros.

    Args:
        weights: [kept taps, kept filters].
        taps: bool [window..., c]; True where a tap is kept.
        outputs: bool [filters]; all are kept if None.

    Example:
        >>> kernel, taps = jnp.ones((3, 3, 2, 4)), np.arange(18).reshape(3, 3, 2) % 2 == 0
        >>> thin = Thin.of(kernel, taps)
        >>> thin.weights.shape, bool((thin.dense() == kernel * taps[..., None]).all())
        ((9, 4), True)
    """

    def __init__(self, weights: jax.Array, taps: Any, outputs: Any = None):
        self.weights = weights
        self._taps = _static(taps)
        self._outputs = _static(np.ones(weights.shape[-1]) if outputs is None else outputs)

    def __repr__(self) -> str:
        taps, outputs = self.taps, self._outputs.values
        kept = f"{taps.sum()} of {taps.size} taps, {outputs.sum()} of {outputs.size} outputs"
        return f"Thin({kept}, {self.dtype})"

    @classmethod
    def of(cls, kernel: jax.Array, taps: np.ndarray, outputs: np.ndarray | None = None) -> "Thin":
        """The kept columns of a kernel [window..., c, filters]."""
        if np.shape(taps) != kernel.shape[:-1] or not np.any(taps):
            raise errors.StructureError(
                f"taps of shape {np.shape(taps)}, {int(np.sum(taps))} of them kept, for a kernel "
                f"of shape {kernel.shape}: taps are bool {kernel.shape[:-1]} and keep at least one."
            )
        weights = kernel[np.asarray(taps, bool)]
        return cls(weights if outputs is None else weights[:, np.asarray(outputs)], taps, outputs)

    @classmethod
    def planned(cls, kernel: jax.Array, plan: Mapping[str, Any]) -> "Thin":
        """Of a dense kernel, by what `plan` returned."""
        taps = _flags(plan["taps"], int(np.prod(kernel.shape[:-1])))
        return cls.of(
            kernel, taps.reshape(kernel.shape[:-1]), _flags(plan["outputs"], kernel.shape[-1])
        )

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
        """Of the dense kernel."""
        return (*self.taps.shape, self._outputs.values.size)

    @property
    def dtype(self) -> Any:
        """Of the weights."""
        return self.weights.dtype

    def dense(self) -> jax.Array:
        """[window..., c, filters] with zeros where taps are gone."""
        filters = scattered(self.weights, self._outputs.values)
        return jnp.zeros(self.shape, self.dtype).at[self.taps].set(filters)

    def apply(self, x: jax.Array, equation: Equation) -> jax.Array:
        """Patches of the kept taps times the weights."""
        columns = patches(x, equation, self.taps)
        result = jnp.matmul(columns, self.weights, **precision_of(equation))
        return restore_layout(scattered(result, self._outputs.values), equation)

    def tree_flatten(self) -> tuple[Any, Any]:
        """Weights are data, taps and outputs are static."""
        return (self.weights,), (self._taps, self._outputs)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Sequence[Any]) -> "Thin":
        """Inverse of `tree_flatten`."""
        return cls(children[0], *static)


@jax.tree_util.register_pytree_node_class
class Rows:
    """A kernel that reads some of its input channels and writes some of its output channels.

    Gather, contraction, scatter: for a row or column pattern that stands on one leaf alone, so
    that its neighbours keep their width.

    Args:
        kernel: [..., kept inputs, kept outputs].
        inputs: bool [inputs].
        outputs: bool [outputs].

    Example:
        >>> leaf = Rows.of(jnp.ones((3, 2)), np.array([True, False, True]), np.array([True, False]))
        >>> leaf.kernel.shape, leaf.dense().tolist()
        ((2, 1), [[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    """

    def __init__(self, kernel: jax.Array, inputs: Any, outputs: Any):
        self.kernel = kernel
        self._inputs, self._outputs = _static(inputs), _static(outputs)

    def __repr__(self) -> str:
        sides = {"inputs": self._inputs.values, "outputs": self._outputs.values}
        kept = (f"{flags.sum()} of {flags.size} {side}" for side, flags in sides.items())
        return f"Rows({', '.join(kept)}, {self.dtype})"

    @classmethod
    def of(cls, kernel: jax.Array, inputs: np.ndarray, outputs: np.ndarray) -> "Rows":
        """The kept part of a kernel [..., inputs, outputs]."""
        if (np.size(inputs), np.size(outputs)) != kernel.shape[-2:]:
            raise errors.StructureError(
                f"masks of {np.size(inputs)} inputs and {np.size(outputs)} outputs for a kernel of "
                f"shape {kernel.shape}: they are bool [{kernel.shape[-2]}] and "
                f"[{kernel.shape[-1]}]."
            )
        small = jnp.take(kernel, np.flatnonzero(inputs), axis=-2)
        return cls(jnp.take(small, np.flatnonzero(outputs), axis=-1), inputs, outputs)

    @classmethod
    def planned(cls, kernel: jax.Array, plan: Mapping[str, Any]) -> "Rows":
        """Of a dense kernel, by what `plan` returned."""
        inputs, outputs = kernel.shape[-2:]
        return cls.of(kernel, _flags(plan["inputs"], inputs), _flags(plan["outputs"], outputs))

    def plan(self) -> dict[str, Any]:
        """Which inputs and outputs are kept, as plain data."""
        kept = {"inputs": self._inputs.values, "outputs": self._outputs.values}
        return {name: np.flatnonzero(flags).tolist() for name, flags in kept.items()}

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
        in_axis, out_axis = channel_axes(equation)
        small = jnp.take(x, np.flatnonzero(self._inputs.values), axis=in_axis)
        part = jnp.moveaxis(bind(equation, (small, self.kernel))[0], out_axis, -1)
        return jnp.moveaxis(scattered(part, self._outputs.values), -1, out_axis)

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

    def __repr__(self) -> str:
        return f"Factored({self.left.shape} {self.core.shape} {self.right.shape}, {self.dtype})"

    @classmethod
    def of(cls, kernel: jax.Array, inputs: int, outputs: int) -> "Factored":
        """Of ranks `inputs` and `outputs`: the leading singular vectors of both sides.

        Exact for a kernel that has these ranks; else at most sqrt(2) times as far from the kernel
        as the nearest such one (truncated higher-order singular value decomposition: De Lathauwer,
        De Moor, Vandewalle, 2000).
        """
        flat = lambda axis: jnp.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
        left, right = (
            jnp.linalg.svd(flat(axis), full_matrices=False)[0][:, :rank]
            for axis, rank in ((-2, inputs), (-1, outputs))
        )
        return cls(left, left.T @ kernel @ right, right.T)

    @classmethod
    def planned(cls, kernel: jax.Array, plan: Mapping[str, Any]) -> "Factored":
        """Of a dense kernel, by what `plan` returned: the same kernel, perhaps in other bases."""
        return cls.of(kernel, plan["inputs"], plan["outputs"])

    def plan(self) -> dict[str, Any]:
        """Both ranks, as plain data."""
        return {"inputs": self.left.shape[1], "outputs": self.right.shape[0]}

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
        in_axis, out_axis = channel_axes(equation)
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

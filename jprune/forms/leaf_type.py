"""Leaf types: a kernel held in another form than an array, which slim nets execute directly.

A leaf type takes the place of an array in the variables. `slim` gives it every contraction that has
the array as its kernel; all other operations on the array get `dense()`. To make one, write a
pytree with `apply`, `dense`, `shape` and `dtype`, and wrap the slim variables' leaf in it; with
`plan` and `planned` it can be saved in plans too. One whose outputs depend on the example has
`dynamic = True` and `cast(function)`, since no array stands for it. One that has `axes` holds its
kernel as [window..., inputs, outputs], and is given contractions rewritten for this order
(`layout.py`), whatever that of the array is. `jprune.forms.leaf_of` chooses among the forms by the
pattern of a mask.
"""

from typing import Any, Protocol, runtime_checkable

import jax

from jprune.jaxprs import Equation


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
    """Whether a node of a tree is a leaf type (and not an array)."""
    # Called for every leaf of every tree: the cheap test first. Only arrays have `at`.
    return hasattr(node, "dense") and isinstance(node, LeafType) and not hasattr(node, "at")


def is_dynamic(node: Any) -> bool:
    """Whether a leaf's outputs depend on the example."""
    return getattr(node, "dynamic", False) is True


def has_dynamic(tree: Any) -> bool:
    """Whether a tree holds such leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> has_dynamic({"kernel": jnp.ones((3, 2))})
        False
    """
    return any(map(is_dynamic, jax.tree.leaves(tree, is_leaf=is_dynamic)))

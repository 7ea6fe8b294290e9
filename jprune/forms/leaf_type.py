"""Leaf types: a kernel held in another form, which slim nets execute as it is.

A leaf type stands where an array stood in the variables. `slim` hands it every contraction in
which that array was the kernel; anything else that the net does with the array sees `dense()`. To
make one, write a pytree with `apply`, `dense`, `shape` and `dtype`, and wrap the slim variables'
leaf in it; with `plan` and `planned` it is kept in plans too. `csr.py` holds a fourth one, and
`jprune.forms.leaf_of` chooses among them by the pattern.
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
    """Whether a node of a tree is a leaf type (and no array)."""
    # Asked of every leaf of every tree: the quick question first.
    return hasattr(node, "dense") and isinstance(node, LeafType) and not hasattr(node, "at")

"""Trees with leaf types converted to trees of arrays: for files, for tracing, for comparison."""

import re
from collections.abc import Callable
from typing import Any

import jax

from jprune import errors
from jprune.forms.leaf_type import is_leaf_type
from jprune.forms.table import FORMS

OF_ARRAYS: dict[str, Any] = {name: kind for name, kind in FORMS.items() if hasattr(kind, "parts")}
"""{name: leaf type} of those that consist of arrays alone."""

WRITTEN = re.compile(f"({'|'.join(OF_ARRAYS)})(-[0-9]+)*")
"""Names of forms that are written out, with the axes of the kernel behind them."""


def has_leaf_types(tree: Any) -> bool:
    """Whether a tree has a kernel that is held as a leaf type.

    Example:
        >>> import jax.numpy as jnp
        >>> has_leaf_types({"kernel": jnp.ones((3, 2))})
        False
    """
    return any(is_leaf_type(leaf) for leaf in jax.tree.leaves(tree, is_leaf=is_leaf_type))


def written_out(tree: Any) -> Any:
    """A tree with `{form: {part: array}}` in place of its leaf types.

    The name of a form has the axes of its kernel behind it where they do not stand in the order
    [window..., inputs, outputs]: "factored-2-3-1-0".

    Raises:
        StructureError: a leaf type with static parts, which no array can hold.

    Example:
        >>> import jax.numpy as jnp
        >>> from jprune.forms import Factored
        >>> leaf = Factored(jnp.ones((3, 2)), jnp.ones((2, 1)), jnp.ones((1, 4)))
        >>> plain = written_out({"kernel": leaf})
        >>> plain["kernel"]["factored"]["left"].shape, read_back(plain)["kernel"].shape
        ((3, 2), (3, 4))
    """

    def one(node: Any) -> Any:
        if not is_leaf_type(node):
            return node
        for form, kind in OF_ARRAYS.items():
            if type(node) is kind:
                name = "-".join([form, *map(str, getattr(node, "axes", None) or ())])
                return {name: {part: getattr(node, part) for part in kind.parts}}
        raise errors.StructureError(
            f"a kernel held as {type(node).__name__} cannot be written out, only as "
            f"{', '.join(OF_ARRAYS)}. Write leaf.dense() in its place."
        )

    return jax.tree.map(one, tree, is_leaf=is_leaf_type)


def read_back(tree: Any) -> Any:
    """Inverse of `written_out`."""

    # A dict whose only key is the name of a form; a layer of that name would be taken for one.
    def is_written(node: Any) -> bool:
        return isinstance(node, dict) and len(node) == 1 and WRITTEN.fullmatch(*node) is not None

    def one(node: Any) -> Any:
        if not is_written(node):
            return node
        ((name, parts),) = node.items()
        form, *axes = name.split("-")
        kind = OF_ARRAYS[form]
        return kind(
            *(parts[part] for part in kind.parts), *([tuple(map(int, axes))] if axes else ())
        )

    return jax.tree.map(one, tree, is_leaf=is_written)


def opened(fn: Callable[..., Any], variables: Any) -> tuple[Callable[..., Any], Any]:
    """A net whose leaf types are written out, so that their parts are kernels like any other.

    Args:
        fn: takes variables with leaf types, such as a function from `slim`.
        variables: with leaf types, arrays or shapes.

    Returns:
        `(fn', variables')`, which `trace` and `cost` can read.
    """
    return (lambda plain, *args: fn(read_back(plain), *args)), written_out(variables)


def dense_of(tree: Any) -> Any:
    """A tree with every leaf type replaced by the array that it stands for."""
    plain = lambda node: node.dense() if is_leaf_type(node) else node
    return jax.tree.map(plain, tree, is_leaf=is_leaf_type)

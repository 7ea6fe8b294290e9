"""Which leaves of the variables have scores."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jprune.base import PyTree, Variables


def map_parameters(function: Callable[..., Any], variables: Variables, *others: PyTree) -> PyTree:
    """Maps over parameters; statistics become None, which allocators and masks leave alone.

    Args:
        function: `function(leaf, *others)`.
        variables: {"params": ..., and other collections}: then only `params` has parameters; a
            tree of another kind has nothing but parameters.
        *others: more trees of the variables' structure.

    Example:
        >>> map_parameters(abs, {"params": {"w": -2}, "stats": {"mean": 1}})
        {'params': {'w': 2}, 'stats': {'mean': None}}
    """
    # Flax's layout has collections by name; Haiku's and plain trees have parameters only.
    if not (isinstance(variables, Mapping) and "params" in variables):
        return jax.tree.map(function, variables, *others)

    def one(path: Any, *leaves: Any) -> Any:
        return function(*leaves) if path[0].key == "params" else None

    return jax.tree_util.tree_map_with_path(one, variables, *others)

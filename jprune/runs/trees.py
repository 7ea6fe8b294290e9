"""Trees as a checkpoint can hold them, and back: no name, type or value is lost on the way.

Orbax names what it writes after the path of a leaf, its keys joined by dots, and knows arrays
alone. So dots in keys are written as %2E, and leaves that are no such arrays as a dictionary of one
key:

    {"%key:IMPLEMENTATION": key data}    random keys
    {"%empty:TYPE": shape}               arrays without elements
    {"%number:KIND": value}              numbers of Python
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import PyTree

_NUMBERS = {"bool": bool, "int": int, "float": float, "complex": complex}
Path = tuple[str, ...]


def encoded(tree: PyTree) -> PyTree:
    """A tree of arrays and dictionaries with plain names.

    Args:
        tree: dictionaries, lists, tuples, named tuples, None; arrays, random keys, numbers.

    Raises:
        CheckpointError: a leaf that is none of these, or two leaves of one name.

    Example:
        >>> encoded({"head.bias": 3})
        {'head%2Ebias': {'%number:int': array(3)}}
    """
    counts = Counter(path for path, _ in _leaves(tree))
    for path, count in counts.items():
        if count > 1:
            raise errors.CheckpointError(
                f"two leaves are called {'/'.join(path)}: keys that differ in their type alone. "
                "Rename one"
            )
    return _walk(tree, (), _escaped, _encoded_leaf)


def decoded(tree: PyTree) -> PyTree:
    """The inverse of `encoded`; tuples come back as lists, as Orbax reads them.

    Example:
        >>> decoded({"head%2Ebias": {"%number:int": np.array(3)}})
        {'head.bias': 3}
    """
    if isinstance(tree, dict) and len(tree) == 1:
        ((name, value),) = tree.items()
        kind, _, what = name.partition(":")
        if kind == "%key":
            return jax.random.wrap_key_data(jnp.asarray(value), impl=what)
        if kind == "%empty":
            return jnp.zeros(tuple(np.asarray(value).tolist()), jnp.dtype(what))
        if kind == "%number":
            return _NUMBERS[what](np.asarray(value).item())
    if isinstance(tree, dict):
        return {_plain(name): decoded(node) for name, node in tree.items()}
    if isinstance(tree, list | tuple):
        return [decoded(node) for node in tree]
    return tree


def fitted(tree: PyTree, template: PyTree) -> PyTree:
    """The leaves of a decoded tree in the structure of a template, and of its types.

    Args:
        tree: from `decoded`.
        template: a tree with shapes and types.

    Raises:
        CheckpointError: a leaf is missing, is none of the template's, or has another shape; or its
            values cannot be had in the template's type.
    """
    saved, wanted = dict(_leaves(tree)), _leaves(template)
    missing = [path for path, _ in wanted if path not in saved]
    strange = [path for path in saved if path not in dict(wanted)]
    for paths, what in ((missing, "it has no"), (strange, "it has an unexpected")):
        if paths:
            raise errors.CheckpointError(f"{what} {'/'.join(paths[0])}")
    leaves = [_fitted_leaf(path, saved[path], leaf) for path, leaf in wanted]
    return jax.tree.structure(template).unflatten(leaves)


def _fitted_leaf(path: Path, saved: Any, leaf: Any) -> Any:
    name, dtype = "/".join(path), getattr(leaf, "dtype", None)
    if np.shape(saved) != np.shape(leaf):
        raise errors.CheckpointError(
            f"{name} has shape {list(np.shape(saved))} there and {list(np.shape(leaf))} here"
        )
    came = saved.dtype if hasattr(saved, "dtype") else np.asarray(saved).dtype
    if dtype is None or came == dtype:
        return saved
    if not any(jax.dtypes.issubdtype(kind, jax.dtypes.prng_key) for kind in (came, dtype)):
        before = np.asarray(saved)
        with np.errstate(all="ignore"):  # a value that does not fit is told below
            after = before.astype(dtype)
            back = after.astype(before.dtype)
        # Both: 2^53 + 1 as a float equals itself, and -1 as an unsigned byte comes back as -1.
        if _same(after, before) and _same(back, before):
            return jnp.asarray(after) if jnp.result_type(after) == dtype else after
    raise errors.CheckpointError(
        f"{name} is of type {came} there and {dtype} here, which cannot hold its values"
    )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.all((one == other) | ((one != one) & (other != other))))


def _leaves(tree: PyTree) -> list[tuple[Path, Any]]:
    part = lambda key: jax.tree_util.keystr((key,), simple=True)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(tuple(part(key) for key in path), leaf) for path, leaf in leaves]


def _walk(
    tree: Any, path: Path, rename: Callable[[Any], str], of_leaf: Callable[[Path, Any], Any]
) -> Any:
    """A tree with other keys in its dictionaries and other leaves."""
    step = lambda name, node: _walk(node, (*path, str(name)), rename, of_leaf)
    match tree:
        case None:
            return None
        case dict():
            return {rename(name): step(name, node) for name, node in tree.items()}
        case tuple() if hasattr(tree, "_fields"):
            named: Any = tree
            return type(tree)(*(step(name, node) for name, node in zip(named._fields, named)))
        case list() | tuple():
            return type(tree)(step(number, node) for number, node in enumerate(tree))
    children, structure = jax.tree.flatten(tree, is_leaf=lambda node: node is not tree)
    # Another library's node is rebuilt with what its children become.
    if children and not (len(children) == 1 and children[0] is tree):
        return structure.unflatten([step(n, child) for n, child in enumerate(children)])
    return tree if not children else of_leaf(path, tree)


def _escaped(name: Any) -> str:
    return str(name).replace("%", "%25").replace(".", "%2E")


def _plain(name: str) -> str:
    return name.replace("%2E", ".").replace("%25", "%")


def _encoded_leaf(path: Path, leaf: Any) -> Any:
    kind = type(leaf).__name__
    number = kind in _NUMBERS
    leaf = np.asarray(leaf) if number else leaf
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return {f"%key:{jax.random.key_impl(leaf)}": jax.random.key_data(leaf)}
    # Of kind V are the types that JAX adds to NumPy's (bfloat16).
    if dtype is None or np.dtype(dtype).kind not in "biufcV":
        raise errors.CheckpointError(
            f"{'/'.join(path) or 'the state'} is a {kind} that no checkpoint holds; save arrays, "
            "random keys and numbers"
        )
    if not np.size(leaf):
        return {f"%empty:{dtype}": np.asarray(leaf.shape)}
    return {f"%number:{kind}": leaf} if number else leaf

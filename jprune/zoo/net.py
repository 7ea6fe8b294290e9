"""What a net is, and what all libraries share on the way to one.

Everything that jprune does to a net it does to pure functions of a tree of arrays. How a module of
a library becomes such functions is in `flax_nets.py`, `equinox_nets.py`, `haiku_nets.py` and
`keras_nets.py`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.base import PyTree, Variables

MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "inference": False,
    "use_running_average": False,
}
"""{argument by which modules are told their mode: its value in training}."""


class Net(NamedTuple):
    """A network as pure functions of `variables = {"params": ..., "stats": ...}`.

    `params` are trained; `stats` are all other variables, mostly batch-norm statistics, `{}` where
    there are none. Both are nested dicts of arrays. Images are [batch, height, width, channels],
    float32; a net of several inputs takes a tuple or dictionary of arrays as `x`. Nothing is
    jitted: wrap `fn` in `jax.jit` where you use it.

    Attributes:
        init: `init(key) -> variables`, float32. A net that came with weights of its own gives
            these, whatever the key.
        fn: `fn(variables, x) -> logits [batch, classes]`, float32, in inference mode.
        train_fn: `train_fn(variables, x, key) -> (logits, stats)`: in training mode, with the
            statistics after this batch in the structure of `variables["stats"]`. `key` is for nets
            that draw (dropout).
        example: shape and type of the input for one image, batch axis 1 included; a tree of these
            for several inputs.
    """

    name: str
    init: Callable[[jax.Array], Variables]
    fn: Callable[[Variables, Any], jax.Array]
    train_fn: Callable[[Variables, Any, jax.Array], tuple[jax.Array, PyTree]]
    example: Any


def example_of(shape: Any) -> Any:
    """Shape and type of the inputs for one example.

    Args:
        shape: (height, width, channels) or any other shape of one float32 input, without the
            batch; or, for other types and several inputs, a tree of `jax.ShapeDtypeStruct`, the
            batch axis of 1 included.

    Raises:
        ArgumentError: it is neither.

    Example:
        >>> example_of((8, 8, 3))
        ShapeDtypeStruct(shape=(1, 8, 8, 3), dtype=float32)
    """
    if isinstance(shape, tuple) and shape and all(isinstance(side, int) for side in shape):
        return jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    leaves = jax.tree.leaves(shape)
    if not leaves or any(getattr(leaf, "shape", ())[:1] != (1,) for leaf in leaves):
        raise errors.ArgumentError(
            f"{shape!r} is no input: write the shape of one example without the batch, such as "
            "(32, 32, 3), or a tuple or dictionary of jax.ShapeDtypeStruct((1, ...), dtype)."
        )
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shape)


def as_arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an input: a tuple is several, a dictionary named ones."""
    if isinstance(x, tuple | list):
        return tuple(x), {}
    return ((), dict(x)) if isinstance(x, dict) else ((x,), {})


def parameters_of(call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """{name: parameter} of a function or class, also behind `functools.partial`."""
    fixed: set[str] = set()
    while isinstance(call, functools.partial):
        fixed, call = fixed | {*call.keywords}, call.func
    # A class shows its metaclass's signature where it has one (NNX, Equinox).
    function = call.__init__ if isinstance(call, type) else call
    try:
        named = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of C, without a signature
        return {}
    return {name: value for name, value in named.items() if name not in fixed}


def mode_of(call: Callable[..., Any], training: bool) -> dict[str, Any]:
    """Keyword arguments that tell a call its mode: those of `MODES` that it takes.

    Example:
        >>> mode_of(lambda x, deterministic: x, training=True)
        {'deterministic': False}
    """
    taken = parameters_of(call)
    return {name: value == training for name, value in MODES.items() if name in taken}


def as_float32(out: Any) -> Any:
    """Outputs with their floating-point leaves in float32, whatever type they were computed in."""
    return cast(out, jnp.float32)


def cast(tree: Any, dtype: Any) -> Any:
    """A tree with its floating-point leaves in another type."""
    floating = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if floating(leaf) else leaf, tree)


class Paths:
    """Nested dictionaries for a tree of any nodes, and back.

    Args:
        tree: of arrays or shapes; what is converted later has its structure.

    Example:
        >>> paths = Paths([1.0, {"b": 2.0}])
        >>> paths.to_dicts([1.0, {"b": 2.0}])
        {'0': 1.0, '1': {'b': 2.0}}
        >>> paths.from_dicts({"0": 3.0, "1": {"b": 4.0}})
        [3.0, {'b': 4.0}]
    """

    def __init__(self, tree: Any):
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(tree)
        part = lambda key: jax.tree_util.keystr((key,), simple=True)
        self._paths = [tuple(part(key) for key in path) for path, _ in leaves]

    def to_dicts(self, tree: Any) -> Any:
        """Nested dictionaries with the leaves of a tree."""
        leaves = self._structure.flatten_up_to(tree)
        if self._paths == [()]:  # one array alone
            return {"value": leaves[0]}
        found: dict[str, Any] = {}
        for path, leaf in zip(self._paths, leaves):
            node = found
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = leaf
        return found

    def from_dicts(self, dicts: Any) -> Any:
        """The tree with the leaves of nested dictionaries."""
        if self._paths == [()]:
            return self._structure.unflatten([dicts["value"]])
        pick = lambda path: functools.reduce(lambda node, part: node[part], path, dicts)
        return self._structure.unflatten([pick(path) for path in self._paths])

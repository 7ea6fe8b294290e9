"""Concrete arrays are cut by NumPy, since XLA would compile a program for every shape.

A net has a hundred shapes, and cutting or masking each takes XLA seconds to compile and
milliseconds to run. Arrays that are traced, sharded or of a type that NumPy lacks (random keys)
are left to `jax.numpy`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jprune.jaxprs import is_key


def at_hand(value: Any) -> np.ndarray | None:
    """The numbers of a concrete array on one device (on a CPU without a copy), or None.

    Example:
        >>> import jax.numpy as jnp
        >>> at_hand(jnp.arange(2))
        array([0, 1], dtype=int32)
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Tracer) or not isinstance(value, jax.Array):
        return None
    # NumPy has neither random keys nor types that give way to others.
    if is_key(value) or getattr(value, "weak_type", False):
        return None
    whole = value.is_fully_addressable and len(value.sharding.device_set) == 1
    return np.asarray(value) if whole else None


def put_back(result: np.ndarray, like: Any) -> Any:
    """A NumPy result as a JAX array on the device of `like`, if that is a JAX array.

    Example:
        >>> import jax.numpy as jnp
        >>> put_back(np.arange(2), np.arange(4)), put_back(np.arange(2), jnp.arange(4))
        (array([0, 1]), Array([0, 1], dtype=int32))
    """
    if not isinstance(like, jax.Array):
        return result
    # Uncommitted arrays stay so: JAX moves them freely, and refuses to mix arrays bound to
    # different devices.
    return jax.device_put(result, like.sharding if like.committed else None)


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays that NumPy computes where all of them are concrete.

    Args:
        function: `function(xnp, *arrays) -> array`; `xnp` is `numpy` or `jax.numpy`.

    Returns:
        `function'(*arrays)`. The result has the type that JAX gives it; it is a JAX array if one
        of the arguments is.

    Example:
        >>> import jax.numpy as jnp
        >>> on_host(lambda xnp, x, y: xnp.maximum(x, y) / 2)(jnp.arange(3), np.ones(3, int))
        Array([0.5, 0.5, 1. ], dtype=float32)
    """

    def mapped(*arrays: Any) -> Any:
        numbers = [at_hand(array) for array in arrays]
        if any(number is None for number in numbers):
            return function(jnp, *arrays)
        with np.errstate(all="ignore"):  # -inf and +inf are scores
            result = np.asarray(function(np, *numbers))
        like = next((array for array in arrays if isinstance(array, jax.Array)), arrays[0])
        usual = jnp.result_type(*arrays)
        # NumPy makes doubles of whole numbers, alone and beside single precision.
        if result.dtype == np.float64 and usual != np.float64:
            single = usual if jnp.issubdtype(usual, jnp.floating) else jnp.result_type(float)
            result = result.astype(single)
        return put_back(result, like)

    return mapped


def as_array(value: Any, dtype: Any = None) -> jax.Array:
    """As `jnp.asarray`, which compiles a program for every shape of a NumPy array.

    Example:
        >>> as_array(np.arange(2)), as_array(0.5)
        (Array([0, 1], dtype=int32), Array(0.5, dtype=float32))
    """
    if isinstance(value, jax.Array):
        return value if dtype is None else value.astype(dtype)
    return jax.device_put(np.asarray(value, jnp.result_type(value) if dtype is None else dtype))


def at_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of trees as one program, and not one for each of its operations and shapes.

    Inside `jit`, and with arrays that stand on several devices, it runs as it is.

    Args:
        function: jittable; what comes in and goes out are trees of arrays.

    Example:
        >>> import optax
        >>> at_once(optax.trace(0.9).init)({"a": jnp.ones(2), "b": jnp.ones(3)}).trace["a"]
        Array([0., 0.], dtype=float32)
    """

    def called(*trees: Any) -> Any:
        apart = lambda leaf: isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
        if is_traced() or any(map(apart, jax.tree.leaves(trees))):
            return function(*trees)
        return jax.jit(function)(*trees)

    return called


def full(shape: Sequence[int], value: Any, dtype: Any = None) -> jax.Array:
    """As `jnp.full`, whose program XLA compiles for every shape.

    Example:
        >>> full((2,), 0.0)
        Array([0., 0.], dtype=float32)
    """
    # Inside `jit` an array made by NumPy would be a constant of full size.
    if is_traced():
        return jnp.full(shape, value, dtype)
    return jax.device_put(np.full(shape, value, jnp.result_type(value) if dtype is None else dtype))


def copied(tree: Any) -> Any:
    """A tree of new arrays, for a step that gives its arguments away."""
    return jax.device_put(tree, may_alias=False)


def is_traced() -> bool:
    """Whether JAX is tracing: arrays that are made then become constants of the program."""
    return isinstance(jax.device_put(0), Tracer)

"""Concrete arrays are cut by NumPy, since XLA would compile a program for every shape.

A net has a hundred shapes, and cutting or masking each takes XLA seconds to compile and
milliseconds to run. Arrays that are traced, sharded or of a type that NumPy lacks (random keys)
are left to `jax.numpy`.
"""

from typing import Any

import jax
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


def is_traced() -> bool:
    """Whether JAX is tracing: arrays that are made then become constants of the program."""
    return isinstance(jax.device_put(0), Tracer)

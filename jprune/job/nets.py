"""Nets by name, built for the images of a data set."""

import jax.numpy as jnp

from jprune import errors, zoo
from jprune.data.table import find

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def net_for(model: str, data: str, dtype: str = "float32") -> zoo.Net:
    """A net for a data set, which is not loaded.

    Args:
        model: a name of the zoo, or `module:callable`.
        data: name of a data set.
        dtype: compute type, "float32" or "bfloat16".

    Raises:
        ArgumentError: an unknown name or type.

    Example:
        >>> net_for("lenet300", "mnist").example.shape
        (1, 28, 28, 1)
    """
    if dtype not in DTYPES:
        raise errors.ArgumentError(f"dtype {dtype!r}; write one of {', '.join(DTYPES)}.")
    spec = find(data)
    # A colon stands in no name of the zoo.
    make = zoo.load if ":" in model else zoo.build
    return make(model, classes=spec.classes, shape=spec.shape, dtype=DTYPES[dtype])

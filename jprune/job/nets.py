"""Nets by name, built for the images of a data set."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jprune import errors, zoo
from jprune.data.table import find

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def net_for(
    model: str,
    data: str,
    dtype: str = "float32",
    shape: tuple[int, ...] | None = None,
    classes: int | None = None,
) -> zoo.Net:
    """A net for a data set, which is not loaded.

    Args:
        model: a name of the zoo, or `module:callable`.
        data: name of a data set.
        dtype: compute type, "float32" or "bfloat16".
        shape: of the images, for data of the user's own.
        classes: number of classes, likewise.

    Raises:
        ArgumentError: an unknown name or type.

    Example:
        >>> net_for("lenet300", "mnist").example.shape
        (1, 28, 28, 1)
    """
    if dtype not in DTYPES:
        raise errors.ArgumentError(f"dtype {dtype!r}; write one of {', '.join(DTYPES)}.")
    if shape is None or classes is None:
        spec = find(data)
        shape, classes = spec.shape, spec.classes
    if not classes:
        raise errors.ArgumentError(
            f"the labels of {data} are no classes, and the command line trains classifiers. Make a "
            "task in Python, jprune.train.task(net, data, loss=...), and run a recipe on it."
        )
    # A colon stands in no name of the zoo.
    make = zoo.load if ":" in model else zoo.build
    return make(model, classes=classes, shape=tuple(shape), dtype=DTYPES[dtype])  # pyright: ignore


def net_of(config: Mapping[str, Any], dtype: str) -> zoo.Net:
    """The net of a finished run.

    Args:
        config: its `config.json`; data of the user's own have left the shape of an image there.
        dtype: compute type.
    """
    images = config.get("images") or {}
    shape = tuple(images["shape"]) if images else None
    return net_for(config["model"], config["data"], dtype, shape, images.get("classes"))

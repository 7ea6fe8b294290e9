"""Inputs for timing and comparing nets: made from shapes alone, the same on every machine."""

import jax
import numpy as np


def sample(example: jax.ShapeDtypeStruct, batch: int, sign: int = 1) -> np.ndarray:
    """An input of the example's shape with another batch size: evenly spaced values in [-1, 1].

    All elements differ, so that a mix-up of examples, rows or channels changes the result. With a
    sign of -1 they fall from 1 to -1.

    Example:
        >>> sample(jax.ShapeDtypeStruct((1, 2), np.float32), 2)
        array([[-1.        , -0.33333334],
               [ 0.33333334,  1.        ]], dtype=float32)
    """
    shape = (batch, *example.shape[1:])
    return np.linspace(-sign, sign, int(np.prod(shape))).reshape(shape).astype(example.dtype)

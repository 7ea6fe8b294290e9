"""Algebra of Kronecker-factored Fisher blocks: on the host, in float64.

The block of a kernel, written as a matrix W [outputs, patch], is F = S (x) A. A change D of W costs
1/2 vec(D)^T (S (x) A) vec(D) = 1/2 tr(S D A D^T), the *damage*; vec goes row by row.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jprune import errors
from jprune.base import Layer

NEGATIVE = 1e-4
"""Eigenvalues below minus this times the largest one are more than rounding of float32."""


class Factors(NamedTuple):
    """The two factors of a layer's Fisher block, S (x) A.

    Attributes:
        inputs: A: [inputs * window, inputs * window], channels first, and one more row and column
            where the bias has one; or [inputs, inputs].
        outputs: S: [outputs, outputs].
    """

    inputs: Any
    outputs: Any


def damage(change: Any, factors: Factors) -> float:
    """1/2 tr(S D A D^T): what a change D [outputs, patch] of a kernel costs.

    Example:
        >>> factors = Factors(np.diag([3.0, 1.0]), np.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> damage(np.array([[1.0, 1.0], [1.0, -1.0]]), factors)
        10.0
    """
    a, s, d = (np.asarray(part, np.float64) for part in (*factors, change))
    # tr(S D A D^T) / 2 as the sum of (S D) o (D A): A is symmetric, and no third product is needed.
    return float(np.sum((s @ d) * (d @ a))) / 2


def filters_of(layer: Layer, kernel: Any) -> np.ndarray:
    """The kernel of a layer as W: float64 [outputs, inputs * window], channels first as in patches.

    Example:
        >>> import jprune
        >>> kernel = np.arange(8.0, dtype=np.float32).reshape(4, 2)  # [in, out]
        >>> layers = jprune.trace(lambda v, x: x @ v["w"], {"w": kernel}, kernel.T).layers
        >>> filters_of(layers["w"], kernel).tolist()
        [[0.0, 2.0, 4.0, 6.0], [1.0, 3.0, 5.0, 7.0]]
        >>> bool((with_filters(layers["w"], filters_of(layers["w"], kernel)) == kernel).all())
        True
    """
    matrix = layer.matrix(np.asarray(kernel, np.float64))
    # In memory [window, inputs, outputs], whatever the layout: sums come out the same to the bit.
    stored = np.ascontiguousarray(matrix.transpose(1, 0, 2))
    return stored.transpose(2, 1, 0).reshape(matrix.shape[2], -1)


def biased(layer: Layer, leaves: Mapping[str, Any], a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W and A of a layer, with a column for its bias where A has one: an input that is always 1.

    Args:
        layer: whose kernel.
        leaves: {path: array} of the variables.
        a: [patch, patch], or one more row and column (`kfac(bias=True)`).

    Returns:
        W [outputs, patch] and A [patch, patch]; with the bias as the last column of W, and A as it
        came. Of a layer without a bias, A loses that row and column.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: (x @ v["w"] + v["b"]) @ v["out"]
        >>> variables = {"b": np.ones(2), "out": np.ones((2, 1)), "w": np.zeros((1, 2))}
        >>> layers = jprune.trace(fn, variables, np.ones((3, 1))).layers
        >>> biased(layers["w"], variables, np.eye(2))[0].tolist()
        [[0.0, 1.0], [0.0, 1.0]]
    """
    w = filters_of(layer, leaves[layer.kernel])
    if len(a) == w.shape[1]:
        return w, a
    bias = None if layer.bias is None else np.asarray(leaves[layer.bias], np.float64)
    # One number for all outputs belongs to none of them.
    if bias is None or bias.size != len(w):
        return w, a[:-1, :-1]
    # z_i = w_i a + b_i: of an input [a, 1] with weights [w_i, b_i]
    return np.column_stack([w, bias.reshape(-1)]), a


def with_filters(layer: Layer, filters: Any) -> np.ndarray:
    """Inverse of `filters_of`: W [outputs, inputs * window] in the layout of the layer's kernel."""
    matrix = np.asarray(filters)
    inputs = math.prod(layer.shape[axis] for axis in layer.inputs)
    return layer.array(matrix.reshape(len(matrix), inputs, -1).transpose(1, 2, 0))


def checked(path: str, factors: Factors) -> tuple[np.ndarray, np.ndarray]:
    """Both factors in float64, symmetric.

    Raises:
        ArgumentError: a factor that is not finite, or that has an eigenvalue below zero by more
            than rounding.
    """

    def one(name: str, raw: Any) -> np.ndarray:
        factor = np.asarray(raw, np.float64)
        if not np.isfinite(factor).all():
            raise errors.ArgumentError(
                f"the curvature at {path} is NaN or infinite (factor {name}): the loss or the "
                "variables are not finite. Check them before pruning."
            )
        # Sums in float32 are symmetric up to rounding; eigvalsh and cholesky read one triangle.
        factor = (factor + factor.T) / 2
        values = np.linalg.eigvalsh(factor)
        if values[0] < -NEGATIVE * max(values[-1], np.finfo(float).tiny):
            raise errors.ArgumentError(
                f"the curvature at {path} is negative: the factor {name} has the eigenvalue "
                f"{values[0]:.3g} beside {values[-1]:.3g}. A Fisher factor is a mean of outer "
                "products; take those of kfac."
            )
        return factor

    return one("A", factors.inputs), one("S", factors.outputs)


def damped(factor: np.ndarray, damping: float) -> np.ndarray:
    """A factor plus a multiple of the identity: damping times its mean eigenvalue.

    Example:
        >>> damped(np.diag([3.0, 1.0]), 0.5).tolist()
        [[4.0, 0.0], [0.0, 2.0]]
    """
    # The mean eigenvalue, tr(F) / n, gives damping a meaning that no scale of the loss changes.
    return factor + damping * np.trace(factor) / len(factor) * np.eye(len(factor))


def inverse(path: str, factor: np.ndarray) -> np.ndarray:
    """The inverse of a factor.

    Raises:
        ArgumentError: it has none.
    """
    # F = L L^T, F^-1 = L^-T L^-1: symmetric by construction, and L exists only if F is invertible.
    try:
        half = np.linalg.inv(np.linalg.cholesky(factor))
    except np.linalg.LinAlgError:
        raise errors.ArgumentError(
            f"a Kronecker factor of {path} has no inverse: a channel is always 0, or there are "
            "fewer examples than channels. Write damping=1e-3, or take more batches."
        ) from None
    return half.T @ half

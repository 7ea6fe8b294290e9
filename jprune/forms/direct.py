"""Direct sparse convolution: the padded input is read in place, at an offset for every weight.

    out[n, y, x] = bias[n] + sum over j in row n of values[j] I[offset_j + y stride W + x stride]

No patches are made: I is the padded input as one line, and offset_j = (c H + r) W + s the place of
the tap (c, r, s) in it. This is the plain form, right in value and gradient on every backend; XLA
gathers a plane for every weight, which takes as many numbers of memory as there are weights times
positions, and is mostly slower than a dense convolution. A kernel that reads in place is not here.

References:
    Park, Li, Wen, Tang, Li, Chen, Dubey, Faster CNNs with direct sparse convolutions and guided
    pruning, 2017, arXiv 1608.01409 [11].
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors


def direct_convolution(
    x: Any,
    kernel: Any,
    mask: np.ndarray,
    bias: Any = None,
    *,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: Sequence[int] = (1, 1),
) -> jax.Array:
    """A convolution (a cross-correlation, as everywhere in nets) with the weights of a mask alone.

    Args:
        x: [batch, c, h, w].
        kernel: [filters, c, r, s].
        mask: bool of its shape, known when it is compiled; a filter without weights gives its bias.
        bias: [filters]; None: 0.
        strides: of the window.
        padding: zeros before and behind each axis of the image.
        dilation: of the window.

    Returns:
        [batch, filters, h', w'].

    Raises:
        StructureError: a mask of another shape, data with other channels, or an image smaller than
            the window.

    Example:
        >>> x = jnp.arange(1.0, 10.0).reshape(1, 1, 3, 3)
        >>> kernel = jnp.array([[[[0.0, 2.0], [-1.0, 0.0]]]])
        >>> direct_convolution(x, kernel, np.asarray(kernel) != 0)[0, 0].tolist()
        [[0.0, 1.0], [3.0, 4.0]]
    """
    mask = np.asarray(mask, bool)
    if mask.ndim != 4 or np.shape(kernel) != mask.shape or np.shape(x)[1:2] != mask.shape[1:2]:
        raise errors.StructureError(
            f"data {np.shape(x)}, kernel {np.shape(kernel)}, mask {mask.shape}; expected are "
            "[batch, c, h, w], and twice [filters, c, r, s]."
        )
    padded = jnp.pad(x, ((0, 0), (0, 0), *padding))
    height, width = padded.shape[2:]
    spans = [(n - 1) * d + 1 for n, d in zip(mask.shape[2:], dilation)]
    # Positions: (H - span) / stride + 1
    rows, columns = ((n - span) // s + 1 for n, span, s in zip((height, width), spans, strides))
    if min(height - spans[0], width - spans[1]) < 0:
        raise errors.StructureError(
            f"the window spans {spans} and the padded image has {height, width}: there is no "
            "output. Write more padding."
        )
    # Row by row, as CSR has them.
    filters, channel, r, s = np.nonzero(mask)
    # offset_j = (c H + r) W + s
    offsets = (channel * height + r * dilation[0]) * width + s * dilation[1]
    # y stride W + x stride, of every position
    places = np.arange(rows)[:, None] * strides[0] * width + np.arange(columns) * strides[1]
    values = jnp.asarray(kernel)[filters, channel, r, s]

    def one(line: jax.Array) -> jax.Array:
        # values[j] I[offset_j + place], summed over j of every row
        planes = values[:, None, None] * line[offsets[:, None, None] + places]
        return jax.ops.segment_sum(planes, filters, len(mask), indices_are_sorted=True)

    result = jax.vmap(one)(padded.reshape(len(padded), -1))
    return result if bias is None else result + jnp.asarray(bias)[:, None, None]

"""How a sparse contraction is laid out for the compiled kernel: lines, offsets, geometry.

Plain arithmetic on shapes; needs NumPy alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FIELDS = (
    "images", "channels", "height", "width", "top", "left", "down", "across", "rows", "pitch",
    "line", "positions", "filters", "tall", "wide", "weights", "phases",
)  # fmt: skip
"""What the kernel reads of the geometry, in this order."""

WIDEST = 512
"""Bytes that the kernel reads at an offset, at most."""

PARTS = 64
"""Parts that the filters are counted off into, of about the same number of weights; and the most
workers that share a call."""

MOST = 2**31 - 1
"""The largest offset, since offsets are int32."""


class Lines(NamedTuple):
    """A sparse convolution of one shape, as the kernel reads it.

    Attributes:
        offsets: int32 [non-zeros], where every weight begins to read in the lines.
        pointers: int32 [filters + 1], as of the leaf.
        phases: int32 [2 phases], the remainders (row, column) that some tap reads.
        geometry: int32, `FIELDS`, then the filters at which each of `PARTS` parts begins, and ends.
        scratch: how many numbers the kernel needs for its lines and sums.
        out: [images, filters, tall, wide].
    """

    offsets: np.ndarray
    pointers: np.ndarray
    phases: np.ndarray
    geometry: np.ndarray
    scratch: int
    out: tuple[int, int, int, int]


def lines_of(
    shape: Sequence[int],
    taps: np.ndarray,
    pointers: np.ndarray,
    window: Sequence[int],
    *,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: Sequence[int] = (1, 1),
) -> Lines | None:
    """The layout of a sparse convolution.

    Args:
        shape: of the data, (images, channels, height, width).
        taps: int [3, non-zeros]: row and column in the window, and channel of the data, of every
            weight, filter after filter.
        pointers: int [filters + 1]; filter f has the weights from pointers[f] to pointers[f + 1].
        window: (height, width).
        strides: of the window.
        padding: zeros before and behind rows and columns, none of them negative.
        dilation: of the window.

    Returns:
        The layout; None where the lines are too long for int32, or there is no output.

    Example:
        >>> lines = lines_of((1, 1, 3, 3), np.array([[0, 1], [1, 0], [0, 0]]), [0, 2], (2, 2))
        >>> lines.offsets.tolist(), lines.out
        ([1, 3], (1, 1, 2, 2))
    """
    images, channels, height, width = map(int, shape)
    (top, bottom), (left, right) = padding
    (down, across), (high, wide) = strides, window
    tall_span, wide_span = (high - 1) * dilation[0], (wide - 1) * dilation[1]
    padded = height + top + bottom, width + left + right
    out_tall = (padded[0] - tall_span - 1) // down + 1
    out_wide = (padded[1] - wide_span - 1) // across + 1
    if min(images, channels, out_tall, out_wide) < 1:
        return None
    # Neighbouring rows, and neighbouring images, share their padding; with strides they do not.
    rows = height + max(top, bottom) if down == 1 else -(-padded[0] // down)
    pitch = width + max(left, right) if across == 1 else -(-padded[1] // across)
    rows, pitch = max(rows, out_tall), max(pitch, out_wide)
    positions = ((images - 1) * rows + out_tall - 1) * pitch + out_wide
    row, column, channel = (np.asarray(axis, np.int64) for axis in taps)
    # Tap r reads the padded row y stride + r dilation, which is row y + (r dilation) // stride
    # among those of the remainder (r dilation) % stride.
    row, row_phase = np.divmod(row * dilation[0], down)
    column, column_phase = np.divmod(column * dilation[1], across)
    used, phase = np.unique(row_phase * across + column_phase, return_inverse=True)
    reach = tall_span // down * pitch + wide_span // across
    line = -(-max(images * rows * pitch, positions + reach) // 16) * 16
    offsets = (channel * len(used) + phase.reshape(-1)) * line + row * pitch + column
    length = channels * len(used) * line + reach + WIDEST // 4
    if length > MOST:
        return None
    geometry = (
        images, channels, height, width, top, left, down, across, rows, pitch, line, positions,
        len(pointers) - 1, out_tall, out_wide, len(offsets), len(used),
    )  # fmt: skip
    begin = np.searchsorted(pointers, np.arange(PARTS + 1) * len(offsets) // PARTS)
    begin[0], begin[-1] = 0, len(pointers) - 1
    return Lines(
        offsets.astype(np.int32),
        np.asarray(pointers, np.int32),
        np.stack(np.divmod(used, across), axis=1).reshape(-1).astype(np.int32),
        np.concatenate([geometry, begin]).astype(np.int32),
        # Sums of float32 numbers take as many bytes as half as many of float64.
        PARTS * WIDEST // 4 + length,
        (images, len(pointers) - 1, out_tall, out_wide),
    )

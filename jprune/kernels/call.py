"""Sparse convolutions as a custom call of XLA on the CPU, right under `jit` and `vmap`.

The kernels need numba (`pip install jprune[sparse]`). Without it, and where a contraction is none
that they can run, `sparse_convolution` returns None and the caller uses its plain form.
"""

import contextlib
import contextvars
import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.kernels.lines import Lines, lines_of

DTYPES = ("float32", "float64")
"""Types of numbers that the kernels take."""

_PORTABLE = contextvars.ContextVar("portable", default=False)


def available() -> bool:
    """Whether the kernels can run: numba is installed."""
    return importlib.util.find_spec("numba") is not None


def require() -> None:
    """Refuses to go on without the kernels.

    Raises:
        MissingExtraError: numba is not installed.
    """
    if not available():
        raise errors.MissingExtraError(
            "sparse execution on CPUs needs numba, which is not installed: "
            "`pip install 'jprune[sparse]'`. Without it sparse kernels run in their plain form, "
            "which is mostly slower than the dense layer."
        )


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """While it lasts, what is traced has no custom calls: programs for export and for other hosts.

    Example:
        >>> with portable():
        ...     wanted()
        False
    """
    token = _PORTABLE.set(True)
    try:
        yield
    finally:
        _PORTABLE.reset(token)


def wanted() -> bool:
    """Whether kernels may be used: they are available, and the program need not be portable."""
    return not _PORTABLE.get() and available()


def sparse_convolution(
    shape: Sequence[int],
    taps: np.ndarray,
    pointers: np.ndarray,
    window: Sequence[int],
    *,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: Sequence[int] = (1, 1),
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """A function that runs a sparse convolution in place, for CPUs alone.

    Args:
        shape: of the data, (images, channels, height, width).
        taps: int [3, non-zeros]: row and column in the window, and channel of the data, of every
            weight, filter after filter.
        pointers: int [filters + 1]: filter f has the weights pointers[f] to pointers[f + 1].
        window: (height, width).
        strides: of the window.
        padding: zeros before and behind rows and columns, none of them negative.
        dilation: of the window.

    Returns:
        `run(x, values)`, with x [images, channels, height, width] and values [non-zeros] of one of
        `DTYPES`; it returns [images, filters, height', width'] and can be vectorised, but has no
        derivative. None where the data is too large for the kernel's int32 offsets.

    Raises:
        MissingExtraError: numba is not installed.
        StructureError: `run` got arrays of other shapes or types than these.
    """
    require()
    settings: dict[str, Any] = {"strides": strides, "padding": padding, "dilation": dilation}
    lines = lines_of(shape, taps, pointers, window, **settings)
    if lines is None:
        return None
    from jprune.kernels.handler import TARGETS, register

    register()
    again = functools.partial(
        sparse_convolution, taps=taps, pointers=pointers, window=window, **settings
    )

    @jax.custom_batching.custom_vmap
    def run(x: jax.Array, values: jax.Array) -> jax.Array:
        _check(x, values, shape, lines)
        result = [jax.ShapeDtypeStruct(size, x.dtype) for size in (lines.out, (lines.scratch,))]
        call = jax.ffi.ffi_call(TARGETS[str(x.dtype)], result)
        layout = lines.offsets, lines.pointers, lines.phases, lines.geometry
        return call(x, values, *layout)[0]

    @run.def_vmap
    def batched(size: int, batched: Sequence[bool], x: jax.Array, values: jax.Array) -> tuple:
        if batched[1]:
            pair = lambda index: (
                x[index] if batched[0] else x,
                values[index],
            )
            return jax.lax.map(lambda index: run(*pair(index)), jax.numpy.arange(size)), True
        # More images are a longer line.
        joined = again((size * shape[0], *shape[1:]))
        if joined is None:
            return jax.lax.map(lambda one: run(one, values), x), True
        result = joined(x.reshape(-1, *x.shape[2:]), values)
        return result.reshape(size, -1, *result.shape[1:]), True

    return run


def _check(x: jax.Array, values: jax.Array, shape: Sequence[int], lines: Lines) -> None:
    """The kernel reads memory by address: shapes are compared before it is called."""
    same = x.shape == tuple(shape) and values.shape == lines.offsets.shape
    if not (same and x.dtype == values.dtype and str(x.dtype) in DTYPES):
        raise errors.StructureError(
            f"a sparse convolution made for data {tuple(shape)} and {len(lines.offsets)} values "
            f"got {x.shape} {x.dtype} and {values.shape} {values.dtype}; both are float32 or both "
            "float64. Make one for this shape: `sparse_convolution(x.shape, ...)`."
        )

"""Exact top-k with ties by index, on the host and jitted, without sorting."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def best(scores: Any, count: Any) -> Any:
    """Bool mask of the `count` highest scores; among equal ones the lowest index is kept.

    Concrete scores are selected on the host by partition, traced ones by bisection on the bits of
    the threshold, since XLA takes seconds to sort 25 million floats. A score of -inf is never kept.

    Args:
        scores: [n].
        count: how many, at most n; may be traced.

    Example:
        >>> best(np.array([1.0, 3.0, 3.0, 3.0]), 2).tolist()
        [False, True, True, False]
    """
    if isinstance(scores, Tracer) or isinstance(count, Tracer):
        return _best_traced(jnp.asarray(scores), count)
    return _best_on_host(np.asarray(scores), int(count))


def _best_on_host(scores: np.ndarray, count: int) -> np.ndarray:
    alive = scores > -np.inf
    if count <= 0:
        return np.zeros(scores.shape, bool)
    if count >= scores.size:
        return alive
    # The count-th largest score, in O(n): all above it are kept, of those equal to it the first.
    threshold = np.partition(scores, scores.size - count)[scores.size - count]
    mask = scores > threshold
    ties = np.flatnonzero(scores == threshold)[: count - int(mask.sum())]
    mask[ties] = True
    return mask & alive


def _ordered_bits(scores: jax.Array) -> jax.Array:
    """Unsigned integers in the order of the floats; NaN counts as -inf."""
    wide = jnp.finfo(scores.dtype).bits == 64
    scores = scores if wide else scores.astype(jnp.float32)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores) + 0.0  # -0.0 becomes 0.0
    unsigned = jnp.uint64 if wide else jnp.uint32
    # Bits of positive floats rise with the floats, those of negative ones fall: the former get the
    # top bit, the latter are inverted. In 8 bits: +1 = 00111000 -> 10111000, -1 = 10111000 ->
    # 01000111.
    bits = jax.lax.bitcast_convert_type(scores, unsigned)
    sign = jnp.array(1, unsigned) << (63 if wide else 31)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)


def _best_traced(scores: jax.Array, count: Any) -> jax.Array:
    bits = _ordered_bits(scores)
    # The largest threshold that at least `count` scores reach; then, among the scores equal to it,
    # the last index up to which they are needed. Each bit is one pass over the scores, without a
    # sorted copy.
    threshold = _largest(lambda bound: (bits >= bound).sum() >= count, bits.dtype)
    missing = count - (bits > threshold).sum()
    ties = lambda end: (bits == threshold) & (jax.lax.iota(jnp.uint32, scores.size) < end)
    end = _largest(lambda end: ties(end).sum() <= missing, jnp.uint32)
    return ((bits > threshold) | ties(end)) & (scores > -jnp.inf) & (jnp.asarray(count) > 0)


def _largest(holds: Callable[[jax.Array], jax.Array], dtype: Any) -> jax.Array:
    """The largest integer for which `holds`, which is True up to some integer and False above."""
    width = 8 * jnp.dtype(dtype).itemsize

    def lower(bit: Any, prefix: jax.Array) -> jax.Array:
        # From the highest bit down: a bit stays set if the number with it, and zeros below, holds.
        candidate = prefix | (jnp.array(1, dtype) << (width - 1 - bit).astype(dtype))
        return jnp.where(holds(candidate), candidate, prefix)

    return jax.lax.fori_loop(0, width, lower, jnp.zeros((), dtype))


def keep_best(leaf: Any, count: Any) -> Any:
    """Bool mask of the best `count` entries of a leaf of any shape; +inf is always kept."""
    traced = isinstance(leaf, Tracer) or isinstance(count, Tracer)
    numbers = jnp if traced else np
    flat = numbers.reshape(numbers.asarray(leaf), (-1,))
    count = numbers.maximum(count, (flat == numbers.inf).sum())
    return numbers.reshape(best(flat, count), np.shape(leaf))

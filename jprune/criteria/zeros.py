"""Zeros: the fraction of a unit's activations that are not exactly 0.

References:
    Hu, Peng, Tai, Tang, Network trimming: a data-driven neuron pruning approach towards efficient
    deep architectures, 2016, arXiv 1607.03250 [6].
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.criteria.activations import Statistic
from jprune.graph.shrink.concrete import full, on_host

FEW = 0.02
"""Fraction of zeros below which zeros say nothing."""


class Count(NamedTuple):
    """A whole number below 2^64, in two halves: JAX has no wider type without `jax_enable_x64`.

    Attributes:
        high: uint32, times 2^32.
        low: uint32.
    """

    high: jax.Array
    low: jax.Array


class Zeros(NamedTuple):
    """State of `zeros`.

    Attributes:
        zeros: of every unit.
        seen: number of activations of a unit.
    """

    zeros: Count
    seen: Count


def zeros(below: float = 0.0) -> Statistic:
    """A `Statistic`: 1 - APoZ, the paper's average percentage of zeros being what is low here.

    Zeros are counted in whole numbers, so that the score is exact for any batches. A unit of score
    0 says nothing on the calibration data and can go without a trace; one of 0.01 cannot.

    Args:
        below: how far from 0 a zero may be; the paper's are exact.

    Raises:
        ArgumentError: `below` is negative; hardly an activation was 0 (when scored).

    Example:
        >>> maps = jnp.array([[[0.0, 1, 2, 0]], [[0, 0, 0, 0]]])  # 2 examples, 1 unit, 4 positions
        >>> statistic = zeros()
        >>> state = statistic.update(statistic.init(1), maps, jnp.array([True, True]))
        >>> statistic.score(state).tolist()
        [0.25]
    """
    if not below >= 0:
        raise errors.ArgumentError(f"zeros(below={below}); write 0 for exact zeros, or more.")

    def init(units: int) -> Zeros:
        count = lambda: Count(*(full((units,), 0, jnp.uint32) for _ in range(2)))
        return Zeros(count(), count())

    def update(state: Zeros, maps: jax.Array, counted: jax.Array) -> Zeros:
        zero = (abs(maps) <= below).reshape(*maps.shape[:2], -1)
        positions = jnp.uint32(zero.shape[2])
        # sum over k, j of 1[O_c,j(k) = 0], of the examples k that count
        zero = zero.sum(axis=2, dtype=jnp.uint32) * counted[:, None]
        seen = jnp.broadcast_to(counted.sum(dtype=jnp.uint32) * positions, maps.shape[1])
        return Zeros(_plus(state.zeros, zero.sum(0)), _plus(state.seen, seen))

    @on_host
    def share(xnp: Any, high: Any, low: Any, seen_high: Any, seen_low: Any) -> Any:
        number = lambda high, low: high.astype(float) * 2.0**32 + low.astype(float)
        seen = number(seen_high, seen_low)
        # 1 - APoZ_c = (N M - zeros) / (N M)
        return (seen - number(high, low)) / xnp.maximum(seen, 1)

    return Statistic(
        init, update, lambda state: share(*state.zeros, *state.seen), check=_check, rectified=True
    )


def _plus(count: Count, more: jax.Array) -> Count:
    low = count.low + more  # modulo 2^32: what is smaller than before has run over
    return Count(count.high + (low < more), low)


def _check(scores: Mapping[str, Any]) -> None:
    # A GELU of -6 is rounded to 0: a few zeros are none.
    share = 1 - np.concatenate([np.asarray(score, float) for score in scores.values()]).mean()
    if share < FEW:
        raise errors.ArgumentError(
            f"of the activations of {', '.join(scores)} {share:.2%} were 0: zeros say nothing of a "
            "net of GELU, tanh or leaky ReLU. Write another statistic, such as entropy(), or "
            "zeros(below=...)."
        )

"""Entropy: how evenly a unit's mean activation is spread over the images.

References:
    Luo, Wu, An entropy-based pruning method for CNN compression, 2017, arXiv 1706.05791 [21].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.criteria.activations import Statistic
from jprune.graph.shrink.concrete import full, on_host


class Ranges(NamedTuple):
    """State of the first pass.

    Attributes:
        low: [units]: the smallest mean activation.
        high: [units]: the largest.
    """

    low: jax.Array
    high: jax.Array


class Counts(NamedTuple):
    """State of the second pass.

    Attributes:
        low: as of `Ranges`.
        high: as of `Ranges`.
        counts: int32 [units, bins]: images whose mean activation lies in a bin.
    """

    low: jax.Array
    high: jax.Array
    counts: jax.Array


def entropy(bins: int = 100) -> Statistic:
    """A `Statistic`: the Shannon entropy, in nats, of a unit's mean activation over images.

    The map of an image is averaged first; then the range of a unit's means is cut into bins of
    equal width. Two passes: ranges, and counts, so that no activation is held. A factor above 0
    and a shift of a unit change nothing, so a unit that says next to nothing scores high if that
    varies: this is the method. A unit that is constant scores exactly 0. One outlier puts all other
    images into one bin. Scores are at most log(min(bins, images)), and comparable for the same bins
    and images, within a layer.

    Args:
        bins: the paper's are 100.

    Raises:
        ArgumentError: less than one bin; the second pass is missing (when scored).

    Example:
        >>> maps = jnp.array([[[0.0, 0], [2, 2]], [[1, 3], [2, 2]]])  # 2 images, 2 units
        >>> statistic, counted = entropy(4), jnp.array([True, True])
        >>> state = statistic.again(statistic.update(statistic.init(2), maps, counted))
        >>> statistic.score(statistic.update(state, maps, counted)).tolist()  # log 2, 0
        [0.6931471824645996, 0.0]
    """
    if bins < 1:
        raise errors.ArgumentError(f"entropy(bins={bins}); write 1 bin or more.")

    def init(units: int) -> Ranges:
        return Ranges(full((units,), jnp.inf), full((units,), -jnp.inf))

    def update(state: Ranges | Counts, maps: jax.Array, counted: jax.Array) -> Ranges | Counts:
        maps = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
        # A_kj = mean over the positions of map j of image k
        means = maps.reshape(*maps.shape[:2], -1).mean(axis=2)
        here = counted[:, None]
        if isinstance(state, Ranges):
            low = jnp.where(here, means, jnp.inf).min(axis=0).astype(state.low.dtype)
            high = jnp.where(here, means, -jnp.inf).max(axis=0).astype(state.high.dtype)
            return Ranges(jnp.minimum(state.low, low), jnp.maximum(state.high, high))
        width = state.high - state.low
        # i = floor((A - min) / (max - min) m); no epsilon, which small units would feel.
        place = jnp.floor((means - state.low) / jnp.where(width > 0, width, 1) * bins)
        place = jnp.clip(place, 0, bins - 1).astype(int)
        units = jnp.arange(maps.shape[1])
        return state._replace(counts=state.counts.at[units, place].add(here.astype(jnp.int32)))

    def again(state: Ranges) -> Counts:
        return Counts(*state, full((state.low.shape[0], bins), 0, jnp.int32))

    def score(state: Ranges | Counts) -> Any:
        if isinstance(state, Ranges):
            raise errors.ArgumentError(
                "entropy looks at the batches twice, and this state has seen them once. Write "
                "state = criterion.again(state) and update with the same batches; run_criterion "
                "does so."
            )
        return _entropy(state.counts)

    return Statistic(init, update, score, again)


@on_host
def _entropy(xnp: Any, counts: Any) -> Any:
    # p_i = count_i / M
    share = counts / xnp.maximum(counts.sum(axis=1, keepdims=True), 1)
    # H_j = -sum_i p_i log p_i, and 0 log 0 = 0; -0.0 is 0.
    return -(share * xnp.log(xnp.where(share > 0, share, 1))).sum(axis=1) + 0.0

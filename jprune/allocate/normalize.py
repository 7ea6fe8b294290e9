"""Scores of different groups made comparable by dividing each by its norm."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.base import Scores

NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "l1": lambda leaf: jnp.abs(leaf).sum(),
    "l2": lambda leaf: jnp.sqrt(jnp.square(leaf).sum()),
    "mean": lambda leaf: jnp.abs(leaf).mean(),
    "max": lambda leaf: jnp.abs(leaf).max(),
}


def normalized(scores: Scores, by: str = "l2") -> Scores:
    """Every leaf divided by its own norm over the finite entries; a leaf of zeros stays zero.

    Args:
        scores: {group: [n]} or a tree.
        by: `l2` (Molchanov et al. 2017, arXiv 1611.06440: the squares of a layer sum to 1), `l1`,
            `mean` or `max`.

    Raises:
        ArgumentError: another norm.

    Example:
        >>> normalized({"a": jnp.array([3.0, 4.0])})["a"].tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    if by not in NORMS:
        raise errors.ArgumentError(f"normalized(by={by!r}); write one of {', '.join(NORMS)}.")

    def one(leaf):
        # s_i / ||s||, as in s_i / sqrt(sum_j s_j^2) of the layer-wise l2 normalisation. -inf and
        # +inf are marks, not numbers: they stay and do not enter the norm.
        finite = jnp.isfinite(leaf)
        size = NORMS[by](jnp.where(finite, leaf, 0.0))
        return jnp.where(finite, leaf / jnp.where(size > 0, size, 1.0), leaf)

    return jax.tree.map(one, scores)

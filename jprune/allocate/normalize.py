"""Scores of different groups made comparable by dividing each by its norm."""

from collections.abc import Callable
from typing import Any

import jax

from jprune import errors
from jprune.base import Scores
from jprune.graph.shrink.concrete import on_host

NORMS: dict[str, Callable[[Any], Any]] = {
    "l1": lambda leaf: abs(leaf).sum(),
    "l2": lambda leaf: (leaf**2).sum() ** 0.5,
    "mean": lambda leaf: abs(leaf).mean(),
    "max": lambda leaf: abs(leaf).max(),
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
        >>> import jax.numpy as jnp
        >>> normalized({"a": jnp.array([3.0, 4.0])})["a"].tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    if by not in NORMS:
        raise errors.ArgumentError(f"normalized(by={by!r}); write one of {', '.join(NORMS)}.")

    @on_host
    def one(xnp: Any, leaf: Any) -> Any:
        # s_i / ||s||, as in s_i / sqrt(sum_j s_j^2) of the layer-wise l2 normalisation. -inf and
        # +inf are marks, not numbers: they stay and do not enter the norm.
        finite = xnp.isfinite(leaf)
        size = NORMS[by](xnp.where(finite, leaf, 0.0))
        return xnp.where(finite, leaf / xnp.where(size > 0, size, 1.0), leaf)

    return jax.tree.map(one, scores)

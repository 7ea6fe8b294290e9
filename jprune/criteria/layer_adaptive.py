"""Layer-adaptive magnitude: the square of a weight over those of all that are left with it.

References:
    Lee, Park, Mo, Ahn, Shin, Layer-adaptive sparsity for the magnitude-based pruning, 2021, arXiv
    2010.07611.
"""

from typing import Any

from jprune.base import Criterion
from jprune.graph.shrink.concrete import on_host
from jprune.masks import map_parameters


def layer_adaptive() -> Criterion:
    """w_u^2 over the sum of the squares that are no smaller, for every parameter, leaf by leaf.

    The best of a leaf scores 1 and the smallest its share of the leaf, so that one global threshold
    (`allocate.global_topk`) empties no layer as long as another one has two weights left. Pruned
    weights are 0 and count for nothing; equal ones score in the order of their index, the first one
    highest. Scaling a leaf changes nothing.

    Returns:
        A criterion whose scores are a tree like the variables, None for statistics. A leaf of
        zeros scores 0, a NaN makes the scores of its leaf NaN.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> scores = jprune.run_criterion(layer_adaptive(), {"w": jnp.array([1.0, -2.0, 3.0])}, ())
        >>> (1 / scores["w"]).round(4).tolist()
        [14.0, 3.25, 1.0]
    """

    def score(state, variables):
        del state
        return map_parameters(on_host(_scores), variables)

    return Criterion(lambda variables: (), lambda state, variables, batch: state, score, False)


def _scores(xnp: Any, leaf: Any) -> Any:
    flat = xnp.abs(leaf).reshape(-1)
    # On the host in double precision: sums of millions of squares.
    flat = flat.astype("float64") if xnp.__name__ == "numpy" else flat
    largest = flat.max(initial=0)
    # In units of the largest one no square underflows that counts.
    squares = (flat / xnp.where(largest == 0, 1, largest)) ** 2
    # Falling order, ties by index: v >= u are those up to u.
    order = xnp.argsort(-squares, stable=True)
    falling = squares[order]
    rest = falling.cumsum()
    # score(u) = w_u^2 / sum_{v >= u} w_v^2
    ratios = falling / xnp.where(rest == 0, 1, rest)
    back = xnp.argsort(order, stable=True)
    return ratios[back].reshape(leaf.shape)

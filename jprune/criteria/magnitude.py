"""Magnitude: weights with a small absolute value are removed first.

References:
    Han, Pool, Tran, Dally, Learning both weights and connections for efficient neural networks,
    2015, arXiv 1506.02626. For filters: Li, Kadav, Durdanovic, Samet, Graf, Pruning filters for
    efficient ConvNets, 2017, arXiv 1608.08710.
"""

from jprune import errors
from jprune.base import Criterion
from jprune.graph.shrink.concrete import on_host
from jprune.masks import map_parameters


def magnitude(order: int = 1) -> Criterion:
    """|w|^order for every parameter: a tree like the variables, None for statistics.

    A weight that is NaN scores NaN, which every allocator refuses. Pooled by
    `to_units(groups, scores)` it is the L1 norm of a filter, or its squared L2 norm; pooling with
    `within="mean"` makes filters of different size comparable.

    Args:
        order: 1 (L1) or 2 (L2, squared: the order of filters is that of the norms).

    Raises:
        ArgumentError: another order.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> jprune.run_criterion(magnitude(2), {"w": jnp.array([-3.0, 2.0])}, ())["w"]
        Array([9., 4.], dtype=float32)
    """
    if order not in (1, 2):
        raise errors.ArgumentError(f"magnitude(order={order}); write 1 for L1 or 2 for L2.")

    def score(state, variables):
        del state
        # s_k = |w_k|^p. No root for p = 2: sums of squares rank filters as their norms do.
        return map_parameters(on_host(lambda xnp, leaf: xnp.abs(leaf) ** order), variables)

    return Criterion(lambda variables: (), lambda state, variables, batch: state, score, False)

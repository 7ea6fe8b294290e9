"""The size of a weight in standard deviations of its layer.

References:
    Han, Pool, Tran, Dally, Learning both weights and connections for efficient neural networks,
    2015, arXiv 1506.02626 [4].
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.base import Criterion, PyTree, Scores, Variables, is_none
from jprune.graph.shrink.concrete import on_host
from jprune.masks import map_parameters

STD_OVER = ("alive", "all")


def std_rule(q: PyTree = 1.0, std_over: str = "alive") -> Criterion:
    """|w| / (q_l std(W_l)): the paper keeps the weights of layer l whose score is above 1.

    All layers share one threshold on this score, so a global allocation finds the one multiplier of
    all q_l at which a budget is met. A layer whose weights are all equal has std 0, and is divided
    by q_l alone.

    Args:
        q: of all layers, or a tree like the variables, None where nothing is prunable.
        std_over: "alive" (the weights that are not exactly 0: what was pruned does not count) or
            "all". The paper does not say which; it makes a difference from the second round on.
            The standard deviation divides by n, not by n - 1.

    Raises:
        ArgumentError: a q that is not above 0, or another `std_over`.

    Example:
        >>> import jprune
        >>> rule = std_rule(0.75, "all")
        >>> jprune.run_criterion(rule, {"w": jnp.array([-3.0, -1, 0, 1, 3])}, ())["w"] > 1
        Array([ True, False, False, False,  True], dtype=bool)
    """
    if std_over not in STD_OVER:
        raise errors.ArgumentError(
            f"std_rule(std_over={std_over!r}); write one of {', '.join(STD_OVER)}."
        )
    if not all(float(value) > 0 for value in jax.tree.leaves(q)):
        raise errors.ArgumentError(
            f"std_rule(q={q}); every q is above 0, and a larger one prunes more."
        )

    @on_host
    def deviation(xnp: Any, leaf: Any) -> Any:
        # "alive": counting the zeros of earlier rounds would lower std, and the threshold with it.
        counted = leaf != 0 if std_over == "alive" else xnp.ones(leaf.shape, bool)
        count = xnp.maximum(counted.sum(), 1)
        leaf = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        # std^2 = sum (w - mean)^2 / n
        mean = xnp.where(counted, leaf, 0).sum() / count
        std = xnp.sqrt((xnp.where(counted, leaf - mean, 0) ** 2).sum() / count)
        return xnp.where(std > 0, std, 1.0)

    def one(leaf: jax.Array, factor: float) -> jax.Array:
        # The paper keeps |w| > q_l std(W_l), that is |w| / (q_l std(W_l)) > 1.
        scaled = on_host(lambda xnp, leaf, std: xnp.abs(leaf) / (factor * std))
        return scaled(leaf, deviation(leaf))

    def score(state: PyTree, variables: Variables) -> Scores:
        del state
        if isinstance(q, (int, float)):
            return map_parameters(lambda leaf: one(leaf, q), variables)
        return jax.tree.map(
            lambda factor, leaf: None if factor is None else one(leaf, factor),
            q,
            variables,
            is_leaf=is_none,
        )

    return Criterion(lambda variables: (), lambda state, variables, batch: state, score, False)

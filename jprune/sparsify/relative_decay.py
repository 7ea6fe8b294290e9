"""Weight decay that is the stronger, the less a unit weighs: small units fade, large ones stay.

    g <- g + lambda_k w   for every weight w of unit k, in all layers that are coupled

References:
    Fang, Ma, Song, Mi, Wang, DepGraph: towards any structural pruning, 2023, arXiv 2301.12900.
    Factors that grow: Wang, Qin, Zhang, Fu, Neural pruning via growing regularization, 2021, arXiv
    2012.09243; both as in Torch-Pruning.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Params
from jprune.blocks.members import Blocks, leaves_of, squares
from jprune.graph.shrink.concrete import full
from jprune.sparsify.group_decay import decayed


class RelativeDecayState(NamedTuple):
    """State of `relative_decay`.

    Attributes:
        step: how many were taken.
        factors: {block: [units]}: the lambda_k of factors that grow; the strength, of others.
    """

    step: jax.Array
    factors: Mapping[str, jax.Array]


def lightness(norms: Any) -> Any:
    """[units]: 0 for the largest of a group, 1 for the smallest; 0 where all are equal.

    Example:
        >>> lightness(jnp.array([1.0, 2.0, 4.0])).round(4).tolist()
        [1.0, 0.666..., 0.0]
    """
    most, least = norms.max(), norms.min()
    # (I_max - I_k) / (I_max - I_min)
    return jnp.where(most > least, (most - norms) / jnp.where(most > least, most - least, 1.0), 0.0)


def decay_factors(norms: Any, alpha: float = 4.0) -> Any:
    """[units]: gamma_k = 2^(alpha (I_max - I_k) / (I_max - I_min)), in [1, 2^alpha].

    Example:
        >>> [round(float(x), 2) for x in decay_factors(jnp.array([1.0, 2.0, 4.0]))]
        [16.0, 6.35, 1.0]
    """
    # gamma_k = 2^(alpha (I_max - I_k) / (I_max - I_min))
    return 2.0 ** (alpha * lightness(norms))


def relative_decay(
    blocks: Blocks,
    strength: float,
    *,
    alpha: float = 4.0,
    growth: float | None = None,
    every: int = 1,
) -> optax.GradientTransformation:
    """Adds lambda_k w to the gradient of every weight of a unit; no weight becomes 0.

    Place it before the optimizer. I_k is the root of the sum of squares of unit k over all of its
    weights, as they are in this step; units that are 0 have no part in the comparison.

    Args:
        blocks: the units, mostly `blocks.coupled(groups)`.
        strength: lambda; of all units where factors grow, in the beginning.
        alpha: lambda_k = strength 2^(alpha (I_max - I_k) / (I_max - I_min)).
        growth: factors grow instead: every so many steps lambda_k rises by this much times
            (I_max - I_k) / (I_max - I_min). None: they do not.
        every: steps from one growth to the next, the first one at once.

    Returns:
        An optax transformation.

    Raises:
        ArgumentError: a number below 0, `every` below 1, no units; `update` without parameters.
        StructureError: parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> v = {"a": jnp.array([[3.0, 1.0]]), "b": jnp.array([[4.0], [0.0]])}
        >>> groups = jprune.trace(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"], v, jnp.ones(1))
        >>> tx = relative_decay(blocks.coupled(groups), strength=0.1)
        >>> pull, _ = tx.update(jax.tree.map(jnp.zeros_like, v), tx.init(v), v)
        >>> [[round(float(x), 2) for x in leaf.ravel()] for leaf in pull.values()]
        [[0.3, 1.6], [0.4, 0.0]]
    """
    if not (strength >= 0 and alpha >= 0 and (growth is None or growth >= 0) and every >= 1):
        raise errors.ArgumentError(
            f"relative_decay(strength={strength}, alpha={alpha}, growth={growth}, every={every}); "
            "every is 1 or more, the others 0 or more."
        )
    if not blocks:
        raise errors.ArgumentError("relative_decay got no units: there is nothing to decay.")

    def init(params: Params) -> RelativeDecayState:
        leaves_of(blocks, params)  # refuses parameters of another net
        factors = {name: full((block.size,), strength) for name, block in blocks.items()}
        return RelativeDecayState(jnp.zeros((), jnp.int32), factors)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "relative_decay needs the parameters: call tx.update(gradients, state, params)."
            )
        norms = {name: _norms(square) for name, square in squares(blocks, params).items()}
        if growth is None:
            # lambda_k = lambda gamma_k
            now = {name: strength * decay_factors(norm, alpha) for name, norm in norms.items()}
            after = state.factors
        else:
            grows = growth * (state.step % every == 0)
            # lambda_k <- lambda_k + delta (I_max - I_k) / (I_max - I_min)
            now = {n: state.factors[n] + grows * lightness(norm) for n, norm in norms.items()}
            after = jax.tree.map(lambda new, old: new.astype(old.dtype), now, dict(state.factors))
        return decayed(blocks, updates, params, now), RelativeDecayState(state.step + 1, after)

    return optax.GradientTransformation(init, update)


def _norms(square: Any) -> Any:
    """I_k; that of the largest unit where a unit is 0, so that it is compared with none."""
    norm = jnp.sqrt(square)
    return jnp.where(norm > 0, norm, norm.max())

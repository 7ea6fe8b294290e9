"""Group sparsity for a copy of the weights: the proximal steps of l2,1 and l2,0 norms, for `admm`.

    minimise f(W) + lambda g(F) with W = F;   F <- prox of lambda g / rho at V = W + U

With the multipliers Y = rho U of an augmented Lagrangian, V is W + Y / rho.

References:
    l2,1: Yuan, Lin, Model selection and estimation in regression with grouped variables, 2006. Both
    in an augmented Lagrangian for nets: Lin, Ji, Li, Deng, Li, Toward compact ConvNets via
    structure-sparsity regularized filter pruning, 2020, arXiv 1901.07827 [36].
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.base import Params, PyTree
from jprune.blocks.members import Blocks, leaves_of, scale, squares
from jprune.masks import best

NORMS = ("l21", "l20")
"""Sum of the norms of the groups, and number of the groups that are not 0."""


def proximal(
    blocks: Blocks,
    rho: float,
    *,
    norm: str = "l21",
    strength: float | Mapping[str, float] | None = None,
    keep: Mapping[str, int] | None = None,
    least: int | Mapping[str, int] = 1,
) -> Callable[[Params], PyTree]:
    """The point F that minimises lambda g(F) + rho/2 ||F - V||^2, as a function of V.

        l21:  F_g = V_g max(0, 1 - lambda / (rho ||V_g||))
        l20:  F_g = V_g where ||V_g||^2 > 2 lambda / rho, else 0

    Args:
        blocks: the groups, from `jprune.blocks`.
        rho: of the quadratic term; that of `admm`, whose growth is then 1.
        norm: "l21", which is convex and shrinks what stays, or "l20", which leaves it alone.
        strength: lambda, of all blocks or by block.
        keep: instead of a strength, how many groups of every block stay: lambda is then, in every
            step, the smallest one that leaves no more, lambda / rho = the norm of the largest group
            that goes. Under "l20" this is the projection of `sparsify.projection`.
        least: how many groups of a block stay whatever the strength; they keep their V.

    Returns:
        `project(parameters)`, None at leaves without such groups: to be handed to `admm`. The
        support of its result is what the method has chosen: `blocks.alive(blocks, state.target)`.

    Raises:
        ArgumentError: another norm, a number out of range, blocks without one, or not one of
            strength and keep.

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> w = {"w": jnp.array([[3.0, 4.0], [0.6, 0.8], [0.3, 0.4]]).T}
        >>> filters = blocks.rows(jprune.trace(lambda v, x: x @ v["w"], w, jnp.ones(2)))
        >>> soft = proximal(filters, rho=2.0, strength=1.5)
        >>> [[round(float(x), 2) for x in row] for row in soft(w)["w"].T]
        [[2.55, 3.4], [0.15, 0.2], [0.0, 0.0]]
        >>> proximal(filters, 1.0, norm="l20", keep={"w": 1})(w)["w"].T[1].tolist()
        [0.0, 0.0]
    """
    strengths = _by_block(blocks, strength, "strength")
    counts, fewest = _by_block(blocks, keep, "keep"), _by_block(blocks, least, "least")
    if norm not in NORMS or not rho > 0 or (strength is None) == (keep is None):
        raise errors.ArgumentError(
            f"proximal(norm={norm!r}, rho={rho}, strength={strength}, keep={keep}); write one of "
            f"{', '.join(NORMS)}, a rho above 0, and a strength or how many groups to keep."
        )
    if not all(value >= 0 for value in strengths.values() if value is not None):
        raise errors.ArgumentError(f"proximal(strength={strength}); each is 0 or more.")

    def factors(name: str, square: Any) -> Any:
        count, stays = counts[name], fewest[name]
        if count is not None and count < blocks[name].size:
            # lambda / rho (l21) or its root times 2 (l20): the (k+1)-th largest norm
            limit = jax.lax.top_k(jnp.asarray(square), count + 1)[0][-1]
            stays = max(stays, count)
        elif count is not None:
            limit = jnp.zeros(())
        elif norm == "l21":
            # (lambda / rho)^2
            limit = (strengths[name] / rho) ** 2
        else:
            # 2 lambda / rho
            limit = 2 * strengths[name] / rho
        if norm == "l20":
            # V_g where ||V_g||^2 > 2 lambda / rho
            factor = 1.0 * (square > limit)
        else:
            # max(0, 1 - lambda / (rho ||V_g||))
            ratio = limit / jnp.where(square > 0, square, 1.0)
            factor = jnp.where(square > limit, 1.0 - jnp.sqrt(ratio), 0.0)
        # Equal norms would all go together: the first of them stay, and unshrunk.
        lasts = best(square, min(stays, blocks[name].size))
        return jnp.where((factor <= 0) & lasts, 1.0, factor)

    def project(params: Params) -> PyTree:
        sums = squares(blocks, params)
        near = scale(blocks, params, {name: factors(name, s) for name, s in sums.items()})
        leaves = leaves_of(blocks, near)
        chosen = [leaf if path in blocks.counted else None for path, leaf in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(params), chosen)

    return project


def _by_block(blocks: Blocks, values: Any, option: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return dict.fromkeys(blocks, values)
    if {*values} != {*blocks}:
        raise errors.ArgumentError(
            f"{option} is of {', '.join(values) or 'nothing'}; write one number, or one for each "
            f"of {', '.join(blocks)}."
        )
    return dict(values)

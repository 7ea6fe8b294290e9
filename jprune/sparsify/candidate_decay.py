"""An L1 penalty on the smallest groups of every block alone: those that are to go next.

    E(W) = E_D(W) + sum over blocks b of lambda_b sum over candidates of |w|

References:
    Singh, Verma, Rai, Namboodiri, Play and prune: adaptive filter pruning for deep model
    compression, 2019, arXiv 1905.04446. As a proximal step: Parikh, Boyd, Proximal algorithms,
    2014.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.base import Params, Schedule
from jprune.blocks.members import Blocks, along, leaves_of, pool
from jprune.graph.shrink.concrete import as_array, on_host
from jprune.masks import best


class CandidateState(NamedTuple):
    """State of `candidate_decay`.

    Attributes:
        step: how many were taken.
        strength: {block: lambda}.
        chosen: {block: bool [groups]}: the candidates.
    """

    step: jax.Array
    strength: dict[str, jax.Array]
    chosen: dict[str, jax.Array]


def candidates(blocks: Blocks, params: Params, fraction: float) -> dict[str, Any]:
    """The groups with the smallest sum of |w|, so many of every block.

    Args:
        blocks: of one kind.
        params: those of the traced net or a part of them.
        fraction: of the groups of a block that are not 0; at least one is chosen where two or more
            are left, and never the last.

    Returns:
        {block: bool [groups]}; of equal groups the first.

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> params = {"w": jnp.array([[3.0, 0.0, 1.0, 2.0]])}
        >>> groups = jprune.trace(lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["out"], {
        ...     **params, "out": jnp.ones((4, 2))}, jnp.ones((1, 1)))
        >>> candidates(blocks.filters(groups), params, 0.34)["w"].tolist()
        [False, False, True, False]
    """
    sums = pool(blocks, jax.tree.map(on_host(lambda xnp, leaf: xnp.abs(leaf)), params))
    chosen = {}
    for name, size in sums.items():
        xnp: Any = np if isinstance(size, np.ndarray) else jnp
        size = size.astype(np.float32)
        alive = (size > 0).sum()
        # U_i: the alpha % of layer i with the smallest |f_j|_1, of those that are still there
        wanted = xnp.maximum(1, xnp.round(np.float32(fraction) * alive.astype(np.float32)))
        count = xnp.minimum(wanted.astype(int), xnp.maximum(alive - 1, 0))
        chosen[name] = best(xnp.where(size > 0, -size, -np.inf), count)
    return chosen


def candidate_decay(
    blocks: Blocks,
    fraction: float,
    strength: float | Mapping[str, Any],
    rate: float | Schedule,
) -> optax.GradientTransformation:
    """Takes rate * lambda off |w| of every weight of a candidate, down to 0 and not beyond.

    The candidates are chosen from the parameters that `init` gets, and stay: begin anew to choose
    others. Place it behind the optimizer, as `l1_decay`.

    Args:
        blocks: whose groups are compared, `blocks.filters(groups, scales=False)` for the kernels of
            filters. Followers do not shrink.
        fraction: of the groups of a block that are candidates, see `candidates`.
        strength: lambda of all blocks, or {block: lambda}. It is in the state, so that another one
            compiles nothing anew.
        rate: size of a step, or step -> size.

    Returns:
        An optax transformation whose state is a `CandidateState`.

    Raises:
        ArgumentError: a fraction outside (0, 1), a negative strength, or one without all blocks;
            `update` without parameters.
        StructureError: parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> params = {"w": jnp.array([[3.0, -1.0]]), "out": jnp.ones((2, 2))}
        >>> fn = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["out"]
        >>> groups = jprune.trace(fn, params, jnp.ones((1, 1)))
        >>> tx = candidate_decay(blocks.filters(groups), 0.5, strength=0.5, rate=0.5)
        >>> still = jax.tree.map(jnp.zeros_like, params)
        >>> updates, _ = tx.update(still, tx.init(params), params)
        >>> optax.apply_updates(params, updates)["w"].tolist()
        [[3.0, -0.75]]
    """
    by_name = strength if isinstance(strength, Mapping) else dict.fromkeys(blocks, strength)
    if {*by_name} != {*blocks} or not 0 < fraction < 1 or min(by_name.values(), default=0) < 0:
        raise errors.ArgumentError(
            f"candidate_decay(fraction={fraction}, strength={strength}); the fraction is in "
            f"(0, 1), the strength a number from 0, or one for each of {', '.join(blocks)}."
        )

    def init(params: Params) -> CandidateState:
        strengths = {name: as_array(by_name[name], jnp.float32) for name in blocks}
        chosen = {n: as_array(c) for n, c in candidates(blocks, params, fraction).items()}
        return CandidateState(jnp.zeros((), jnp.int32), strengths, chosen)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "candidate_decay needs the parameters: call tx.update(gradients, state, params)."
            )
        size = rate(state.step) if callable(rate) else rate
        changes, weights = leaves_of(blocks, updates), leaves_of(blocks, params)
        for name, block in blocks.items():
            for member in block.members:
                if (leaf := weights.get(member.path)) is not None:
                    inside = along(member, leaf.shape, state.chosen[name], False)
                    moved = leaf + changes[member.path]
                    less = (size * state.strength[name]).astype(moved.dtype)
                    # w <- sign(w) max(|w| - t lambda_A, 0) for w in U; all others stay
                    shorter = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - less, 0) - leaf
                    changes[member.path] = jnp.where(inside, shorter, changes[member.path])
        whole = jax.tree.unflatten(jax.tree.structure(updates), list(changes.values()))
        return whole, state._replace(step=state.step + 1)

    return optax.GradientTransformation(init, update)

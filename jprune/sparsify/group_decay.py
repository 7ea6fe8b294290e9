"""Weight decay with a strength for every group of weights.

    E(W) = E_D(W) + sum over groups g of lambda_g / 2 ||w_g||^2

Read by the transformations whose strengths move while a net trains: `ranked_decay` and
`growing_decay`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Params, PyTree
from jprune.blocks.members import Blocks, along, leaves_of
from jprune.graph.shrink.concrete import as_array, on_host


def group_decay(
    blocks: Blocks, strength: float | Mapping[str, Any]
) -> optax.GradientTransformation:
    """Adds lambda_g w to the gradient of every weight of group g.

    Place it before the optimizer, so that decay goes through its momentum as weight decay of SGD
    does. Unlike group lasso it makes no zeros: what decays shrinks by a factor in every step.

    Args:
        blocks: the groups. Followers do not decay.
        strength: lambda of all, {block: lambda}, or {block: [groups]}.

    Returns:
        An optax transformation without a state.

    Raises:
        ArgumentError: a block without a strength; `update` without parameters.
        StructureError: parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> params = {"w": jnp.array([[3.0, 1.0], [4.0, 1.0]])}
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], params, jnp.ones(2))
        >>> tx = group_decay(blocks.rows(groups), {"w": jnp.array([0.5, 0.0])})
        >>> still = jax.tree.map(jnp.zeros_like, params)
        >>> tx.update(still, tx.init(params), params)[0]["w"].tolist()
        [[1.5, 0.0], [2.0, 0.0]]
    """
    given = strength if isinstance(strength, Mapping) else dict.fromkeys(blocks, strength)
    if {*given} != {*blocks}:
        raise errors.ArgumentError(
            f"strength is of the {blocks.kind}s {', '.join(given) or 'of nothing'}; write one "
            f"number, or one for each of {', '.join(blocks)}."
        )
    sizes = {name: block.size for name, block in blocks.items()}
    every = lambda size: on_host(lambda xnp, strength: xnp.broadcast_to(strength, (size,)))
    strengths = {n: every(size)(as_array(given[n])) for n, size in sizes.items()}

    def init(params: Params) -> optax.EmptyState:
        leaves_of(blocks, params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "group_decay needs the parameters: call tx.update(gradients, state, params)."
            )
        return decayed(blocks, updates, params, strengths), state

    return optax.GradientTransformation(init, update)


def decayed(
    blocks: Blocks, updates: PyTree, params: Params, strengths: Mapping[str, Any]
) -> PyTree:
    """The updates with lambda_g w added at every weight of group g.

    Args:
        blocks: of one kind.
        updates: gradients, like the parameters.
        params: those of the traced net or a part of them.
        strengths: {block: lambda [groups]}.
    """
    gradients, weights = leaves_of(blocks, updates), leaves_of(blocks, params)
    for name, block in blocks.items():
        for member in block.members:
            if (leaf := weights.get(member.path)) is not None:
                # g <- g + lambda_g w; 0 where no group stands
                strength = along(member, leaf.shape, strengths[name].astype(leaf.dtype), 0)
                gradients[member.path] = gradients[member.path] + strength * leaf
    return jax.tree.unflatten(jax.tree.structure(updates), list(gradients.values()))


def without(blocks: Blocks, updates: PyTree, params: Params, alive: Mapping[str, Any]) -> PyTree:
    """Updates that bring groups which are not alive to exactly 0, followers included.

    Args:
        blocks: of one kind.
        updates: changes of the parameters, behind the optimizer.
        params: those of the traced net or a part of them.
        alive: {block: bool [groups]}.
    """
    changes, weights = leaves_of(blocks, updates), leaves_of(blocks, params)
    for name, block in blocks.items():
        for member in (*block.members, *block.followers):
            if (leaf := weights.get(member.path)) is not None:
                stays = along(member, leaf.shape, alive[name], True)
                changes[member.path] = jnp.where(stays, changes[member.path], -leaf)
    return jax.tree.unflatten(jax.tree.structure(updates), list(changes.values()))

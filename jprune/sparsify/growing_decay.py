"""Weight decay of groups that grows as a net trains, until what it acts on is gone.

References:
    Wang, Qin, Zhang, Fu, Neural pruning via growing regularization, 2021, arXiv 2012.09243.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Params
from jprune.blocks.members import Blocks, leaves_of
from jprune.graph.shrink.concrete import as_array, full
from jprune.sparsify.group_decay import decayed


class GrowingState(NamedTuple):
    """State of `growing_decay`.

    Attributes:
        step: how many were taken.
        chosen: {block: bool [groups]}: the groups whose decay grows; data, so that others do not
            recompile.
    """

    step: jax.Array
    chosen: dict[str, jax.Array]


def growing_decay(
    blocks: Blocks,
    growth: float,
    ceiling: float,
    *,
    every: int = 1,
    start: float = 0.0,
    chosen: Mapping[str, Any] | None = None,
    others: float = 0.0,
) -> optax.GradientTransformation:
    """Adds lambda w to the gradient of chosen groups; lambda grows from step to step.

    Place it before the optimizer, so that decay goes through its momentum. At a minimum of loss +
    penalty a weight of curvature h stands at h / (h + lambda) of its place without penalty: under
    the same lambda, weights in flat directions give way first. So decay of all groups shows which
    the loss holds on to, and decay of some takes them away without a jump.

    Args:
        blocks: the groups.
        growth: by how much lambda grows.
        ceiling: where it stops.
        every: steps from one growth to the next; the first is at step 0.
        start: lambda before it.
        chosen: {block: bool [groups]}; None: all of them.
        others: lambda of the groups that are not chosen; below 0 they are pushed away from 0.

    Returns:
        An optax transformation with the chosen groups in its state.

    Raises:
        ArgumentError: a number out of range, or masks of other blocks; `update` without parameters.
        StructureError: parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> params = {"w": jnp.array([[1.0], [1.0]])}
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], params, jnp.ones(2))
        >>> tx = growing_decay(
        ...     blocks.columns(groups), 0.25, 0.5, chosen={"w": jnp.array([True, False])})
        >>> still, state, seen = jax.tree.map(jnp.zeros_like, params), tx.init(params), []
        >>> for _ in range(3):
        ...     updates, state = tx.update(still, state, params)
        ...     seen.append(updates["w"][:, 0].tolist())
        >>> seen
        [[0.25, 0.0], [0.5, 0.0], [0.5, 0.0]]
    """
    if not (growth >= 0 and ceiling >= start >= 0 and every >= 1):
        raise errors.ArgumentError(
            f"growing_decay(growth={growth}, ceiling={ceiling}, every={every}, start={start}); "
            "growth and start are 0 or more, ceiling at least the start, every 1 or more."
        )
    sizes = {name: (block.size,) for name, block in blocks.items()}
    grown = {n: full(s, True) for n, s in sizes.items()} if chosen is None else {
        name: as_array(mask, bool) for name, mask in chosen.items()
    }  # fmt: skip
    if {name: mask.shape for name, mask in grown.items()} != sizes:
        raise errors.ArgumentError(
            f"chosen is of {', '.join(grown) or 'nothing'}; write bool [groups] for each of "
            f"{', '.join(blocks)}."
        )

    def init(params: Params) -> GrowingState:
        leaves_of(blocks, params)
        return GrowingState(jnp.zeros((), jnp.int32), grown)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "growing_decay needs the parameters: call tx.update(gradients, state, params)."
            )
        # lambda <- min(lambda + growth, ceiling), every so many steps
        strength = jnp.minimum(start + growth * (state.step // every + 1), ceiling)
        strengths = {n: jnp.where(mask, strength, others) for n, mask in state.chosen.items()}
        changes = decayed(blocks, updates, params, strengths)
        return changes, GrowingState(state.step + 1, state.chosen)

    return optax.GradientTransformation(init, update)

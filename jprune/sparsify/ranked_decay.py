"""Weight decay of groups that rises for the weakest of their block and falls for the others.

References:
    Wang, Zhang, Wang, Yu, Hu, Structured pruning for efficient ConvNets via incremental
    regularization, 2019, arXiv 1804.09461 [27].
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.base import Params
from jprune.blocks.members import Blocks, leaves_of, total
from jprune.graph.shrink.concrete import as_array, at_once, full
from jprune.sparsify.group_decay import decayed, without


class RankedState(NamedTuple):
    """State of `ranked_decay`.

    Attributes:
        step: how many were taken.
        strengths: {block: lambda [groups]}.
        ranks: {block: [groups]}: means over all steps of the ranks among those alive.
        alive: {block: bool [groups]}.
        left: {block: how many of its groups are still to go}.
        inner: state of the optimizer.
    """

    step: jax.Array
    strengths: dict[str, jax.Array]
    ranks: dict[str, jax.Array]
    alive: dict[str, jax.Array]
    left: dict[str, jax.Array]
    inner: Any


def delta(rank: Any, removed: Any, rise: float, u: float = 0.25) -> Any:
    """By how much the strength of a group changes in a step: delta of the paper.

    Args:
        rank: of the group, 0 being the weakest; a number or an array.
        removed: how many groups are still to go, 1 or more.
        rise: A, what the weakest one gets; at rank `removed` it is 0, and below 0 behind it.
        u: in (0, 1); u A is what rank N_1 gets, about which the curve is symmetric. A small one
            spares all but the weakest.

    Example:
        >>> print(delta(np.array([0.0, 8.0, 12.0]), 8, 2.5e-4).round(9))
        [ 0.00025     0.         -0.00022855]
    """
    xnp = np if isinstance(rank, np.ndarray) and not isinstance(removed, jax.Array) else jnp
    alpha = np.log(2 / u) / removed
    middle = -np.log(u) / alpha  # N_1
    # delta = A e^(-alpha r) for r < N_1, and 2 u A - A e^(-alpha (2 N_1 - r)) from there on
    early = rise * xnp.exp(-alpha * rank)
    late = 2 * u * rise - rise * xnp.exp(-alpha * (2 * middle - rank))
    return xnp.where(rank < middle, early, late)


def rises_for(removed: int, u: float = 0.25) -> float:
    """How many times ceiling / rise steps it takes until so many groups are gone, ranks fixed.

    Example:
        >>> rises_for(1), round(rises_for(8), 2)
        (1.0, 3.17)
    """
    strengths, time = np.zeros(removed), 0.0
    while strengths.size:
        rates = delta(np.arange(strengths.size, dtype=float), strengths.size, 1.0, u)
        # The next one to go: the first to reach 1 at the present rates.
        need = np.where(rates > 0, (1 - strengths) / np.maximum(rates, 1e-12), np.inf)
        strengths = np.maximum(strengths + rates * need.min(), 0)
        time += float(need.min())
        strengths = strengths[strengths < 1 - 1e-9]
    return time


def ranked_decay(
    inner: optax.GradientTransformation,
    blocks: Blocks,
    removed: Mapping[str, int],
    rise: float,
    ceiling: float,
    *,
    u: float = 0.25,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer under weight decay of groups that follows their ranks; the weakest vanish.

    In every step the groups of a block are ranked by their L1 norms, and by the means of these
    ranks over time; the strength of a group changes by `delta` of its rank, and is 0 at least. A
    group whose strength reaches the ceiling is 0 from then on, with its followers: by then it has
    decayed to next to nothing. A block that has lost as many as it should decays no more.

    Args:
        inner: the optimizer, with the step size. Decay is put into its gradient.
        blocks: the groups; `blocks.filters(groups, shifts=True)` has all in it that a unit says, so
            that nothing jumps when it goes.
        removed: {block: how many of its groups go}.
        rise: A of `delta`.
        ceiling: the strength at which a group goes. What is left of it then is about exp(-rate
            ceiling^2 / (2 rise)), with rate = learning rate / (1 - momentum).
        u: of `delta`.
        every: steps from one ranking to the next.

    Returns:
        An optax transformation. Groups that are 0 in the beginning are gone, and not among those
        that are removed.

    Raises:
        ArgumentError: a number out of range, another block; `update` without parameters.
        StructureError: parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> params = {"w": jnp.array([[1.0, 1.0], [3.0, 3.0]])}
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], params, jnp.ones(2))
        >>> tx = ranked_decay(optax.sgd(0.5), blocks.columns(groups), {"w": 1}, 0.5, 1.0)
        >>> still, state = jax.tree.map(jnp.zeros_like, params), tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(still, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params["w"].tolist(), state.alive["w"].tolist()
        ([[0.0, 0.0], [3.0, 3.0]], [False, True])
    """
    _check(blocks, removed, rise, ceiling, u, every)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> RankedState:
        leaves = leaves_of(blocks, params)
        alive = {n: as_array(total(b, leaves, abs) > 0) for n, b in blocks.items()}
        zeros = lambda: {n: full((b.size,), 0.0) for n, b in blocks.items()}
        left = {n: as_array(removed[n], jnp.int32) for n in blocks}
        none = jnp.zeros((), jnp.int32)
        return RankedState(none, zeros(), zeros(), alive, left, at_once(inner.init)(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "ranked_decay needs the parameters: call tx.update(gradients, state, params)."
            )
        leaves, found = leaves_of(blocks, params), {}
        acts, turn = state.step % every == 0, state.step // every + 1
        for name, block in blocks.items():
            before = tuple(part[name] for part in state[1:5])
            after = _revised(total(block, leaves, jnp.abs), before, turn, rise, ceiling, u)
            found[name] = [jnp.where(acts, new, old) for new, old in zip(after, before)]
        strengths, ranks, alive, left = ({n: found[n][k] for n in found} for k in range(4))
        gradients = decayed(blocks, updates, params, strengths)
        changes, after = inner.update(gradients, state.inner, params, **extra)
        new = RankedState(state.step + 1, strengths, ranks, alive, left, after)
        return without(blocks, changes, params, alive), new

    return optax.GradientTransformationExtraArgs(init, update)


def _revised(
    norms: Any, before: tuple[Any, ...], turn: Any, rise: float, ceiling: float, u: float
) -> tuple[jax.Array, ...]:
    """(strengths, mean ranks, alive, left) of a block after its groups are ranked anew."""
    strengths, means, alive, left = before
    # r_g among those alive; what is gone stands behind, and has no rank.
    own = _places(jnp.where(alive, norms, jnp.inf))
    # h_g <- ((t - 1) h_g + r_g) / t
    means = jnp.where(alive, ((turn - 1) * means + own) / turn, means)
    rank = _places(jnp.where(alive, means, jnp.inf))
    # lambda_g <- max(lambda_g + delta(r_g), 0); 0 once none is to go. n = 0 has no delta.
    change = delta(rank.astype(means.dtype), jnp.maximum(left, 1), rise, u)
    strengths = jnp.where(alive & (left > 0), jnp.maximum(strengths + change, 0), 0)
    # Behind the n-th rank strengths fall: nothing there can reach the ceiling.
    goes = alive & (strengths >= ceiling) & (rank < left)
    left = left - goes.sum(dtype=left.dtype)
    return jnp.where(goes | (left == 0), 0, strengths), means, alive & ~goes, left


def _places(values: jax.Array) -> jax.Array:
    # Ties by index.
    return jnp.argsort(jnp.argsort(values, stable=True))


def _check(
    blocks: Blocks, removed: Mapping[str, int], rise: float, ceiling: float, u: float, every: int
) -> None:
    if {*removed} != {*blocks} or any(not 0 <= removed[n] < blocks[n].size for n in blocks):
        raise errors.ArgumentError(
            f"removed={dict(removed)}; write for each of {', '.join(blocks)} how many of its "
            "groups go, fewer than there are."
        )
    if not (rise > 0 and ceiling > 0 and 0 < u < 1 and every >= 1):
        raise errors.ArgumentError(
            f"ranked_decay(rise={rise}, ceiling={ceiling}, u={u}, every={every}); rise and ceiling "
            "are above 0, u in (0, 1), every 1 or more."
        )

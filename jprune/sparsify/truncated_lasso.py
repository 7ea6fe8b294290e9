"""Group lasso on the weakest groups alone: a penalty that ends at a norm, and zeros that stay.

    E(W) = E_D(W) + lambda sum_g min(||w_g||, theta)

References:
    Lebedev, Lempitsky, Fast ConvNets using group-wise brain damage, 2016, arXiv 1506.02515 [15].
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Params, Schedule, Variables
from jprune.blocks.members import Blocks, leaves_of, scale, squares
from jprune.graph.shrink.concrete import full
from jprune.masks.topk import best


class TruncatedState(NamedTuple):
    """State of `truncated_lasso`.

    Attributes:
        step: how many were taken.
        limits: {block: theta}, the norm from which on nothing pulls.
        targeted: {block: bool [groups]}: those that were the weakest when they were last ranked.
        alive: {block: bool [groups]}: False where a group is 0 for good.
    """

    step: jax.Array
    limits: dict[str, jax.Array]
    targeted: dict[str, jax.Array]
    alive: dict[str, jax.Array]


def truncated_penalty(
    blocks: Blocks, strength: float, limit: float, variables: Variables
) -> jax.Array:
    """Lambda times the sum over all groups of min(||w_g||, theta).

    Its gradient is 0 at groups of zeros, and where a norm is above theta.

    Args:
        blocks: of one kind.
        strength: lambda.
        limit: theta.
        variables: those of the traced net or a part of them.

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> w = {"w": jnp.array([[3.0, 4.0], [0.0, 0.1]])}
        >>> columns = blocks.columns(jprune.trace(lambda v, x: x @ v["w"], w, jnp.ones(2)))
        >>> print(round(float(truncated_penalty(columns, 2.0, 0.5, w)), 3))
        1.2
    """
    total = jnp.zeros(())
    for square in squares(blocks, variables).values():
        # The gradient of a root at 0 is inf, and 0 times it NaN: the root is taken of 1 there.
        norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        # lambda sum_g min(||w_g||, theta)
        total = total + strength * jnp.where(norm < limit, norm, limit).sum()
    return total


def truncated_lasso(
    blocks: Blocks,
    strength: float | Mapping[str, float],
    removed: Mapping[str, int],
    rate: float | Schedule,
    *,
    ramp: Callable[[Any], Any] | None = None,
    every: int = 500,
    how: str = "prox",
    epsilon: float = 1e-4,
) -> optax.GradientTransformation:
    """Takes rate * lambda off the norms of the weakest groups; those that get to 0 stay there.

    Groups are ranked by their norms now and then. So many of the weakest as `ramp` says are
    targeted, and theta is the norm of the next one: a group that grows beyond it is let go. A
    targeted group whose norm falls to epsilon is 0 from then on, whatever momentum or decay do.

    Place it behind the optimizer. With momentum m, rate = learning rate / (1 - m).

    Args:
        blocks: the groups, of one kind.
        strength: lambda, of all blocks or by name.
        removed: {block: how many of its groups are targeted in the end}, fewer than there are.
        rate: size of a step, or step -> size.
        ramp: step -> fraction in [0, 1] of `removed` that is targeted, never falling; None: all
            from the beginning.
        every: steps from one ranking to the next.
        how: "prox", or "subgradient", which swings about 0 and only rests there by epsilon.
        epsilon: the norm at which a targeted group is clamped to 0.

    Returns:
        An optax transformation. Groups that are 0 in the beginning are among the weakest.

    Raises:
        ArgumentError: a number out of range, another block or `how`; `update` without parameters.
        StructureError: parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> params = {"w": jnp.array([[3.0, 4.0], [0.3, 0.4], [0.6, 0.8]])}
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], params, jnp.ones(3))
        >>> tx = truncated_lasso(blocks.columns(groups), 1.0, {"w": 1}, rate=0.5)
        >>> still = jax.tree.map(jnp.zeros_like, params)
        >>> updates, state = tx.update(still, tx.init(params), params)
        >>> print(optax.apply_updates(params, updates)["w"].tolist()[1], state.alive["w"])
        [0.0, 0.0] [ True False  True]
    """
    strengths = strength if isinstance(strength, Mapping) else dict.fromkeys(blocks, strength)
    _check(blocks, strengths, removed, every, how, epsilon)

    def init(params: Params) -> TruncatedState:
        leaves_of(blocks, params)  # refuses parameters of another net
        none = lambda value: {name: full((b.size,), value) for name, b in blocks.items()}
        limits = {name: full((), 0.0) for name in blocks}
        return TruncatedState(jnp.zeros((), jnp.int32), limits, none(False), none(True))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "truncated_lasso needs the parameters: call tx.update(gradients, state, params)."
            )
        step_size = rate(state.step) if callable(rate) else rate
        part = 1.0 if ramp is None else ramp(state.step)
        moved = jax.tree.map(jnp.add, params, updates)
        norms = {name: jnp.sqrt(square) for name, square in squares(blocks, moved).items()}
        # What is gone counts as 0, and stays the weakest.
        norms = {name: jnp.where(state.alive[name], norm, 0.0) for name, norm in norms.items()}
        limits, targeted = jax.lax.cond(
            state.step % every == 0,
            lambda: _ranked(norms, {n: jnp.round(part * removed[n]) for n in blocks}),
            lambda: (state.limits, state.targeted),
        )
        alive, factors = {}, {}
        for name, norm in norms.items():
            pulled = targeted[name] & (norm <= limits[name])
            # w_g (1 - t lambda / ||w_g||), and 0 beyond it
            change = step_size * strengths[name] * pulled / jnp.where(norm > 0, norm, 1.0)
            factor = jnp.maximum(1.0 - change, 0.0) if how == "prox" else 1.0 - change
            gone = targeted[name] & (jnp.abs(factor) * norm <= epsilon)
            alive[name] = state.alive[name] & ~gone
            factors[name] = jnp.where(alive[name], factor, 0.0)
        after = scale(blocks, moved, factors)
        # Leaves that no group touches keep the optimizer's own step, to the last bit.
        changes = jax.tree.map(
            lambda change, param, step, new: change if new is step else new - param,
            updates, params, moved, after,
        )  # fmt: skip
        return changes, TruncatedState(state.step + 1, limits, targeted, alive)

    return optax.GradientTransformation(init, update)


def _ranked(norms: Mapping[str, Any], counts: Mapping[str, Any]) -> tuple[Any, Any]:
    """({block: theta}, {block: bool [groups]}): so many of the weakest, and the next one's norm."""
    targeted = {name: best(-norm, counts[name].astype(jnp.int32)) for name, norm in norms.items()}
    limits = {
        name: jnp.where(targeted[name], jnp.inf, norm).min().astype(jnp.result_type(float))
        for name, norm in norms.items()
    }
    return limits, targeted


def _check(
    blocks: Blocks,
    strengths: Mapping[str, float],
    removed: Mapping[str, int],
    every: int,
    how: str,
    epsilon: float,
) -> None:
    names = {*blocks}
    if not names or {*strengths} != names or {*removed} != names:
        raise errors.ArgumentError(
            f"strength={dict(strengths)}, removed={dict(removed)}; write a number for each of "
            f"{', '.join(blocks) or 'one block or more'}."
        )
    few = all(0 <= removed[name] < blocks[name].size for name in blocks)
    if not (few and min(strengths.values()) >= 0 and every >= 1 and epsilon >= 0):
        raise errors.ArgumentError(
            f"truncated_lasso(strength={dict(strengths)}, removed={dict(removed)}, every={every}, "
            f"epsilon={epsilon}); strengths and epsilon are 0 or more, fewer groups go than there "
            "are, and every is 1 or more."
        )
    if how not in ("prox", "subgradient"):
        raise errors.ArgumentError(f"how={how!r}; write how='prox' or 'subgradient'.")

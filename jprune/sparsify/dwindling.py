"""Units that dwindle: in periods, the least salient ones go to 0 in a straight line of steps.

    x_g <- (T - t - 1) / (T - t) (x_g - alpha d_g),   t = 0, ..., T - 1

Without steps of the optimizer, x_g would be x_g (T - t) / T; at the end of a period it is exactly
0, and stays so. All others are trained as usual all the time.

References:
    Chen, Liang, Ding, Zhu, Zharkov, OTOv2: automatic, generic, user-friendly, 2023, arXiv
    2303.06862. Chen and others, HESSO: towards automatic efficient and user
    friendly any neural network training and pruning, 2024, arXiv 2409.09085.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Params
from jprune.blocks.members import Blocks, along, leaves_of, pool
from jprune.graph.shrink.concrete import full

SALIENCES = ("magnitude", "mean_magnitude", "cosine", "taylor", "taylor_second")
"""What units are compared by, in the order of the weights of `saliences`."""

Units = Mapping[str, Any]
"""{group: [units]}."""


class DwindlingState(NamedTuple):
    """State of `dwindling`.

    Attributes:
        step: how many were taken.
        alive: {group: bool [units]}: not chosen so far.
        going: {group: bool [units]}: chosen in this period.
    """

    step: jax.Array
    alive: dict[str, Any]
    going: dict[str, Any]


def saliences(
    blocks: Blocks, params: Params, updates: Any, weights: Sequence[float] = (0.2,) * 5
) -> dict[str, Any]:
    """How much units matter, by five measures that are made comparable and added up.

    Args:
        blocks: the units, mostly `blocks.filters(groups, shifts=True)`.
        params: x, those of the traced net or a part of them.
        updates: like them, the step that the optimizer would take, -alpha d.
        weights: of |x_g|; of |x_g| over the number of its weights; of cos(x_g, d_g) + 1; of
            |<x_g, d_g>|; and of its square. Each measure is divided by its norm over all units of
            the net, so that the size of alpha has no say.

    Raises:
        ArgumentError: other than five weights, or one below 0.

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
        >>> v = {"a": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "b": jnp.ones((2, 1))}
        >>> groups = jprune.trace(fn, v, jnp.ones((1, 2)))
        >>> still = jax.tree.map(jnp.zeros_like, v)
        >>> only = saliences(blocks.filters(groups), v, still, (1, 0, 0, 0, 0))["a"]
        >>> only.round(4).tolist()  # 5 and 1, over sqrt(26)
        [0.980..., 0.196...]
    """
    if len(weights) != len(SALIENCES) or min(weights) < 0:
        raise errors.ArgumentError(
            f"saliences(weights={tuple(weights)}); there are five of 0 or more, of "
            f"{', '.join(SALIENCES)}."
        )
    leaves, moves = leaves_of(blocks, params), leaves_of(blocks, updates)
    by_leaf = lambda of: {path: of(leaf, moves[path]) for path, leaf in leaves.items()}
    squares, lengths, inner, counts = (
        pool(blocks, by_leaf(of))
        for of in (
            lambda x, u: x**2,
            lambda x, u: u**2,
            lambda x, u: -x * u,
            lambda x, u: jnp.ones_like(x),
        )
    )
    measures = {}
    for name in blocks:
        size = jnp.sqrt(squares[name])
        along_step = size * jnp.sqrt(lengths[name])
        measures[name] = jnp.stack(
            [
                size,  # |x_g|
                size / counts[name],  # |x_g| / |g|
                # cos(x_g, d_g) + 1
                jnp.where(along_step > 0, inner[name] / jnp.maximum(along_step, 1e-30), 0) + 1,
                jnp.abs(inner[name]),  # |<x_g, d_g>|
                0.5 * inner[name] ** 2,  # <x_g, d_g>^2 / 2
            ]
        )
    whole = jnp.concatenate([*measures.values()], axis=1)
    # Divided by the largest before they are squared: squares of squares are soon 0 in float32.
    most = jnp.maximum(jnp.abs(whole).max(1, keepdims=True), 1e-30)
    norm = most * jnp.sqrt(((whole / most) ** 2).sum(1, keepdims=True))
    share = jnp.asarray(weights, norm.dtype)[:, None] / jnp.maximum(norm, 1e-30)
    return {name: (measure * share).sum(0) for name, measure in measures.items()}


def dwindling(
    blocks: Blocks,
    remove: Callable[..., Units],
    *,
    begin: int,
    period: int,
    periods: int = 10,
    weights: Sequence[float] = (0.2,) * 5,
) -> optax.GradientTransformation:
    """Takes units to exactly 0 in periods of steps, until a budget is met. Place it last.

    Args:
        blocks: the units, mostly `blocks.filters(groups, shifts=True)`; followers go along.
        remove: `(scores, alive, units, share) -> alive`, jittable, of all groups; from
            `allocate.lowest_first`.
        begin: steps before the first period.
        period: T, steps of a period.
        periods: each takes an equal part of what is too much.
        weights: see `saliences`, which are computed at the beginning of a period.

    Returns:
        An optax transformation whose state is a `DwindlingState`.

    Raises:
        ArgumentError: a number out of range; `update` without parameters.
        StructureError: parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import allocate, blocks
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
        >>> v = {"a": jnp.array([[8.0, 4.0]]), "b": jnp.ones((2, 1))}
        >>> groups = jprune.trace(fn, v, jnp.ones((1, 1)))
        >>> remove = allocate.lowest_first(groups.sizes, jprune.Budget(density=0.5))
        >>> tx = dwindling(blocks.filters(groups), remove, begin=0, period=4, periods=1)
        >>> state, seen = tx.init(v), []
        >>> for _ in range(4):
        ...     updates, state = tx.update(jax.tree.map(jnp.zeros_like, v), state, v)
        ...     v = optax.apply_updates(v, updates)
        ...     seen.append(v["a"][0].tolist())
        >>> seen
        [[8.0, 3.0], [8.0, 2.0], [8.0, 1.0], [8.0, 0.0]]
    """
    errors.check_numbers(
        "dwindling",
        ("begin", begin, begin >= 0, "0 or more"),
        ("period", period, period >= 1, "1 or more"),
        ("periods", periods, periods >= 1, "1 or more"),
    )

    def init(params: Params) -> DwindlingState:
        leaves_of(blocks, params)  # refuses parameters of another net
        sizes = {name: block.size for name, block in blocks.items()}
        # `remove` counts all groups, those without a filter too.
        sizes |= {} if blocks.groups is None else blocks.groups.sizes
        alive, going = ({n: full((size,), of) for n, size in sizes.items()} for of in (True, False))
        return DwindlingState(full((), 0, jnp.int32), alive, going)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "dwindling needs the parameters: call tx.update(gradients, state, params)."
            )
        past = state.step - begin
        number, t = past // period, past % period

        def chosen() -> tuple[dict[str, Any], dict[str, Any]]:
            scores = saliences(blocks, params, updates, weights)
            left = remove(scores, state.alive, 0, (number + 1) / periods)
            left = {name: left[name] & state.alive[name] for name in state.alive}
            return left, {name: state.alive[name] & ~left[name] for name in left}

        begins = (past >= 0) & (t == 0) & (number < periods)
        alive, going = jax.lax.cond(begins, chosen, lambda: (state.alive, state.going))
        # (T - t - 1) / (T - t), and 0 for what went in earlier periods
        ratio = jnp.where(number < periods, (period - t - 1) / (period - t), 0.0)
        factors = {n: jnp.where(going[n], ratio, 0.0) for n in going}
        changes, weights_of = leaves_of(blocks, updates), leaves_of(blocks, params)
        for name, block in blocks.items():
            for member in (*block.members, *block.followers):
                if (leaf := weights_of.get(member.path)) is not None:
                    stays = along(member, leaf.shape, alive[name], True)
                    factor = along(member, leaf.shape, factors[name].astype(leaf.dtype), 1.0)
                    moved = leaf + changes[member.path]
                    shorter = factor * moved - leaf
                    changes[member.path] = jnp.where(stays, changes[member.path], shorter)
        whole = jax.tree.unflatten(jax.tree.structure(updates), list(changes.values()))
        return whole, DwindlingState(state.step + 1, alive, going)

    return optax.GradientTransformation(init, update)

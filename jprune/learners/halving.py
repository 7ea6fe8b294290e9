"""A search by halves for the units of every group that the net misses least.

Random halves of a search space are closed, and every unit in one is charged with its damage. After
so many halves those with the lower means are the next space, until so few are left that closing
them costs less than a threshold: then they go. Groups search beside each other, each by itself.

References:
    Ding, Ding, Guo, Han, Yan, Approximated oracle filter pruning for destructive CNN width
    optimization, 2019, arXiv 1905.04748 [23].
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class HalvingState(NamedTuple):
    """Where the search stands; rows are groups, filled up with False and 0.

    Attributes:
        step: how many were taken.
        alive: bool [groups, most units]: the base mask.
        space: bool: the search space, a part of those alive.
        total: sums of the damages of every unit.
        times: how often it was closed.
        moves: [groups]: how often units went.
    """

    step: jax.Array
    alive: jax.Array
    space: jax.Array
    total: jax.Array
    times: jax.Array
    moves: jax.Array


class Halving(NamedTuple):
    """The functions of a search; all are jittable.

    Attributes:
        init: `init(alive) -> state`, alive being {group: bool [units]}.
        closed: `closed(state, key) -> bool [groups, most units]`: a random half of every space.
        charged: `charged(state, closed, damages [groups]) -> state`: one step is over.
        moved: `moved(state) -> state`: what is due after this step: a move, a smaller space, or a
            fresh start; nothing for groups in the midst of a half.
        due: `due(state) -> bool [groups]`: whose half is over.
        units: `units(rows) -> {group: bool [units]}`.
    """

    init: Callable[[Mapping[str, Any]], HalvingState]
    closed: Callable[[HalvingState, jax.Array], jax.Array]
    charged: Callable[[HalvingState, jax.Array, jax.Array], HalvingState]
    moved: Callable[[HalvingState], HalvingState]
    due: Callable[[HalvingState], jax.Array]
    units: Callable[[Any], dict[str, Any]]


def halving(
    sizes: Mapping[str, int],
    allowed: Mapping[str, Any],
    theta: float,
    period: int,
    begin: int = 0,
    fits: Callable[[dict[str, Any]], Any] | None = None,
) -> Halving:
    """A search by halves in several groups.

    Args:
        sizes: {group: number of units}.
        allowed: {group: widths that it may have}, rising, the whole size the last.
        theta: the largest mean damage of units that go.
        period: steps from one decision of a group to the next.
        begin: steps before the first group begins; the others follow within one period.
        fits: `{group: bool [units]} -> bool`, jittable: whether the net is small enough. Of a move
            that would make it so, no more units go than it takes; then nothing moves. None: theta
            alone decides.

    Returns:
        The functions.

    Example:
        >>> search = halving({"a": 4}, {"a": range(1, 5)}, theta=0.2, period=1)
        >>> state = search.init({"a": np.ones(4, bool)})
        >>> closed = search.closed(state, jax.random.key(0))
        >>> int(closed.sum())
        2
        >>> state = search.moved(search.charged(state, closed, jnp.array([0.1])))
        >>> int(search.units(state.alive)["a"].sum()), int(state.moves[0])
        (2, 1)
    """
    names, most = tuple(sizes), max(sizes.values(), default=0)
    offset = jnp.asarray([n * (period // max(1, len(names))) for n in range(len(names))], int)
    table = np.zeros((len(names), most + 1), int)
    for row, name in enumerate(names):
        for width in range(sizes[name] + 1):
            # The narrowest width that keeps at least so many
            table[row, width] = min((w for w in allowed[name] if w >= width), default=sizes[name])
    narrowest = jnp.asarray(table)
    units = lambda rows: {name: rows[n, : sizes[name]] for n, name in enumerate(names)}

    def init(alive: Mapping[str, Any]) -> HalvingState:
        pad = lambda name: jnp.pad(jnp.asarray(alive[name], bool), (0, most - sizes[name]))
        rows = jnp.stack([pad(name) for name in names])
        zeros = jnp.zeros(rows.shape, jnp.float32)
        count = jnp.zeros((), jnp.int32)
        # `rows` twice would be one array with two owners: a step gives its state away.
        return HalvingState(count, rows, rows | False, zeros, zeros + 0, jnp.zeros(len(names), int))

    def half(state: HalvingState) -> jax.Array:
        return state.space.sum(1) // 2

    def waits(state: HalvingState) -> jax.Array:
        """[groups]: steps since the group's search began; negative before."""
        return state.step - begin - offset

    def closed(state: HalvingState, key: jax.Array) -> jax.Array:
        noise = jnp.where(state.space, jax.random.uniform(key, state.space.shape), jnp.inf)
        rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
        # granu = floor(|space| / 2) random members of the space
        chosen = state.space & (rank < half(state)[:, None])
        return chosen & (waits(state) >= 0)[:, None]

    def charged(state: HalvingState, closed: jax.Array, damages: jax.Array) -> HalvingState:
        return state._replace(
            step=state.step + 1,
            total=state.total + jnp.where(closed, damages[:, None], 0.0),
            times=state.times + closed,
        )

    def due(state: HalvingState) -> jax.Array:
        since = waits(state)
        return (since > 0) & (since % period == 0) & (half(state) > 0)

    def fewest(state: HalvingState, going: jax.Array) -> jax.Array:
        """[groups]: how many units go: all that may, or as many as it takes to fit."""
        width = state.alive.sum(1)
        wanted = width - jnp.take_along_axis(narrowest, (width - going)[:, None], axis=1)[:, 0]
        if (small_enough := fits) is None:
            return wanted
        before = jnp.cumsum(wanted) - wanted

        def part(count: Any) -> jax.Array:
            # The first `count` units of all moves, group by group, in allowed widths
            each = jnp.clip(count - before, 0, wanted)
            rows = jnp.take_along_axis(narrowest, (width - each)[:, None], axis=1)[:, 0]
            return width - rows

        small = lambda count: small_enough(units(jnp.arange(most) < (width - part(count))[:, None]))

        def narrow(_: Any, bounds: Any) -> Any:
            low, high = bounds
            middle = (low + high) // 2
            right = small(middle)
            # The smallest count that fits is in (low, high].
            return jnp.where(right, low, middle), jnp.where(right, middle, high)

        total = wanted.sum()
        rounds = int(np.ceil(np.log2(max(2, most * len(names) + 1)))) + 1
        _, count = jax.lax.fori_loop(0, rounds, narrow, (jnp.full_like(total, -1), total))
        return part(jnp.maximum(count, 0))

    def moved(state: HalvingState) -> HalvingState:
        now, granu = due(state), half(state)
        # T_j = acc / cnt, infinite for units that were never closed
        mean = jnp.where(state.times > 0, state.total / jnp.maximum(state.times, 1), jnp.inf)
        mean = jnp.where(state.space, mean, jnp.inf)
        rank = jnp.argsort(jnp.argsort(mean, axis=1), axis=1)
        lowest = state.space & (rank < granu[:, None])
        # The granu-th smallest T < theta: a move
        worst = jnp.where(lowest, mean, -jnp.inf).max(1)
        cheap = now & (worst < theta)
        going = jnp.where(cheap, granu, 0)
        gone = state.alive & lowest & (rank < fewest(state, going)[:, None]) & cheap[:, None]
        alive = state.alive & ~gone
        moves = gone.any(1)
        # After a move, and after the last half, the search begins anew among all that are alive.
        smaller = now & ~moves & (granu > 1)
        space = jnp.where(smaller[:, None], lowest, alive)
        space = jnp.where(now[:, None], space, state.space)
        fresh = lambda sums: jnp.where(now[:, None], 0.0, sums)
        return state._replace(
            alive=alive,
            space=space,
            total=fresh(state.total),
            times=fresh(state.times),
            moves=state.moves + moves,
        )

    return Halving(init, closed, charged, moved, due, units)

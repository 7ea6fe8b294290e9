"""Activations: units scored by what they say on calibration data, in one pass over the net.

Where a unit's activation is read: at the site `act`, behind the elementwise function that follows
its layer and before any pooling. A group without such a site (a linear bottleneck; a norm behind a
concatenation, as in DenseNets) is read at `in`, as its consumers see it. A group that stands at
several places (a residual stream behind each of its sums, an expansion before and behind a
depthwise convolution) is scored by the mean over them, every place counting alike.

What is made of the activations is a `Statistic`: `zeros`, `entropy`, `map_rank`, `independence`, or
one of your own. Several of them share the pass.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jprune import errors
from jprune.base import Batch, Criterion, Groups, PyTree, Scores, Variables
from jprune.graph import Site, intercept
from jprune.graph.look.activations import places_read
from jprune.graph.shrink.concrete import full, on_host


class Statistic(NamedTuple):
    """What is gathered of the activations of some units, and the score that is made of it.

    Attributes:
        init: `init(units) -> state`, a tree of arrays.
        update: `update(state, maps, counted) -> state`, traced: maps [examples, units, *positions],
            counted bool [examples], False for padding.
        score: `score(state) -> [units]`, higher is kept.
        again: `again(state) -> state` between two passes; None: one pass.
        check: refuses scores {group: [units]} that say nothing; None: all do.
        rectified: whether it says something of functions alone that are exactly 0 on an interval.
    """

    init: Callable[[int], PyTree]
    update: Callable[[PyTree, jax.Array, jax.Array], PyTree]
    score: Callable[[PyTree], Any]
    again: Callable[[PyTree], PyTree] | None = None
    check: Callable[[Mapping[str, Any]], None] | None = None
    rectified: bool = False


States = dict[str, dict[str, dict[str, PyTree]]]
"""{statistic: {group: {place: state}}}."""


class Gathered(NamedTuple):
    """State of `activations`.

    Attributes:
        open: states of the statistics that look at this pass.
        done: of those that have seen their one pass.
        here: {group: {place: bool [units]}}: the units that stand at a place.
        finite: likewise, the units all of whose values were finite.
    """

    open: States
    done: States
    here: dict[str, dict[str, jax.Array]]
    finite: dict[str, dict[str, jax.Array]]


def activations(
    fn: Callable[..., Any],
    groups: Groups,
    statistic: Statistic | Mapping[str, Statistic],
    at: str = "act",
    only: Sequence[str] | None = None,
) -> Criterion:
    """Scores of units by their activations.

    Args:
        fn: `fn(variables, batch["image"])`, in inference mode.
        groups: from `trace`.
        statistic: of the activations, or {name: statistic}: several in one pass over the net.
        at: kind of the places: "act", "in", "norm", "out" or "join"; groups without such a place
            are read at "in".
        only: names of the groups that are scored; None: all that have a place.

    Returns:
        A criterion; scores are {group: [units]}, of several statistics {name: {group: [units]}}.
        Examples count alike, whatever their batches; those of weight 0 do not count. A unit that
        was ever NaN or infinite scores NaN, which every allocator refuses.

    Raises:
        ArgumentError: another kind, a group that there is not, or none that has a place.
        StructureError: activations in which examples are mixed (when called).

    Example:
        >>> import jprune
        >>> from jprune import criteria
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> v = {"first": jnp.array([[1.0, -1.0, 1.0]]), "second": jnp.ones((3, 2))}
        >>> batch = {"image": jnp.array([[1.0], [2.0], [-1.0], [3.0]])}
        >>> groups = jprune.trace(fn, v, batch["image"])
        >>> both = {"exact": criteria.zeros(), "near": criteria.zeros(below=1.5)}
        >>> scores = jprune.run_criterion(activations(fn, groups, both), v, [batch])
        >>> {name: score["first"].tolist() for name, score in scores.items()}
        {'exact': [0.75, 0.25, 0.75], 'near': [0.5, 0.0, 0.5]}
    """
    several = isinstance(statistic, Mapping)
    statistics = dict(statistic) if isinstance(statistic, Mapping) else {"": statistic}
    places = places_read(groups, at, only)
    twice = {name for name, each in statistics.items() if each.again is not None}

    def init(variables: Variables) -> Gathered:
        del variables
        everywhere = lambda make: {
            group: {place: make(groups.sizes[group]) for place in of_group}
            for group, of_group in places.items()
        }
        states = {name: everywhere(each.init) for name, each in statistics.items()}
        mask = lambda value: everywhere(lambda units: full((units,), value))
        return Gathered(states, {}, mask(False), mask(True))

    def handler(site: Site, value: Any, carry: Any) -> tuple[Any, Any]:
        state, counted, last = carry
        place = f"{site.layer} {site.kind}"
        for group in site.units:
            if place not in places.get(group, ()):
                continue
            maps, here = _maps(site, value, group, groups.sizes[group], len(counted))
            state, last = _added(state, statistics, group, place, maps, here, counted, last)
        return value, (state, counted, last)

    run = intercept(fn, groups, handler, tuple({p.rpartition(" ")[2] for p in _flat(places)}))

    @jax.jit
    def update(state: Gathered, variables: Variables, batch: Batch) -> Gathered:
        examples = jax.tree.leaves(batch["image"])[0].shape[0]
        counted = jnp.asarray(batch.get("weight", jnp.ones(examples))) > 0
        return run(variables, (state, counted, ()), batch["image"])[1][0]

    def again(state: Gathered) -> Gathered:
        moved = {
            name: {
                g: {p: _again(statistics[name], s) for p, s in at.items()} for g, at in of.items()
            }
            for name, of in state.open.items()
            if name in twice
        }
        rest = {name: of for name, of in state.open.items() if name not in twice}
        return state._replace(open=moved, done={**state.done, **rest})

    def score(state: Gathered, variables: Variables) -> Scores:
        del variables
        states, scores = {**state.open, **state.done}, {}
        for name, each in statistics.items():
            of_groups = {group: _mean(each, states[name][group], state, group) for group in places}
            concrete = not any(isinstance(s, Tracer) for s in of_groups.values())
            if each.check is not None and concrete:
                each.check(of_groups)
            scores[name] = of_groups
        return scores if several else scores[""]

    return Criterion(init, update, score, True, again if twice else None, tuple(places))


def _flat(places: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [place for of_group in places.values() for place in of_group]


def _maps(
    site: Site, value: Any, group: str, size: int, examples: int
) -> tuple[jax.Array, np.ndarray]:
    """The activations [examples, units, *positions] of a group at a site, and who stands there."""
    value = jnp.moveaxis(value, (site.examples, site.axis), (0, 1))
    if len(value) != examples:
        if len(value) % examples:
            raise errors.StructureError(
                f"the activation at ({site.layer}, {site.kind}) has {len(value)} rows for "
                f"{examples} examples. Keep the examples on an axis of their own."
            )
        # Positions that were made rows, as in a dense layer on [examples x positions, channels].
        rows = value.reshape(examples, -1, *value.shape[1:])
        value = jnp.moveaxis(rows, 1, 2)
    units = site.units[group]
    where = [np.flatnonzero(units == unit) for unit in range(size)]
    repeats = max(len(positions) for positions in where)
    here = np.array([len(positions) > 0 for positions in where])
    # Behind a flatten, a unit stands at height x width positions: they are positions of its map.
    index = np.stack([np.resize(p, repeats) if len(p) else np.zeros(repeats, int) for p in where])
    if repeats == 1 and index.size == value.shape[1] and (index[:, 0] == np.arange(size)).all():
        return value, here
    maps = value[:, index.reshape(-1)].reshape(len(value), size, repeats, *value.shape[2:])
    maps = jnp.where(here.reshape(1, -1, *(1,) * (maps.ndim - 2)), maps, 0)
    return (maps[:, :, 0] if repeats == 1 else maps), here


def _added(
    state: Gathered,
    statistics: Mapping[str, Statistic],
    group: str,
    place: str,
    maps: jax.Array,
    here: np.ndarray,
    counted: jax.Array,
    last: PyTree,
) -> tuple[Gathered, PyTree]:
    """The state with a batch at one place, and what was gathered last; the rest stays."""

    def changed(tree: Any, new: Any) -> Any:
        return {**tree, group: {**tree[group], place: new}}

    others = tuple(axis for axis in range(maps.ndim) if axis != 1)
    ignored = ~counted.reshape(-1, *(1,) * (maps.ndim - 1))
    finite = (jnp.isfinite(maps) | ignored).all(axis=others)
    states = dict[str, Any]()
    for name, of in state.open.items():
        new = statistics[name].update(of[group][place], _after(maps, last), counted)
        states[name], last = changed(of, new), new
    after = state._replace(
        open=states,
        here=changed(state.here, jnp.asarray(here)),
        finite=changed(state.finite, state.finite[group][place] & finite),
    )
    return after, last


def _after(maps: jax.Array, last: PyTree) -> jax.Array:
    """The maps, but not before another result is there.

    XLA runs what does not depend on each other at once, and on a CPU decompositions of matrices
    wait for threads that others of them hold: with few cores, for ever.
    """
    leaves = [jnp.ravel(leaf)[0].astype(float) for leaf in jax.tree.leaves(last)]
    # Never above 1, which XLA does not know: a barrier would be removed before it orders anything.
    never = jnp.clip(sum(leaves, jnp.zeros(())), 0, 1) > 2
    return jnp.where(never, 0, maps)


def _again(statistic: Statistic, state: PyTree) -> PyTree:
    assert statistic.again is not None
    return statistic.again(state)


def _mean(statistic: Statistic, states: Mapping[str, PyTree], all_: Gathered, group: str) -> Any:
    """[units]: the mean score over the places where a unit stands; NaN where it was not finite."""
    mean = on_host(_mean_of)
    scores = [statistic.score(state) for state in states.values()]
    here = [all_.here[group][place] for place in states]
    finite = [all_.finite[group][place] for place in states]
    return mean(*scores, *here, *finite)


def _mean_of(xnp: Any, *arrays: Any) -> Any:
    count = len(arrays) // 3
    scores, here, finite = (xnp.stack(arrays[n * count :][:count]) for n in range(3))
    # s_u = sum over the places p of u of s_pu, over their number
    mean = xnp.where(here, scores, 0).sum(0) / xnp.maximum(here.sum(0), 1)
    return xnp.where((finite | ~here).all(0), mean, xnp.nan)

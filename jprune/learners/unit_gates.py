"""Learned gates: a task whose units are multiplied by numbers that are trained.

A gate multiplies a unit in everything that reads it. Behind a ReLU that is the same as a gate of 0
or more on the norm before it; for any nonlinearity, a gate of 0 is the unit gone. Gates that do not
look at data are folded into the readers' weights, so that a step touches no activation for them.

How gates come out of what is trained, what they cost and how they end is a `Gating`:
`jprune.learners.mean_gates`, `hard_concrete`, `batch_codes`.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Batch, Groups, PyTree, Task, Variables
from jprune.graph import Site, intercept
from jprune.learners.norm_gates import Gates
from jprune.learners.soft_masks import scaled


class Gating(NamedTuple):
    """Gates that are learned.

    Attributes:
        init: `init(key) -> trained`, a tree of arrays.
        start: what is carried from step to step and not trained.
        values: `(trained, carried, key) -> {group: [units]}`, the gates of a training step; None
            where they are read off the data.
        penalty: `(trained, carried, gates) -> number`, added to the loss of every example.
        settled: `(trained, carried) -> {group: [units]}`, the gates of the net as it is evaluated.
        scores: `(trained, carried) -> {group: [units]}`, by which units are ranked in the end.
        after: `(trained, carried, gates) -> (trained, carried)`, after every step.
        watched: `(trained, carried, gates) -> {name: number}`, metrics.
        read: `(group, trained, carried, seen) -> [units]`, gates made of the mean over the batch
            of what the first reader sees, [units, *positions]; None: `values` makes them.
        frozen: whether the weights of the net stay as they are (its statistics move).
    """

    init: Callable[[jax.Array], PyTree]
    start: PyTree
    values: Callable[[PyTree, PyTree, jax.Array], Gates] | None
    penalty: Callable[[PyTree, PyTree, Gates], Any]
    settled: Callable[[PyTree, PyTree], Gates]
    scores: Callable[[PyTree, PyTree], Gates]
    after: Callable[[PyTree, PyTree, Gates], tuple[PyTree, PyTree]]
    watched: Callable[[PyTree, PyTree, Gates], dict[str, Any]] = lambda *_: {}
    read: Callable[[str, PyTree, PyTree, jax.Array], jax.Array] | None = None
    frozen: bool = False


def gated_task(task: Task, groups: Groups, gating: Gating) -> Task:
    """The task for variables {"net", "gates", "carried"}; `fn` has the settled gates.

    Its outputs are for its own `loss` and `metrics`.

    Args:
        task: of the net.
        groups: of the net.
        gating: the gates; groups that it does not name are whole.

    Example:
        >>> from jprune import data, train, zoo
        >>> from jprune.learners import mean_gates
        >>> task = train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
        >>> gating = mean_gates({"params/fc1/kernel": 300}, ratio=0.5)
        >>> gated = gated_task(task, train.Net(task).groups, gating)
        >>> both = gated_start(gating, task.init(jax.random.key(0)), jax.random.key(1))
        >>> x = jnp.ones((2, 8, 8, 1))
        >>> (out, penalty, seen), new = gated.train_fn(both, x, jax.random.key(2))
        >>> out.shape, float(penalty), {name: float(value) for name, value in seen.items()}
        ((2, 10), 0.125, {'open': 1.0, 'mean_gate': 1.0})
    """

    def train_fn(variables: Variables, x: Any, key: jax.Array) -> Any:
        # Gates are drawn apart from what the net draws.
        of_gates, of_net = jax.random.split(key)
        net, trained, carried = (variables[name] for name in ("net", "gates", "carried"))
        if gating.read is None:
            gates = gating.values(trained, carried, of_gates) if gating.values else {}
            out, new = task.train_fn(scaled(groups, gates, {}, net), x, of_net)
        else:
            handler = _reading(gating.read, trained, carried)
            run = intercept(task.train_fn, groups, handler, ("in",))
            (out, new), gates = run(net, {}, x, of_net)
        penalty = gating.penalty(trained, carried, gates)
        return (out, penalty, gating.watched(trained, carried, gates)), (new, gates)

    def split(variables: Variables) -> tuple[PyTree, PyTree]:
        params, rest = task.split(variables["net"])
        others = {"carried": variables["carried"], "rest": rest}
        if gating.frozen:
            return {"gates": variables["gates"]}, {**others, "net": params}
        return {"net": params, "gates": variables["gates"]}, others

    def merge(params: PyTree, rest: PyTree) -> Variables:
        net = (rest if gating.frozen else params)["net"]
        return {
            "net": task.merge(net, rest["rest"]),
            "gates": params["gates"],
            "carried": rest["carried"],
        }

    def update(variables: Variables, new: Any) -> Variables:
        trained, carried = gating.after(variables["gates"], variables["carried"], new[1])
        net = task.update(variables["net"], new[0])
        return {"net": net, "gates": trained, "carried": carried}

    def metrics(outs: tuple[Any, ...], batch: Batch) -> dict[str, jax.Array]:
        seen = {name: jnp.full_like(batch["weight"], value) for name, value in outs[2].items()}
        return {"loss": task.loss(outs[0], batch), **task.metrics(outs[0], batch), **seen}

    return task._replace(
        fn=lambda variables, x: task.fn(settled_net(groups, gating, variables), x),
        train_fn=train_fn,
        loss=lambda outs, batch: task.loss(outs[0], batch) + outs[1],
        metrics=metrics,
        split=split,
        merge=merge,
        update=update,
    )


def gated_start(gating: Gating, net: Variables, key: jax.Array) -> Variables:
    """The variables of a gated task before its first step."""
    return {"net": net, "gates": gating.init(key), "carried": gating.start}


def settled_net(groups: Groups, gating: Gating, variables: Variables) -> Variables:
    """The plain net of a gated one, its settled gates folded into its weights."""
    gates = gating.settled(variables["gates"], variables["carried"])
    return scaled(groups, gates, {}, variables["net"])


def _reading(
    read: Callable[..., jax.Array], trained: Mapping[str, PyTree], carried: PyTree
) -> Callable[[Site, Any, Any], tuple[Any, Any]]:
    """The handler that makes a group's gates at its first reader; it carries {group: [units]}."""

    def handler(site: Site, value: Any, gates: dict[str, jax.Array]) -> tuple[Any, Any]:
        for name, units in site.units.items():
            if name not in trained:
                continue
            if name not in gates:
                gates = {**gates, name: read(name, trained, carried, seen_by(site, value, units))}
            of_unit = gates[name][np.maximum(units, 0)]
            along = jnp.where(units < 0, jnp.ones((), of_unit.dtype), of_unit)
            value = value * site.along(along, value.ndim).astype(value.dtype)
        return value, gates

    return handler


def seen_by(site: Site, value: jax.Array, units: np.ndarray) -> jax.Array:
    """[units, *positions]: the mean over the batch of a value, in an order that no layout changes.

    A unit that stands at several positions of its axis (behind a flattening) has an axis of them.
    """
    # xbar = mean over the batch alone
    mean = value.astype(jnp.float32).mean(site.examples)
    axis = site.axis - (site.examples < site.axis)
    channels = jnp.moveaxis(mean, axis, 0)
    count = int(units.max()) + 1
    # The positions of unit 0, of unit 1, ..., each in rising order.
    order = np.argsort(np.where(units < 0, count, units), kind="stable")[: int((units >= 0).sum())]
    if len(order) == count:
        return channels[order]
    return channels[order].reshape(count, -1, *channels.shape[1:])


def seen_shapes(
    fn: Callable[..., Any], groups: Groups, names: Collection[str], variables: Variables, x: Any
) -> dict[str, tuple[int, ...]]:
    """{group: shape [units, *positions] of what its first reader sees of an example}.

    Args:
        fn: the network.
        groups: from `trace`.
        names: of the groups.
        variables: of the net, or their shapes.
        x: an input, or its shape and type.

    Raises:
        StructureError: a group has no reader outside of loops, or its first one sees a part of it.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables, x = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}, jnp.ones((1, 3))
        >>> seen_shapes(fn, jprune.trace(fn, variables, x), ["first"], variables, x)
        {'first': (5,)}
    """

    def look(site: Site, value: Any, seen: dict[str, Any]) -> tuple[Any, Any]:
        new = {n: units for n, units in site.units.items() if n in names and n not in seen}
        return value, {**seen, **{n: seen_by(site, value, units) for n, units in new.items()}}

    run = intercept(fn, groups, look, ("in",))
    seen = jax.eval_shape(lambda variables, x: run(variables, {}, x)[1], variables, x)
    for name in names:
        if name not in seen or seen[name].shape[0] != groups.sizes[name]:
            raise errors.StructureError(
                f"the first layer that reads {name} sees a part of it, or runs in a loop, so that "
                "no code can be read there. Leave the group out of gates, or freeze it."
            )
    return {name: tuple(seen[name].shape) for name in names}

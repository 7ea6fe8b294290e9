"""Quality of a candidate that was never trained as it is: new statistics, then held-out images."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jprune.base import Groups, Task, Variables, quality
from jprune.learners.statistics import settled
from jprune.masks import apply_masks
from jprune.units import are_units, expand


def scorer(
    task: Task,
    net: Callable[..., Variables],
    images: Any,
    held_out: Mapping[str, Any],
    key: jax.Array,
) -> Callable[..., jax.Array]:
    """How good candidates are, by one compiled function for all of them.

    Args:
        task: of the net.
        net: `net(*what) -> variables`; what a candidate is, is an argument of it.
        images: training images [n, batch, h, w, c] that the statistics are taken from anew; n = 0
            leaves them.
        held_out: batches {"image": [m, batch, h, w, c], "label": [m, batch], "weight"}.
        key: for what the net draws, the same for all candidates.

    Returns:
        `score(*what) -> number`: the mean `jprune.base.quality`.
    """

    @jax.jit
    def run(images: Any, held_out: Mapping[str, Any], *what: Any) -> jax.Array:
        return _mean(task, settled(task, net(*what), images, key), held_out)

    images, held_out = jnp.asarray(images), jax.tree.map(jnp.asarray, dict(held_out))
    return lambda *what: run(images, held_out, *what)


def masked_scorer(task: Task, groups: Groups, of: str = "quality") -> Callable[..., jax.Array]:
    """How good many masked nets are, by one call of a function that is compiled once.

    Args:
        task: of the net.
        groups: from `trace`.
        of: "quality" (`jprune.base.quality`) or "loss" (minus the loss).

    Returns:
        `score(variables, masks, count, images, held_out, key) -> [p]`, jitted. Masks have a leading
        axis p: of units {group: [p, units]}, or a tree like the variables. The first `count` of
        them are scored, one after the other, since the activations of all would not fit into
        memory; the others are -inf, so that one p serves any number. `images`, `held_out` and `key`
        are as for `scorer`.

    Example:
        >>> from jprune import data, train, zoo
        >>> from jprune.train.net import Net
        >>> task = train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
        >>> groups, net = Net(task).groups, task.init(jax.random.key(0))
        >>> masks = {name: jnp.ones((3, size), bool) for name, size in groups.sizes.items()}
        >>> batch = {n: v[None] for n, v in next(task.data.batches("validation", 32)).items()}
        >>> score = masked_scorer(task, groups, "loss")
        >>> score(net, masks, 2, jnp.zeros((0, 32, 8, 8, 1)), batch, jax.random.key(1)).shape
        (3,)
    """

    @jax.jit
    def score(
        variables: Variables,
        masks: Any,
        count: Any,
        images: Any,
        held_out: Mapping[str, Any],
        key: jax.Array,
    ) -> jax.Array:
        def one(place: Any, scores: jax.Array) -> jax.Array:
            own = jax.tree.map(lambda stack: stack[place], masks)
            own = expand(groups, own) if are_units(groups, own) else own
            net = settled(task, apply_masks(variables, own), images, key)
            # Statistics of masked units are 0 as well: shifts and scales would be 0 alone.
            return scores.at[place].set(_mean(task, apply_masks(net, own), held_out, of))

        most = len(jax.tree.leaves(masks)[0])
        return jax.lax.fori_loop(0, count, one, jnp.full(most, -jnp.inf))

    return score


def _mean(
    task: Task, variables: Variables, held_out: Mapping[str, Any], of: str = "quality"
) -> jax.Array:
    """The mean over held-out examples."""

    def of_batch(batch: Any) -> tuple[jax.Array, jax.Array]:
        out = task.fn(variables, batch["image"])
        loss = task.loss(out, batch)
        value = -loss if of == "loss" else quality(task.metrics(out, batch), loss)
        # [batch]: padded examples have weight 0.
        return batch["weight"] @ value, batch["weight"].sum()

    # One batch after the other: all together would not fit the memory of activations.
    sums, weights = jax.lax.map(of_batch, held_out)
    return sums.sum() / weights.sum()

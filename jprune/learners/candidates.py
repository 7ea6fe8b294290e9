"""How good a net is that was never trained as it is: statistics anew, then held-out images."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jprune.base import Task, Variables


def settled(task: Task, variables: Variables, images: Any, key: jax.Array) -> Variables:
    """The variables with the mean of the statistics of some batches, and nothing of the old ones.

    Statistics that forget, new = m old + (1 - m) batch, keep m^n of what they were reset to after n
    batches (12 % at m = 0.9, n = 20). The mean does not. A batch's own are (new from 0) / (1 - m),
    and m is new(1) - new(0), whatever library the norm is from.

    Args:
        task: whose `train_fn` gives new statistics.
        variables: of the net, under masks or not.
        images: [batches, batch, h, w, c]; no batches leave the variables as they are.
        key: for what the net draws.

    Returns:
        The variables; what does not forget (a rate of dropout, a counter) is as it was. Jittable.

    References:
        Liu et al., MetaPruning, 2019, arXiv 1903.10258, re-calibrate every candidate; the
        cumulative mean in place of their running one is a choice of ours.

    Example:
        >>> from jprune import data, train, zoo
        >>> task = train.task(zoo.build("resnet8", shape=(8, 8, 1)), data.load("digits"))
        >>> net, key = task.init(jax.random.key(0)), jax.random.key(1)
        >>> alike = [settled(task, net, jnp.ones((n, 4, 8, 8, 1)), key) for n in (1, 3)]
        >>> means = [found["stats"]["norm1"]["mean"] for found in alike]
        >>> bool(jnp.allclose(*means))  # running means of one batch and of three would differ
        True
    """
    if not len(images):
        return variables
    params, rest = task.split(variables)
    leaves, structure = jax.tree.flatten(rest)
    moving = [jnp.ndim(leaf) > 0 and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def of_batch(old: list[Any], image: Any, key: jax.Array, params: Any = params) -> list[Any]:
        """New statistics from old ones, of those that may move."""
        given = iter(old)
        filled = [next(given) if moves else leaf for moves, leaf in zip(moving, leaves)]
        whole = task.merge(params, structure.unflatten(filled))
        new = task.split(task.update(whole, task.train_fn(whole, image, key)[1]))[1]
        return [leaf for moves, leaf in zip(moving, jax.tree.leaves(new)) if moves]

    blank = [jnp.zeros_like(leaf) for moves, leaf in zip(moving, leaves) if moves]
    ones = [jnp.ones_like(leaf) for leaf in blank]
    # Not a derivative: Flax stops gradients here. Without weights nothing is lost by rounding.
    zeros, two = jax.tree.map(jnp.zeros_like, params), images[0][:2]
    apart = zip(of_batch(ones, two, key, zeros), of_batch(blank, two, key, zeros))
    kept = [one - zero for one, zero in apart]

    def look(sums: list[Any], item: Any) -> tuple[list[Any], None]:
        return [a + b for a, b in zip(sums, of_batch(blank, *item))], None

    keys = jax.random.split(key, len(images))
    sums, _ = jax.lax.scan(look, blank, (images, keys))
    means = iter(
        (total / len(images) / jnp.where(m < 1, 1 - m, 1), m) for total, m in zip(sums, kept)
    )
    done = []
    for moves, leaf in zip(moving, leaves):
        mean, m = next(means) if moves else (leaf, None)
        done.append(leaf if m is None else jnp.where(m < 1, mean, leaf))
    return task.merge(params, structure.unflatten(done))


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
        `score(*what) -> number`: the accuracy; minus the loss, where a task has none.
    """

    def of_batch(variables: Variables, batch: Any) -> tuple[jax.Array, jax.Array]:
        seen = task.metrics(task.fn(variables, batch["image"]), batch)
        value = seen["accuracy"] if "accuracy" in seen else -seen["loss"]
        return batch["weight"] @ value, batch["weight"].sum()

    @jax.jit
    def run(images: Any, held_out: Mapping[str, Any], *what: Any) -> jax.Array:
        variables = settled(task, net(*what), images, key)
        sums, weights = jax.lax.map(lambda batch: of_batch(variables, batch), held_out)
        return sums.sum() / weights.sum()

    images, held_out = jnp.asarray(images), jax.tree.map(jnp.asarray, dict(held_out))
    return lambda *what: run(images, held_out, *what)

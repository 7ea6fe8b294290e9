"""Quality of a candidate that was never trained as it is: new statistics, then held-out images."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jprune.base import Task, Variables, quality
from jprune.learners.statistics import settled


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

    def of_batch(variables: Variables, batch: Any) -> tuple[jax.Array, jax.Array]:
        out = task.fn(variables, batch["image"])
        # [batch]: padded examples have weight 0.
        value = quality(task.metrics(out, batch), task.loss(out, batch))
        return batch["weight"] @ value, batch["weight"].sum()

    @jax.jit
    def run(images: Any, held_out: Mapping[str, Any], *what: Any) -> jax.Array:
        variables = settled(task, net(*what), images, key)
        # One batch after the other: all together would not fit the memory of activations.
        sums, weights = jax.lax.map(lambda batch: of_batch(variables, batch), held_out)
        return sums.sum() / weights.sum()

    images, held_out = jnp.asarray(images), jax.tree.map(jnp.asarray, dict(held_out))
    return lambda *what: run(images, held_out, *what)

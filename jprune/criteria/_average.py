"""How contributions of batches become one score: a mean, or a running mean over rounds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jprune.base import PyTree
from jprune.graph.shrink.concrete import full, on_host


class Average(NamedTuple):
    """Contributions so far.

    Attributes:
        batches: number of batches in the current round.
        total: sum of their contributions.
        rounds: number of complete rounds.
        mean: running mean over the complete rounds.
    """

    batches: jax.Array
    total: PyTree
    rounds: jax.Array
    mean: PyTree


def start(like: PyTree) -> Average:
    """The state before the first batch: zeros with the shapes and types of `like`."""
    zeros = jax.tree.map(lambda leaf: full(leaf.shape, 0, leaf.dtype), like)
    count = jnp.zeros((), jnp.int32)
    return Average(count, zeros, count, zeros)


def add(average: Average, value: PyTree, momentum: float | None, every: int) -> Average:
    """The state after one more batch.

    Without `momentum` all batches count alike. With it, the mean of every `every` batches is a
    round's contribution c, and `mean <- momentum mean + (1 - momentum) c`, starting from the
    first c.
    """
    total = jax.tree.map(jnp.add, average.total, value)
    batches = average.batches + 1
    if momentum is None:
        return average._replace(batches=batches, total=total)
    # `where` instead of `if`: the caller is jitted, so the counts are traced.
    full = batches == every
    first = average.rounds == 0

    def renewed(mean, summed):
        contribution = summed / every
        # I <- mu I + (1 - mu) c; the first c is taken whole, or I would start out too small.
        later = momentum * mean + (1 - momentum) * contribution
        return jnp.where(full, jnp.where(first, contribution, later), mean)

    return Average(
        jnp.where(full, 0, batches),
        jax.tree.map(lambda summed: jnp.where(full, 0, summed), total),
        average.rounds + full,
        jax.tree.map(renewed, average.mean, total),
    )


def value_of(average: Average, momentum: float | None) -> PyTree:
    """The score; before the first complete round, the mean of the batches so far."""
    # maximum: with no batch at all the score is 0, not NaN.
    mean_of = on_host(lambda xnp, total, batches: total / xnp.maximum(batches, 1))
    so_far = jax.tree.map(lambda total: mean_of(total, average.batches), average.total)
    if momentum is None:
        return so_far
    either = on_host(lambda xnp, rounds, mean, early: xnp.where(rounds > 0, mean, early))
    return jax.tree.map(
        lambda mean, early: either(average.rounds, mean, early), average.mean, so_far
    )

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
        weight: sum of their weights.
        total: weighted sum of their contributions.
        rounds: number of complete rounds.
        mean: running mean over the complete rounds.
    """

    batches: jax.Array
    weight: jax.Array
    total: PyTree
    rounds: jax.Array
    mean: PyTree


def start(like: PyTree) -> Average:
    """The state before the first batch: zeros with the shapes and types of `like`."""
    zeros = jax.tree.map(lambda leaf: full(leaf.shape, 0, leaf.dtype), like)
    count = jnp.zeros((), jnp.int32)
    return Average(count, jnp.zeros(()), zeros, count, zeros)


def add(
    average: Average, value: PyTree, momentum: float | None, every: int, weight: jax.Array | float
) -> Average:
    """The state after one more batch.

    Without `momentum` it is the mean of all batches by their weights. With it, the mean of every
    `every` batches is a round's contribution c, and `mean <- momentum mean + (1 - momentum) c`,
    starting from the first c.

    Args:
        average: the state before.
        value: what the batch contributes.
        momentum: of rounds, or None.
        every: batches in a round.
        weight: of this batch: 1 where batches count alike, its examples where these do.
    """
    total = jax.tree.map(lambda summed, new: summed + weight * new, average.total, value)
    batches, weights = average.batches + 1, average.weight + weight
    if momentum is None:
        return average._replace(batches=batches, weight=weights, total=total)
    # `where` instead of `if`: the caller is jitted, so the counts are traced.
    full = batches == every
    first = average.rounds == 0

    def renewed(mean, summed):
        contribution = summed / weights
        # I <- mu I + (1 - mu) c; the first c is taken whole, or I would start out too small.
        later = momentum * mean + (1 - momentum) * contribution
        return jnp.where(full, jnp.where(first, contribution, later), mean)

    return Average(
        jnp.where(full, 0, batches),
        jnp.where(full, 0.0, weights),
        jax.tree.map(lambda summed: jnp.where(full, 0, summed), total),
        average.rounds + full,
        jax.tree.map(renewed, average.mean, total),
    )


def value_of(average: Average, momentum: float | None) -> PyTree:
    """The score; before the first complete round, the mean of the batches so far."""
    # With no batch at all the score is 0, not NaN.
    mean_of = on_host(lambda xnp, total, weight: total / xnp.where(weight > 0, weight, 1))
    so_far = jax.tree.map(lambda total: mean_of(total, average.weight), average.total)
    if momentum is None:
        return so_far
    either = on_host(lambda xnp, rounds, mean, early: xnp.where(rounds > 0, mean, early))
    return jax.tree.map(
        lambda mean, early: either(average.rounds, mean, early), average.mean, so_far
    )

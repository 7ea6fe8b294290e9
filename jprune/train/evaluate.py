"""Means of a task's metrics over a split."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jprune.base import Batch, Task, Variables, quality
from jprune.train.net import Net

EVALUATION_BATCH = 256


def evaluate(
    task: Task, variables: Variables, split: str, fn: Callable[..., Any] | None = None
) -> dict[str, float]:
    """Means of a task's metrics over a split.

    Args:
        task: whose metrics and data.
        variables: of the net.
        split: "train", "validation" or "test".
        fn: another function than `task.fn`, such as the slim one.

    Returns:
        {metric: mean over all examples}.

    Example:
        >>> from jprune import data, train, zoo
        >>> task = train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
        >>> sorted(evaluate(task, task.init(jax.random.key(0)), "test"))
        ['accuracy', 'loss']
    """
    sums = _sums(Net(task).fn if fn is None else fn, task.metrics)
    totals: dict[str, float] = {}
    count = 0.0
    for batch in task.data.batches(split, EVALUATION_BATCH):
        # Padded examples of the last batch weigh 0.
        count += float(batch["weight"].sum())
        for name, value in sums(variables, batch).items():
            # Sums in Python's float64, batch by batch: float32
            # would lose digits over a whole split.
            totals[name] = totals.get(name, 0.0) + float(value)
    return {name: total / count for name, total in totals.items()}


def mean_quality(task: Task, variables: Variables, split: str) -> float:
    """How good a net is on a split, higher being better: its `jprune.base.quality`.

    Args:
        task: whose metrics, loss and data.
        variables: of the net.
        split: "train", "validation" or "test".

    Example:
        >>> from jprune import data, train, zoo
        >>> net = zoo.build("lenet300", shape=(8, 8, 1))
        >>> task = train.task(net, data.load("digits"), metrics=lambda out, batch: {})
        >>> mean_quality(task, task.init(jax.random.key(0)), "test") < -2  # minus the loss
        True
    """
    judged = task._replace(metrics=_quality_of(task.metrics, task.loss))
    return evaluate(judged, variables, split)["quality"]


@functools.lru_cache(maxsize=8)  # the same function for the same task: it is compiled for
def _quality_of(metrics: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., Any]:
    return lambda out, batch: {"quality": quality(metrics(out, batch), loss(out, batch))}


@functools.lru_cache(maxsize=8)
def _sums(fn: Callable[..., Any], metrics: Callable[..., Any]) -> Callable[..., Any]:
    @jax.jit
    def sums(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        values = metrics(fn(variables, batch["image"]), batch)
        return {name: batch["weight"] @ value for name, value in values.items()}

    return sums

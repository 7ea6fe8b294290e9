"""Metrics over a whole split."""

from collections.abc import Callable
from typing import Any

import jax

from jprune.base import Task, Variables


def evaluator(
    task: Task, fn: Callable[..., Any] | None = None, batch_size: int = 256
) -> Callable[[Variables, str], dict[str, float]]:
    """`evaluate(variables, split) -> {metric: mean}`, compiled once and for all splits.

    Args:
        task: what to evaluate.
        fn: another function of the same inputs, such as a slim net; None is the task's own.
        batch_size: examples at once; the last batch is padded with weight 0.
    """
    run = task.fn if fn is None else fn

    @jax.jit
    def sums(variables, batch):
        metrics = task.metrics(run(variables, batch["image"]), batch)
        return {name: (values * batch["weight"]).sum() for name, values in metrics.items()}

    def evaluate(variables: Variables, split: str) -> dict[str, float]:
        totals: dict[str, float] = {}
        for batch in task.data.batches(split, batch_size):
            for name, value in sums(variables, batch).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return {name: total / task.data.sizes[split] for name, total in totals.items()}

    return evaluate


def evaluate(
    task: Task, variables: Variables, split: str, fn: Callable[..., Any] | None = None
) -> dict[str, float]:
    """Mean of every metric of the task over a split; see `evaluator`."""
    return evaluator(task, fn)(variables, split)

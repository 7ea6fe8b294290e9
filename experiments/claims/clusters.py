"""P41's nets: filters that have grown equal, and what merging them changes."""

from typing import Any

import jax
import numpy as np

from experiments.claims.claim import Case
from jprune.base import Budget, Pruned, Task, Variables
from jprune.stages.centripetal import Cluster, MergeClusters, Pull


def merged(case: Case, dense: Pruned, budget: Budget, pull: Pull) -> tuple[Pruned, dict[str, Any]]:
    """The net of C-SGD, and what merging did."""
    task, key = case.task, case.fold(2)
    net, _ = Cluster(budget)(dense, task, key)
    net, _ = pull(net, task, key)
    done, (record,) = MergeClusters()(net, task, key)
    before, after = (classes(task, variables) for variables in (net.variables, done.variables))
    row = {name: record["metrics"][name] for name in ("deviation", "drift")}
    return done, {**row, "same": float(np.mean(before == after)), "before": case.score(net)}


def classes(task: Task, variables: Variables) -> np.ndarray:
    """The class of every test image."""
    fn = jax.jit(task.fn)
    of_batches = [
        np.asarray(fn(variables, batch["image"]).argmax(axis=-1))[batch["weight"] > 0]
        for batch in task.data.batches("test", 500)
    ]
    return np.concatenate(of_batches)

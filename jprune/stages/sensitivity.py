"""How much pruning every layer bears, found by pruning one at a time."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jprune import criteria
from jprune.base import Budget, Pruned, Records, Task
from jprune.stages.evaluate import record
from jprune.train.evaluate import EVALUATION_BATCH, mean_quality
from jprune.train.net import Net, per_kernel

STEP, MOST = 0.25, 4.0
"""The scan tries q = STEP, 2 STEP, ... up to MOST standard deviations."""


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Finds the q of every layer, and keeps them in `extra`, a tree like the variables.

    Attributes:
        budget: whose floors leave layers whole.
        q: "scan", or numbers in execution order.
        tolerance: validation accuracy that pruning one layer may cost; of a task without accuracy,
            by how much the mean loss may grow.
        examples: of the validation split.
        std_over: "alive" or "all" weights, as in `criteria.std_rule`.
        name: of the record: q by kernel.
    """

    budget: Budget
    q: str = "scan"
    tolerance: float = 0.01
    examples: int = 1024
    std_over: str = "alive"
    name: str = "scan"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net.

        Raises:
            ArgumentError: not as many numbers as kernels; nothing is prunable.
        """
        del key
        kernels = Net(task).kernels(Net(task).prunable(pruned.masks, self.budget))
        if self.q == "scan":
            q = self._scan(pruned, task, kernels)
        else:
            q = per_kernel(self.q, kernels, "q")
        extra = Net(task).tree({path: np.asarray(value, np.float32) for path, value in q.items()})
        return pruned._replace(extra=extra), [record(self.name, q)]

    def _scan(self, pruned: Pruned, task: Task, kernels: tuple[str, ...]) -> dict[str, float]:
        """The largest q of every layer before validation accuracy falls."""
        some = lambda *given: itertools.islice(
            task.data.batches(*given), -(-self.examples // EVALUATION_BATCH)
        )
        few = task._replace(data=task.data._replace(batches=some))
        accuracy = lambda variables: mean_quality(few, variables, "validation")
        leaves = Net(task).leaves(pruned.variables)
        rule = criteria.std_rule(1.0, self.std_over)
        scores = Net(task).leaves(rule.score((), pruned.variables))
        least = accuracy(pruned.variables) - self.tolerance
        found = {}
        for path in kernels:
            sizes = scores[path]
            found[path] = STEP / 2
            for q in np.arange(STEP, MOST + STEP, STEP):
                cut = jnp.where(sizes > q, leaves[path], 0)
                if accuracy(Net(task).tree({**leaves, path: cut})) < least:
                    break
                found[path] = float(q)
        convolutions = [path for path in kernels if leaves[path].ndim > 2]
        if convolutions:
            found[convolutions[0]] = min(found.values())
        return found

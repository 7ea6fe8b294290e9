"""How much pruning every layer bears, measured by pruning one layer at a time."""

import dataclasses
import itertools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jprune import criteria, errors
from jprune.base import Budget, Pruned, Records, Task
from jprune.stages.frame import record
from jprune.train.evaluate import EVALUATION_BATCH, mean_quality
from jprune.train.net import Net
from jprune.train.numbers import Numbers, per_name

STEP, MOST = 0.25, 4.0
"""The scan tries q = STEP, 2 STEP, ... up to MOST standard deviations."""


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Measures the threshold q of every layer; `extra` has them, a tree like the variables.

    Attributes:
        budget: whose floors leave layers whole.
        q: "scan"; or one number, one for each kernel in execution order, or {kernel: q}.
        tolerance: validation accuracy that pruning one layer may cost; of a task without accuracy,
            by how much the mean loss may grow.
        examples: of the validation split.
        std_over: "alive" or "all" weights, as in `criteria.std_rule`.
        name: of the record: q by kernel.
    """

    budget: Budget
    q: Numbers | Literal["scan"] = "scan"
    tolerance: float = 0.01
    examples: int = 1024
    std_over: str = "alive"
    name: str = "scan"

    def __post_init__(self):
        if isinstance(self.q, str) and self.q != "scan":
            raise errors.ArgumentError(
                f"q={self.q!r}; write 'scan', a number, or one for each kernel: q=(0.4, 1, 1, 0.7)."
            )

    def check(self, task: Task) -> None:
        """Refuses numbers for other kernels than the net has.

        Raises:
            ArgumentError: not as many numbers as kernels; nothing is prunable.
        """
        kernels = Net(task).kernels(Net(task).prunable(None, self.budget))
        if not isinstance(self.q, str):
            per_name(self.q, kernels, "q")

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net.

        Raises:
            ArgumentError: not as many numbers as kernels; nothing is prunable.
        """
        del key
        kernels = Net(task).kernels(Net(task).prunable(pruned.masks, self.budget))
        if isinstance(self.q, str):
            q = self._scan(pruned, task, kernels)
        else:
            q = per_name(self.q, kernels, "q")
        extra = Net(task).tree({path: np.asarray(value, np.float32) for path, value in q.items()})
        return pruned._replace(extra=extra), [record(self.name, q)]

    def _scan(self, pruned: Pruned, task: Task, kernels: tuple[str, ...]) -> dict[str, float]:
        """The largest q of every layer before validation accuracy falls."""
        some = lambda *arguments: itertools.islice(
            task.data.batches(*arguments), -(-self.examples // EVALUATION_BATCH)
        )
        # A part of the validation split: the scan evaluates layers x thresholds nets.
        few = task._replace(data=task.data._replace(batches=some))
        accuracy = lambda variables: mean_quality(few, variables, "validation")
        leaves = Net(task).leaves(pruned.variables)
        # With q = 1 the score of a weight is |w| / std(W_l): cut at score <= q.
        rule = criteria.std_rule(1.0, self.std_over)
        scores = Net(task).leaves(rule.score((), pruned.variables))
        least = accuracy(pruned.variables) - self.tolerance
        largest_q = {}
        for path in kernels:
            sizes = scores[path]
            # A layer that bears nothing still gets a q above 0:
            # thresholds are scaled to the budget later.
            largest_q[path] = STEP / 2
            for q in np.arange(STEP, MOST + STEP, STEP):
                # Weights with |w| <= q std(W_l) are cut, in this layer alone.
                cut = jnp.where(sizes > q, leaves[path], 0)
                # The first q that costs too much ends the scan:
                # accuracy falls with q, but for noise.
                if accuracy(Net(task).tree({**leaves, path: cut})) < least:
                    break
                largest_q[path] = float(q)
        layers = Net(task).groups.layers
        convolutions = [path for path in kernels if path in layers and layers[path].window]
        # The first convolution sees the image itself, and is the most sensitive: Han et al. give
        # it the smallest q of all.
        if convolutions:
            largest_q[convolutions[0]] = min(largest_q.values())
        return largest_q

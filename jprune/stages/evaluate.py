"""Loss, accuracy and counts on a split."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jprune.base import (
    Pruned,
    Records,
    Task,
)
from jprune.masks import intersect
from jprune.train.evaluate import evaluate
from jprune.train.net import Net, are_units
from jprune.train.resolution import at_resolution, seen_at
from jprune.units import expand


def record(stage: str, metrics: dict[str, Any], step: int = 0) -> dict[str, Any]:
    """A record; whoever keeps it adds where it comes from."""
    return {"stage": stage, "step": step, "metrics": metrics}


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measures loss and accuracy on a split, and counts.

    The record has the task's metrics, `params` (those that are not 0) and `macs` (for one example,
    under the masks; those of masked weights do not count).

    Attributes:
        split: "train", "validation" or "test".
        slim: evaluate the small net instead of the masked one.
        name: of the record.
    """

    split: str = "validation"
    slim: bool = False
    name: str = "evaluate"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, and the record."""
        del key
        seen = seen_at(Net(task).fn, pruned.resolution)
        fn, variables = Net(task).slim(pruned) if self.slim else (seen, pruned.variables)
        params, _ = task.split(variables)
        masks = {} if pruned.masks is None else pruned.masks
        if self.slim and not are_units(Net(task).groups, masks):
            masks = intersect(masks, expand(Net(task).groups, Net(task).unit_masks(pruned)))
        counts = {
            "params": sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(params)),
            "macs": round(
                float(Net(at_resolution(task, pruned)).cost_as_held(pruned, masks, self.split).macs)
            ),
        }
        metrics = evaluate(task, variables, self.split, fn) | counts
        return pruned, [{**record(self.name, metrics), "split": self.split}]

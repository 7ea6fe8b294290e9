"""Evaluation on images of rising difficulty, for nets that choose their channels by the input."""

import dataclasses

import jax
import numpy as np

from jprune import errors
from jprune.base import Pruned, Records, Task, quality
from jprune.cost.samples import gates_of
from jprune.criteria import spearman
from jprune.forms.leaf_type import has_dynamic
from jprune.stages.frame import record, saved
from jprune.train.net import Net

BATCH = 256


@dataclasses.dataclass(frozen=True)
class EvaluateDifficulty:
    """Measures how much of a net images of rising difficulty use, and how well they do.

    How difficult an image is says the loss of the net that was saved as "dense". The record has
    `correlation`, Spearman's of difficulty and the number of open channels (0 where that is the
    same for all images), and for each part of the images, from the easiest (1) on: `open_1`, the
    share of the gated channels that are open, and `quality_1`, the accuracy, or minus the loss
    where there is none.

    Attributes:
        parts: of the images, by difficulty.
        split: whose images.
        name: of the record.
    """

    parts: int = 4
    split: str = "test"
    name: str = "difficulty"

    def __post_init__(self):
        errors.check_numbers(
            "EvaluateDifficulty", ("parts", self.parts, self.parts >= 1, "1 or more")
        )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, and the record.

        Raises:
            ArgumentError: no kernel has gates, or nothing was saved as "dense".
        """
        del key
        dense = saved(pruned, "dense", "EvaluateDifficulty()")
        if not has_dynamic(pruned.variables):
            raise errors.ArgumentError(
                "EvaluateDifficulty came to a net without gates: all images use the same channels. "
                "Put it behind a stage that chooses channels for every image."
            )
        run = gates_of(task.fn, Net(task).groups)

        @jax.jit
        def looked(dense, variables, batch):
            out, gates = run(variables, batch["image"])
            right = quality(task.metrics(out, batch), task.loss(out, batch))
            counts = sum((gate > 0).sum(axis=-1) for gate in gates.values())
            total = sum(gate.shape[-1] for gate in gates.values())
            return task.loss(task.fn(dense, batch["image"]), batch), counts / total, right

        columns = []
        for batch in task.data.batches(self.split, BATCH):
            there = np.asarray(batch["weight"]) > 0
            found = looked(dense, pruned.variables, batch)
            columns.append([np.asarray(values, np.float64)[there] for values in found])
        losses, shares, right = (np.concatenate(values) for values in zip(*columns))
        metrics = {"correlation": float(np.nan_to_num(spearman(losses, shares)))}
        for number, part in enumerate(
            np.array_split(np.argsort(losses, kind="stable"), self.parts)
        ):
            if len(part):
                metrics[f"open_{number + 1}"] = float(shares[part].mean())
                metrics[f"quality_{number + 1}"] = float(right[part].mean())
        return pruned, [{**record(self.name, metrics), "split": self.split}]

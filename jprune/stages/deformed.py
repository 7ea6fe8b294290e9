"""Scores on deformed images: what depends on its input is judged on inputs that are not as usual.

The survey's complaint about dynamic pruning: saliency that is read off an image may be wrong where
the image is a mosaic or partly hidden. Both deformations keep the shape of the images.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.base import Batch, Data, Pruned, Records, Task
from jprune.data.deformed import DEFORMATIONS, Deform
from jprune.stages.frame import Evaluate


def deformed(data: Data, deform: Deform, seed: int = 0) -> Data:
    """The data set with deformed images; the same ones at every reading of a split in order.

    Args:
        data: any.
        deform: one of `DEFORMATIONS`, or a function like them.
        seed: of the draws.
    """

    def batches(split: str, batch_size: int, *args: Any, **options: Any) -> Iterator[Batch]:
        rng = np.random.default_rng(seed)
        for batch in data.batches(split, batch_size, *args, **options):
            yield {**batch, "image": deform(np.asarray(batch["image"]), rng)}

    return data._replace(batches=batches)


@dataclasses.dataclass(frozen=True)
class EvaluateDeformed:
    """Measures what `Evaluate` does, on deformed images.

    Attributes:
        name: of the deformation, and of the record.
        split: whose images.
    """

    name: str
    split: str = "test"

    def __post_init__(self):
        if self.name not in DEFORMATIONS:
            raise errors.ArgumentError(
                f"EvaluateDeformed({self.name!r}); write one of {', '.join(DEFORMATIONS)}."
            )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, and the record."""
        data = deformed(task.data, DEFORMATIONS[self.name])
        return Evaluate(self.split, name=self.name)(pruned, task._replace(data=data), key)

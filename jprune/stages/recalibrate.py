"""Statistics of norms taken anew on the net as it is."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from jprune.base import (
    Pruned,
    Records,
    Task,
    Variables,
)
from jprune.masks import apply_masks
from jprune.stages.evaluate import record
from jprune.train.net import Net
from jprune.train.step import stream


@dataclasses.dataclass(frozen=True)
class Recalibrate:
    """Lets the statistics of the norms settle on the net as it is now; weights stay.

    Attributes:
        batches: training batches that are looked at.
        batch_size: examples in one.
        name: of the record.
    """

    batches: int = 50
    batch_size: int = 128
    name: str = "recalibrate"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """New statistics, and a record of the number of batches."""
        batch_size = min(self.batch_size, task.data.sizes["train"])
        variables, net = pruned.variables, Net(task)

        @jax.jit
        def look(variables: Variables, image: jax.Array, key: jax.Array) -> Variables:
            return task.update(variables, net.train_fn(variables, image, key)[1])

        batches = itertools.islice(stream(task.data, batch_size, key), self.batches)
        for step, batch in enumerate(batches):
            variables = look(variables, jnp.asarray(batch["image"]), jax.random.fold_in(key, step))
        masks = Net(task).weight_masks(pruned.masks)
        if masks is not None:
            variables = apply_masks(variables, masks)
        return pruned._replace(variables=variables), [record(self.name, {"batches": self.batches})]

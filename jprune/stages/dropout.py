"""Dropout of a pruned layer: fewer connections overfit less."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jprune.base import Pruned, Records, Task
from jprune.stages.frame import record, saved
from jprune.train.net import Net


@dataclasses.dataclass(frozen=True)
class RescaleDropout:
    """Gives every dropout the rate D_o sqrt(C_r / C_o): its layer keeps C_r of C_o weights.

    The rates are scalars `stats/<layer>/dropout` beside the kernels `params/<layer>/kernel`; D_o is
    that of the net saved as "dense".

    Attributes:
        name: of the record: the new rates.
    """

    name: str = "rescale_dropout"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net with other rates."""
        del key
        leaves, masks = Net(task).leaves(pruned.variables), Net(task).leaves(pruned.masks)
        dense, rates = Net(task).leaves(saved(pruned, "dense", "RescaleDropout")), {}
        for path in leaves:
            # The one place that goes by names: nothing in a traced net ties a rate to its layer.
            collection, *layer, last = path.split("/")
            mask = masks.get("/".join(["params", *layer, "kernel"]))
            if (collection, last) == ("stats", "dropout") and mask is not None:
                # D_r = D_o sqrt(C_r / C_o)
                rates[path] = float(dense[path] * np.sqrt(np.mean(mask)))
                # From the dense rate and not the present one, so that rounds do not multiply.
                leaves[path] = jnp.asarray(rates[path], leaves[path].dtype)
        pruned = pruned._replace(variables=Net(task).tree(leaves))
        return pruned, [record(self.name, rates)]

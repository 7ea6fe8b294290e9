"""New initial values under masks, for nets that are trained from scratch in a pruned shape."""

import dataclasses

import jax

from jprune.base import Pruned, Records, Task
from jprune.masks import apply_masks
from jprune.recipes._nets import are_units, groups_of, weight_masks
from jprune.units import expand


@dataclasses.dataclass(frozen=True)
class BeginAnew:
    """New initial values for what is kept, as the small net by itself would draw them.

    Initial kernels have a variance of 1 / fan-in, and the small net's fan-in is smaller: what is
    drawn for the dense net is multiplied by sqrt(inputs / kept inputs) at every consumer. Under
    masks of single weights the values are those of the dense net, as in the paper.

    Attributes:
        name: of the stage.
    """

    name: str = "begin_anew"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The net under the same masks, with new values."""
        variables, masks = task.init(key), pruned.masks
        if masks is not None and are_units(groups_of(task), masks):
            read = expand(groups_of(task), masks, roles=("in",))
            widen = lambda kept, leaf: leaf if kept is None else leaf * float(kept.mean()) ** -0.5
            variables = jax.tree.map(widen, read, variables, is_leaf=lambda node: node is None)
        if masks is not None:
            variables = apply_masks(variables, weight_masks(task, masks))
        return pruned._replace(variables=variables), []

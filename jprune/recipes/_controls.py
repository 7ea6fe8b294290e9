"""Stages that experiments are compared with: the same masks, other places or other values."""

import dataclasses

import jax
import numpy as np

from jprune.base import Pruned, Records, Task
from jprune.masks import apply_masks
from jprune.recipes._nets import weight_masks


@dataclasses.dataclass(frozen=True)
class ShuffleMasks:
    """Shuffles the masks within every leaf: the same densities, other weights.

    Attributes:
        name: of the stage.
    """

    name: str = "shuffle_masks"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net under other masks; the next stage brings back what they keep."""
        del task
        drawn = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        shuffle = lambda mask: drawn.permutation(np.ravel(mask)).reshape(np.shape(mask))
        return pruned._replace(masks=jax.tree.map(shuffle, pruned.masks)), []


@dataclasses.dataclass(frozen=True)
class Reinitialise:
    """New initial values, drawn anew, under today's masks.

    Attributes:
        name: of the stage.
    """

    name: str = "reinitialise"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The masked net with new values; the masks stay."""
        masks, variables = weight_masks(task, pruned.masks), task.init(key)
        if masks is not None:
            variables = apply_masks(variables, masks)
        return pruned._replace(variables=variables), []

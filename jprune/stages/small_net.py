"""The small net as a task of its own, for trainings that are long."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jprune.base import Pruned, Task, Variables, is_none
from jprune.graph import slim, slim_params
from jprune.train.net import Net


class Small(NamedTuple):
    """A pruned net, removed units gone."""

    task: Task
    """With the small net's functions; `init` is still the dense net's."""
    variables: Variables
    back: Callable[[Variables], Variables]
    """`back(small variables) -> dense ones`, with what the pruned net has where units are gone."""


def small(task: Task, pruned: Pruned) -> Small:
    """The small net of unit masks, and the way back.

    Args:
        task: of the dense net.
        pruned: with unit masks.
    """
    groups, masks = Net(task).groups, Net(task).unit_masks(pruned)
    numbered = jax.tree.map(lambda leaf: np.arange(leaf.size).reshape(leaf.shape), Net(task).shapes)
    places = slim_params(groups, masks, numbered)

    def write(place: np.ndarray | None, whole: jax.Array, part: jax.Array) -> jax.Array:
        if place is None:  # in a branch that is gone
            return whole
        return whole.ravel().at[np.ravel(place)].set(part.ravel()).reshape(whole.shape)

    return Small(
        task._replace(fn=slim(task.fn, groups, masks), train_fn=slim(task.train_fn, groups, masks)),
        slim_params(groups, masks, pruned.variables),
        lambda variables: jax.tree.map(write, places, pruned.variables, variables, is_leaf=is_none),
    )

"""Copies of the variables under names: saved by one stage, put back by another."""

import dataclasses

import jax

from jprune import errors
from jprune.base import (
    Pruned,
    Records,
    Task,
    Variables,
)
from jprune.masks import apply_masks
from jprune.train.net import Net


@dataclasses.dataclass(frozen=True)
class Save:
    """Keeps a copy of the variables under a name, for later stages.

    Attributes:
        under: the name: "dense", "init", "teacher", "rewind".
        name: of the stage.
    """

    under: str
    name: str = "save"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, with one more copy in `saved`."""
        del task, key
        return pruned._replace(saved={**pruned.saved, self.under: pruned.variables}), []


@dataclasses.dataclass(frozen=True)
class Rewind:
    """Puts saved variables back, under today's masks.

    Attributes:
        to: name that `Save` used.
        name: of the stage.
    """

    to: str
    name: str = "rewind"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The saved variables, masked.

        Raises:
            ArgumentError: nothing was saved under this name.
        """
        del key
        masks = Net(task).weight_masks(pruned.masks)
        variables = saved(pruned, self.to, f"Rewind(to={self.to!r})")
        variables = variables if masks is None else apply_masks(variables, masks)
        return pruned._replace(variables=variables), []


def saved(pruned: Pruned, name: str, who: str) -> Variables:
    """Variables that an earlier stage saved.

    Args:
        pruned: the state of the run.
        name: that `Save` used.
        who: asks, for the message.

    Raises:
        ArgumentError: nothing was saved under this name.
    """
    if name not in pruned.saved:
        raise errors.ArgumentError(
            f"{who}: saved are {', '.join(pruned.saved) or 'none'}. Put Save({name!r}) before it "
            "in the recipe."
        )
    return pruned.saved[name]

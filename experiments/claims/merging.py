"""E5's layer: neurons removed or merged, twins, and what is measured of the net."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.claims.claim import Case
from experiments.rows import Row
from jprune.base import Groups, Pruned, Task, Variables
from jprune.masks import apply_masks
from jprune.recipes import evaluate
from jprune.reconstruct import Merge, merges
from jprune.reconstruct.merge import matrix
from jprune.stages.merge import affines_of, sets_of
from jprune.train.net import Net as TaskNet
from jprune.units import expand, map_units


class Layer(NamedTuple):
    """The layer whose neurons go."""

    groups: Groups
    name: str
    dense: Variables

    @property
    def size(self) -> int:
        """Its neurons."""
        return self.groups.sizes[self.name]

    def without(self, variables: Variables, gone: Sequence[int] | np.ndarray) -> Pruned:
        """The net without some neurons."""
        masks = {self.name: ~np.isin(np.arange(self.size), gone)}
        return Pruned(apply_masks(variables, expand(self.groups, masks)), masks)

    def merged(self, variables: Variables, steps: Sequence[Merge]) -> Pruned:
        """The net after some merges."""
        matrices = {self.name: matrix(self.size, steps)}
        mapped = map_units(self.groups, variables, matrices, ("in",))
        return self.without(mapped, [step.gone for step in steps])

    def twins(self) -> tuple[Variables, set[int]]:
        """The dense net with one half of the neurons copied from the other, and the copies."""
        half, other = np.arange(self.size // 2), np.arange(self.size // 2) + self.size // 2
        copies = np.eye(self.size)
        copies[other] = copies[half]
        halves = np.zeros((self.size, self.size))
        halves[half, half], halves[other, half] = 0.4, 0.6
        variables = map_units(self.groups, self.dense, {self.name: copies}, ("kernel", "shift"))
        return map_units(self.groups, variables, {self.name: halves}, ("in",)), {*other.tolist()}

    def steps(self, task: Task, variables: Variables) -> list[Merge]:
        """All merges of the layer, in their order."""
        sets = sets_of(self.groups, variables, [self.name], affines_of(task, variables))
        return list(merges(*sets[self.name]))


def measured(case: Case[Any], pruned: Pruned, before: Variables, group: str) -> Row:
    """Accuracy, what is left, and how far it is from the net before."""
    task, cost, masks = case.task, TaskNet(case.task).cost, pruned.masks or {}
    batch = next(task.data.batches("test", 500))
    a, b = task.fn(before, batch["image"]), task.fn(pruned.variables, batch["image"])
    metrics = evaluate(task, pruned.variables, "test")
    return {
        "kept": float(np.mean(masks.get(group, 1.0))),
        "params": float(cost(masks).params) / float(cost({}).params),
        "accuracy": metrics["accuracy"],
        "loss": metrics["loss"],
        "drift": float(jnp.abs(a - b).max() / jnp.abs(a).max()),
    }

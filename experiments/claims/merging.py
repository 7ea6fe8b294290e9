"""E5's layer: neurons removed or merged, twins, and what is measured of the net."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.claim import Case
from experiments.claims.statements import Value, of_seed
from experiments.rows import Row
from jprune.base import Budget, Groups, Pruned, Task, Variables
from jprune.masks import apply_masks
from jprune.recipes import evaluate
from jprune.reconstruct import Merge, merges
from jprune.reconstruct.merge import matrix
from jprune.stages.merge import MergeUnits, affines_of, sets_of
from jprune.train.net import Net as TaskNet
from jprune.units import expand, map_units


class Layer(NamedTuple):
    """The layer whose neurons go."""

    task: Task
    groups: Groups
    name: str
    dense: Variables

    @classmethod
    def of(cls, case: Case[Any], dense: Variables) -> "Layer":
        """Fc1 of a net; where it is only tried out, its last layer that can be pruned."""
        groups = TaskNet(case.task).groups
        name = groups.names[-1] if case.smoke else "params/fc1/kernel"
        return cls(case.task, groups, name, dense)

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

    def steps(self, variables: Variables) -> list[Merge]:
        """All merges of the layer, in their order."""
        affines = affines_of(self.task, variables)
        return list(merges(*sets_of(self.groups, variables, [self.name], affines)[self.name]))

    def drawn(self, key: jax.Array) -> np.ndarray:
        """The neurons in a random order."""
        return np.asarray(jax.random.permutation(key, self.size))

    def by_the_rule(self, case: Case[Any]) -> Pruned:
        """The net, merged until the paper's rule stops it."""
        whole = {name: size for name, size in self.groups.sizes.items() if name != self.name}
        # All of this layer's neurons but one may go, and none of the others.
        least = (1 + sum(whole.values())) / sum(self.groups.sizes.values())
        rule = MergeUnits(Budget(density=least, floors=whole), "global_topk", stop="cutoff")
        return rule(Pruned(self.dense, None), self.task, case.key)[0]

    def twins(self) -> tuple[Variables, set[int]]:
        """The dense net with one half of the neurons copied from the other, and the copies."""
        half, other = np.arange(self.size // 2), np.arange(self.size // 2) + self.size // 2
        copies = np.eye(self.size)
        copies[other] = copies[half]
        halves = np.zeros((self.size, self.size))
        halves[half, half], halves[other, half] = 0.4, 0.6
        variables = map_units(self.groups, self.dense, {self.name: copies}, ("kernel", "shift"))
        return map_units(self.groups, variables, {self.name: halves}, ("in",)), {*other.tolist()}

    def twins_merged(self) -> tuple[Variables, Pruned, int]:
        """The net of twins, what merging as often makes of it, and how often it took twins."""
        variables, copies = self.twins()
        first = self.steps(variables)[: len(copies)]
        pairs = {frozenset((step.into, step.gone)) for step in first}
        right = {frozenset((copy, copy - self.size // 2)) for copy in copies}
        return variables, self.merged(variables, first), len(pairs & right)


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


def removable(points: float, **where: Any) -> Value:
    """Percentage of the parameters that merging removes for at most so many points."""

    def most(rows: list[Row]) -> float | None:
        dense = [row["accuracy"] for row in rows if row["arm"] == "dense"]
        merged = [row for row in rows if row["arm"] == "merge"]
        good = (row for row in merged if row["accuracy"] >= dense[0] - points / 100)
        return max((100 * (1 - row["params"]) for row in good), default=0.0) if dense else None

    return of_seed(most, **where)

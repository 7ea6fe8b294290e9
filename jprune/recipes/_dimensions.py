"""Nets that are smaller in one of three dimensions: depth, width, resolution."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jprune import allocate, criteria, errors
from jprune.base import Budget, Pruned, Records, Task, run_criterion
from jprune.cost.model import Measuring
from jprune.masks import apply_masks
from jprune.recipes._nets import cost_of, groups_of, standing, unit_masks, weight_masks
from jprune.recipes._resolution import Size, check_size, size_of
from jprune.recipes._training import stream
from jprune.recipes.stages import record, saved
from jprune.units import to_units

DIMENSIONS: tuple[str, ...] = ("depth", "width", "resolution")


def where(task: Task, pruned: Pruned) -> tuple[float, float, float]:
    """Depth, width and resolution of a net, as fractions of the dense one.

    Units inside a removed block are no part of the width: the net has none of them, kept or not.
    """
    masks, groups = unit_masks(task, pruned), groups_of(task)
    blocks = [float(np.all(masks.get(branch.name, True))) for branch in groups.branches]
    there = [np.asarray(masks[name], float) for name in standing(groups, masks)]
    full = task.data.shape[0]
    side = full if pruned.resolution is None else size_of(pruned.resolution)[0]
    width = np.concatenate([*there, [] if there else [1.0]]).mean()
    return float(np.mean(blocks or [1.0])), float(width), side / full


def sizes_of(task: Task, multiple: int) -> list[Size]:
    """Sizes that images can have, rising, their sides in the proportion of the full ones."""
    height, width = task.data.shape[:2]
    sides = [*range(multiple, height, multiple), height]
    return [(side, max(1, round(width * side / height))) for side in sides]


def resolution_of(task: Task, size: Size) -> np.ndarray | None:
    """As `Pruned` has it: None for full images."""
    return None if size == tuple(task.data.shape[:2]) else np.array(size, np.int32)


def fewer_blocks(task: Task, pruned: Pruned, count: int, key: jax.Array) -> dict[str, Any]:
    """Masks of the branches, of which `count` stay; those go whose removal costs least loss.

    One goes at a time; losses are those of a few training batches.
    """
    groups, masks = groups_of(task), unit_masks(task, pruned)
    batch_size = min(128, task.data.sizes["train"])
    batches = [*itertools.islice(stream(task.data, batch_size, key), 4)]
    mean = _mean_loss(task.fn, task.loss)

    def loss(gone: dict[str, Any]) -> float:
        variables = apply_masks(pruned.variables, weight_masks(task, {**masks, **gone}))
        return sum(float(mean(variables, batch)) for batch in batches)

    names = [branch.name for branch in groups.branches]
    found = {name: np.asarray(masks.get(name, np.ones(1, bool))) for name in names}
    while sum(mask.all() for mask in found.values()) > count:
        left = [name for name in names if found[name].all()]
        cheapest = min(left, key=lambda name: loss({**found, name: np.zeros(1, bool)}))
        found[cheapest] = np.zeros(1, bool)
    return found


@functools.lru_cache(maxsize=8)  # compiled once for all counts of blocks
def _mean_loss(fn: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., jax.Array]:
    return jax.jit(lambda variables, batch: loss(fn(variables, batch["image"]), batch).mean())


def fewer_units(
    task: Task, pruned: Pruned, budget: Budget, blocks: dict[str, Any]
) -> dict[str, Any]:
    """Masks of the groups, the same fraction of each by the L1 norm, under some branches.

    Groups inside removed blocks stay as they are: they cost nothing, and nothing is known of them.

    Raises:
        ArgumentError: no group stands outside the removed blocks.
        BudgetError: no widths meet the budget.
    """
    groups, cost = groups_of(task), cost_of(task)
    scores = to_units(groups, run_criterion(criteria.magnitude(1), pruned.variables, ()))
    alive = {**unit_masks(task, pruned), **blocks}
    scores = {
        name: np.where(np.asarray(alive[name]), np.asarray(scores[name]), -np.inf)
        for name in standing(groups, alive)
    }
    model = Measuring(lambda given: cost({**blocks, **given}), "macs")
    chosen: Any = allocate.uniform(scores, budget, model)
    return {**alive, **{name: np.asarray(mask, bool) for name, mask in chosen.items()}}


@dataclasses.dataclass(frozen=True)
class Narrow:
    """One dimension of the net made smaller, the others as they are.

    Attributes:
        axis: which.
        level: fraction of it that is left.
        budget: whose `multiple_of`, `min_units` and floors hold for widths.
        multiple: of the sides of images.
        anew: begin with the dense net.
        name: of the record.
    """

    axis: str
    level: float
    budget: Budget
    multiple: int
    anew: bool = False
    name: str = "narrow"

    def check(self, task: Task) -> None:
        """Refuses a net that has no such dimension.

        Raises:
            ArgumentError: a net without a block to remove, without a unit, or images that it cannot
                take.
        """
        groups = groups_of(task)
        rest = ":".join(name for name in DIMENSIONS if name != self.axis)
        instead = f"Write --set dimensions={rest}, or fewer of them."
        if self.axis == "resolution":
            check_size(task, self.size(task), instead)
        elif not (groups.branches if self.axis == "depth" else groups.sizes):
            what = {"depth": "residual block", "width": "unit"}[self.axis]
            raise errors.ArgumentError(f"{task.name} has no {what} that can go. {instead}")

    def size(self, task: Task) -> Size:
        """The size nearest to the level."""
        wanted = self.level * task.data.shape[0]
        return min(sizes_of(task, self.multiple), key=lambda size: abs(size[0] - wanted))

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The smaller net, and a record of its depth, width and resolution."""
        self.check(task)
        if self.anew:
            pruned = Pruned(saved(pruned, "dense", "Narrow"), None, pruned.extra, pruned.saved)
        if self.axis == "resolution":
            pruned = pruned._replace(resolution=resolution_of(task, self.size(task)))
        else:
            pruned = pruned._replace(masks=self._masks(pruned, task, key))
            masks = weight_masks(task, pruned.masks)
            pruned = pruned._replace(variables=apply_masks(pruned.variables, masks))
        return pruned, [record(self.name, dict(zip(DIMENSIONS, where(task, pruned))))]

    def _masks(self, pruned: Pruned, task: Task, key: jax.Array) -> dict[str, Any]:
        if self.axis == "depth":
            count = round(self.level * len(groups_of(task).branches))
            return unit_masks(task, pruned) | fewer_blocks(task, pruned, count, key)
        density = {**dict.fromkeys(Budget.KINDS), "density": self.level}
        return fewer_units(task, pruned, dataclasses.replace(self.budget, **density), {})

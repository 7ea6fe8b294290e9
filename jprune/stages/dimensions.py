"""Nets that are smaller in one of three dimensions: depth, width, resolution."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jprune import allocate, criteria, errors
from jprune.base import Budget, Pruned, Records, Task, run_criterion
from jprune.cost.model import Measuring
from jprune.masks import apply_masks
from jprune.search import fit, optimum
from jprune.stages.frame import record, saved
from jprune.train.evaluate import mean_quality
from jprune.train.net import Net
from jprune.train.resolution import Size, at_resolution, check_size, size_of
from jprune.train.step import stream
from jprune.units import standing, to_units

DIMENSIONS: tuple[str, ...] = ("depth", "width", "resolution")


def where(task: Task, pruned: Pruned) -> tuple[float, float, float]:
    """Depth, width and resolution of a net, as fractions of the dense one.

    Units inside a removed block are no part of the width: the net has none of them, kept or not.
    """
    masks, groups = Net(task).unit_masks(pruned), Net(task).groups
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
    groups, masks = Net(task).groups, Net(task).unit_masks(pruned)
    batch_size = min(128, task.data.sizes["train"])
    batches = [*itertools.islice(stream(task.data, batch_size, key), 4)]
    mean = _mean_loss(task.fn, task.loss)

    def loss(gone: dict[str, Any]) -> float:
        variables = apply_masks(pruned.variables, Net(task).weight_masks({**masks, **gone}))
        return sum(float(mean(variables, batch)) for batch in batches)

    names = [branch.name for branch in groups.branches]
    blocks = {name: np.asarray(masks.get(name, np.ones(1, bool))) for name in names}
    while sum(mask.all() for mask in blocks.values()) > count:
        standing_blocks = [name for name in names if blocks[name].all()]
        cheapest = min(standing_blocks, key=lambda name: loss({**blocks, name: np.zeros(1, bool)}))
        blocks[cheapest] = np.zeros(1, bool)
    return blocks


@functools.lru_cache(maxsize=8)  # compiled once for all counts of blocks
def _mean_loss(fn: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., jax.Array]:
    return jax.jit(lambda variables, batch: loss(fn(variables, batch["image"]), batch).mean())


def fewer_units(
    task: Task, pruned: Pruned, budget: Budget, blocks: dict[str, Any]
) -> dict[str, Any]:
    """Masks of the groups, the same fraction of each by the L1 norm, under some branches.

    Groups inside removed blocks stay as they are: they cost nothing.

    Raises:
        ArgumentError: no group stands outside the removed blocks.
        BudgetError: no widths meet the budget.
    """
    groups, cost = Net(task).groups, Net(task).cost
    scores = to_units(groups, run_criterion(criteria.magnitude(1), pruned.variables, ()))
    alive = {**Net(task).unit_masks(pruned), **blocks}
    scores = {
        name: np.where(np.asarray(alive[name]), np.asarray(scores[name]), -np.inf)
        for name in standing(groups, alive)
    }
    model = Measuring(lambda widths: cost({**blocks, **widths}), "macs")
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
        groups = Net(task).groups
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
            masks = Net(task).weight_masks(pruned.masks)
            pruned = pruned._replace(variables=apply_masks(pruned.variables, masks))
        return pruned, [record(self.name, dict(zip(DIMENSIONS, where(task, pruned))))]

    def _masks(self, pruned: Pruned, task: Task, key: jax.Array) -> dict[str, Any]:
        if self.axis == "depth":
            count = round(self.level * len(Net(task).groups.branches))
            return Net(task).unit_masks(pruned) | fewer_blocks(task, pruned, count, key)
        density = {**dict.fromkeys(Budget.KINDS), "density": self.level}
        return fewer_units(task, pruned, dataclasses.replace(self.budget, **density), {})


POWERS = (1, 2, 2)
"""Of depth, width and resolution in the cost of a convolutional net."""

GONE = np.zeros(1, bool)
"""The mask of a block that is removed."""


@dataclasses.dataclass(frozen=True)
class Observe:
    """Writes down how good the net is, at its depth, width and resolution.

    `extra` is [n, 4] then: these three, and the accuracy on the validation split (of a task without
    accuracy, minus the loss). A net whose dimensions were rounded to those of an earlier one is
    left out.

    Attributes:
        name: of the record.
    """

    name: str = "observe"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net with one more point in `extra`."""
        del key
        points = pruned.extra
        if points is None:
            points = seen_of(task, Pruned(pruned.saved["dense"], None))[None]
        point = seen_of(task, pruned)
        if not (np.abs(np.asarray(points)[:, :3] - point[:3]).max(axis=1) < 1e-6).any():
            points = np.concatenate([np.asarray(points), point[None]])
        metrics = dict(zip((*DIMENSIONS, "accuracy"), point.tolist()))
        return pruned._replace(extra=np.asarray(points)), [record(self.name, metrics)]


def seen_of(task: Task, pruned: Pruned) -> np.ndarray:
    """[4]: depth, width, resolution, `jprune.base.quality` on the validation split."""
    smaller = at_resolution(task, pruned)
    return np.array([*where(task, pruned), mean_quality(smaller, pruned.variables, "validation")])


@dataclasses.dataclass(frozen=True)
class Optimum:
    """Fits the points in `extra`, and prunes the dense net to the optimum under the budget.

    The optimum is that of the cost depth * width^2 * resolution^2. Blocks and sides of images are
    whole numbers: of the neighbours on both sides, each with the width that the budget then allows
    by the net's own cost, the one is taken that the polynomial says most of. It says nothing of
    nets outside the box of its points: where no neighbour is inside and under the budget, all
    numbers of blocks and sides in the box are looked at. What no point has less of stays whole.

    Attributes:
        budget: in MACs.
        multiple: of the sides of images.
        degree: of the polynomial.
        rank: of the polynomial.
        lowest: depth, width and resolution down to which there will be points, for `check`.
        name: of the record.
    """

    budget: Budget
    multiple: int = 4
    degree: int = 3
    rank: int = 1
    lowest: tuple[float, float, float] = (0.5, 0.5, 0.5)
    name: str = "optimum"

    def check(self, task: Task) -> None:
        """Refuses a budget that not even the smallest net of the box meets.

        Raises:
            BudgetError: it costs more, by its own cost or by that of which the optimum is sought.
        """
        smallest = self.smallest(task)
        cost = _cost(task, smallest)
        corner = where(task, smallest)
        # The cost that the optimum is sought under: depth * width^2 * resolution^2.
        least = max(cost, math.prod(part**power for part, power in zip(corner, POWERS)))
        if least > float(self.budget.value) * (1 + 1e-9):
            named = ", ".join(f"{name} {part:.3g}" for name, part in zip(DIMENSIONS, corner))
            raise errors.BudgetError(
                f"three_d knows no net under Budget(macs={self.budget.value}): the smallest "
                f"({named}) costs {least:.4f} of the dense one. Ask for "
                f"{math.ceil(least * 1000) / 1000:.3f} or more, write a smaller --set lowest=..., "
                "or more --set dimensions=..."
            )

    def smallest(self, task: Task) -> Pruned:
        """The lower corner of the box, without variables: the most expensive blocks are removed."""
        groups, (depth, width, resolution) = Net(task).groups, self.lowest
        size = Narrow("resolution", resolution, self.budget, self.multiple).size(task)
        masks = Net(task).unit_masks(Pruned(None, None))
        if width < 1 and groups.sizes:
            density = {**dict.fromkeys(Budget.KINDS), "density": width}
            blank = {name: np.zeros(count) for name, count in groups.sizes.items()}
            masks = dict(allocate.uniform(blank, dataclasses.replace(self.budget, **density)))
        net = Pruned(None, masks, resolution=resolution_of(task, size))
        without = lambda *names: net._replace(masks={**masks, **dict.fromkeys(names, GONE)})
        names = [branch.name for branch in groups.branches]
        names.sort(key=lambda name: _cost(task, without(name)))
        return without(*names[: len(names) - round(depth * len(names))])

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The pruned net; the record has the points, the optimum, and what is predicted there.

        Raises:
            BudgetError: nothing that was sampled is under the budget.
        """
        points = np.asarray(pruned.extra)
        # Accuracies as fractions of the dense net's: the scale of the task is no part of the model.
        model = fit(points[:, :3], points[:, 3] / points[0, 3], self.degree, self.rank)
        lowest = points[:, :3].min(axis=0)
        best = optimum(model, POWERS, float(self.budget.value), lowest)
        dense = Pruned(pruned.saved["dense"], None, None, pruned.saved)
        sizes, blocks = self.box(task, lowest)
        near = beside(blocks, best[0] * blocks[-1])
        sides = beside([size[0] for size in sizes], best[2] * task.data.shape[0])
        closest = [size for size in sizes if size[0] in sides]
        nets = [*self.inside(dense, task, lowest, closest, near, key)]
        nets = nets or [*self.inside(dense, task, lowest, sizes, blocks, key)]
        if not nets:
            raise errors.BudgetError(
                f"no net from depth, width, resolution {np.round(lowest, 3).tolist()} upwards is "
                f"under Budget(macs={self.budget.value}). Ask for more, write a smaller --set "
                "lowest=..., or more --set dimensions=..."
            )
        predicted = [points[0, 3] * float(model(np.array([where(task, n)]))[0]) for n in nets]
        chosen = nets[int(np.argmax(predicted))]
        metrics = dict(zip(DIMENSIONS, where(task, chosen))) | {
            "predicted": max(predicted),
            "optimum": best.tolist(),
            "points": points.tolist(),
            "macs": _cost(task, chosen),
        }
        return chosen, [record(self.name, metrics)]

    def box(self, task: Task, lowest: np.ndarray) -> tuple[list[Size], list[int]]:
        """Sizes of images and numbers of blocks that are no smaller than every point's; rising."""
        height, count = task.data.shape[0], len(Net(task).groups.branches)
        sizes = sizes_of(task, self.multiple)
        return (
            [size for size in sizes if size[0] >= lowest[2] * height - 1e-6],
            [number for number in range(count + 1) if number >= lowest[0] * count - 1e-6],
        )

    def inside(
        self,
        dense: Pruned,
        task: Task,
        lowest: np.ndarray,
        sizes: list[Size],
        blocks: list[int],
        key: jax.Array,
    ) -> Iterator[Pruned]:
        """The nets of these sizes and numbers that are in the box and under the budget."""
        for size in sizes:
            net, gone = dense._replace(resolution=resolution_of(task, size)), {}
            smaller = at_resolution(task, net)
            for number in reversed(blocks):
                gone = fewer_blocks(smaller, net._replace(masks=gone), number, key)
                masks = {**Net(task).unit_masks(net), **gone}
                allowed_macs = float(self.budget.value) / _cost(task, net._replace(masks=masks))
                if lowest[1] < 1 and standing(Net(task).groups, masks):
                    try:
                        allowed = dataclasses.replace(self.budget, macs=min(1.0, allowed_macs))
                        masks = fewer_units(smaller, net, allowed, gone)
                    except errors.BudgetError:
                        continue
                elif allowed_macs < 1 - 1e-9:
                    continue
                smallest = net._replace(masks=masks)
                if (np.array(where(task, smallest)) >= lowest - 1e-6).all():
                    variables = apply_masks(net.variables, Net(task).weight_masks(masks))
                    yield smallest._replace(variables=variables)


def beside(options: list[int], wanted: float) -> list[int]:
    """The nearest of some rising numbers on both sides; one that is the same stands for both.

    Example:
        >>> [beside([4, 8, 12], wanted) for wanted in (8.0, 9.5)]
        [[8], [8, 12]]
    """
    below = [number for number in options if number <= wanted + 1e-6]
    above = [number for number in options if number >= wanted - 1e-6]
    return list(dict.fromkeys((*below[-1:], *above[:1])))


def _cost(task: Task, net: Pruned) -> float:
    """MACs of a net, as a fraction of the dense one's."""
    macs = Net(at_resolution(task, net)).cost(net.masks or {}).macs
    return float(macs) / float(Net(task).cost({}).macs)

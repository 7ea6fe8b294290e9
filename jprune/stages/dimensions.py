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
from jprune.masks import apply_masks
from jprune.search import fit, optimum
from jprune.stages.frame import record, saved
from jprune.train.evaluate import mean_quality
from jprune.train.net import Net
from jprune.train.step import stream
from jprune.train.task import Size, at_resolution, check_size, size_of
from jprune.units import standing, to_units

DIMENSIONS: tuple[str, ...] = ("depth", "width", "resolution")


def where(task: Task, pruned: Pruned) -> tuple[float, float, float]:
    """(depth, width, resolution) of a net, as fractions of the dense one's.

    Width is a mean over the units outside of removed blocks.
    """
    masks, groups = Net(task).unit_masks(pruned), Net(task).groups
    # depth d: the fraction of residual blocks that stand
    blocks = [float(np.all(masks.get(branch.name, True))) for branch in groups.branches]
    unit_masks = [np.asarray(masks[name], float) for name in standing(groups, masks)]
    full = task.data.shape[0]
    side = full if pruned.resolution is None else size_of(pruned.resolution)[0]
    # width w: the fraction of units kept; a net without units to prune is as wide as ever
    width = np.concatenate([*unit_masks, [] if unit_masks else [1.0]]).mean()
    # resolution r: the side of the images over the full one
    return float(np.mean(blocks or [1.0])), float(width), side / full


def sizes_of(task: Task, multiple: int) -> list[Size]:
    """Sizes that images can have, rising; all in the proportions of the full size."""
    height, width = task.data.shape[:2]
    sides = [*range(multiple, height, multiple), height]
    return [(side, max(1, round(width * side / height))) for side in sides]


def resolution_of(task: Task, size: Size) -> np.ndarray | None:
    """The size as `Pruned.resolution`: None for full images."""
    return None if size == tuple(task.data.shape[:2]) else np.array(size, np.int32)


def fewer_blocks(task: Task, pruned: Pruned, count: int, key: jax.Array) -> dict[str, Any]:
    """Masks of the branches: one at a time, the branch whose removal costs least loss is removed.

    `count` of them stay. Losses are means over a few training batches.
    """
    groups, masks = Net(task).groups, Net(task).unit_masks(pruned)
    names = [branch.name for branch in groups.branches]
    blocks = {name: np.asarray(masks.get(name, np.ones(1, bool))) for name in names}
    if sum(mask.all() for mask in blocks.values()) <= count:
        return blocks
    batch_size = min(128, task.data.sizes["train"])
    # The same batches for every trial, so that differences are those of the blocks.
    batches = [*itertools.islice(stream(task.data, batch_size, key), 4)]
    mean = _mean_loss(task.fn, task.loss)

    def loss(gone: dict[str, Any]) -> float:
        # Masked and not cut off: one compiled function measures all trials.
        variables = apply_masks(pruned.variables, Net(task).weight_masks({**masks, **gone}))
        return sum(float(mean(variables, batch)) for batch in batches)

    # Greedy: which block is cheap to lose depends on those that are gone already.
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
    """Masks of groups and branches: each group keeps the same fraction, by the L1 norm.

    Groups inside removed blocks stay as they are, since they cost nothing.

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
    # MACs with the removed blocks taken off: only then is the width the budget's.
    model = lambda widths: cost({**blocks, **widths})
    chosen: Any = allocate.uniform(scores, budget, model)
    return {**alive, **{name: np.asarray(mask, bool) for name, mask in chosen.items()}}


@dataclasses.dataclass(frozen=True)
class Narrow:
    """Makes the net smaller in one dimension.

    Attributes:
        axis: which.
        level: fraction of that dimension that is kept.
        budget: its `multiple_of`, `min_units` and floors hold for widths.
        multiple: sides of images are multiples of this.
        anew: begin again with the dense net.
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
        # For the message: the option without this dimension.
        rest = ":".join(name for name in DIMENSIONS if name != self.axis)
        instead = f"Write --set dimensions={rest}, or fewer of them."
        if self.axis == "resolution":
            check_size(task, self.size(task), instead)
        elif not (groups.branches if self.axis == "depth" else groups.sizes):
            what = {"depth": "residual block", "width": "unit"}[self.axis]
            raise errors.ArgumentError(f"{task.name} has no {what} that can go. {instead}")

    def size(self, task: Task) -> Size:
        """The size nearest to the level."""
        # r = side / full side
        wanted = self.level * task.data.shape[0]
        return min(sizes_of(task, self.multiple), key=lambda size: abs(size[0] - wanted))

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The smaller net, and a record of its depth, width and resolution."""
        self.check(task)
        # The points of every dimension begin with the dense net: the others are then whole.
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
            # d = blocks / all blocks
            count = round(self.level * len(Net(task).groups.branches))
            return Net(task).unit_masks(pruned) | fewer_blocks(task, pruned, count, key)
        # A budget holds one kind: the others become None.
        density = {**dict.fromkeys(Budget.KINDS), "density": self.level}
        return fewer_units(task, pruned, dataclasses.replace(self.budget, **density), {})


POWERS = (1, 2, 2)
"""Exponents of depth, width and resolution in the cost of a convolutional net: C = d w^2 r^2."""

GONE = np.zeros(1, bool)
"""The mask of a block that is removed."""


def is_among(points: Any, dimensions: Any) -> bool:
    """Whether a net of these depth, width and resolution is among the points [n, 4]."""
    away = np.abs(np.asarray(points)[:, :3] - np.asarray(dimensions)).max(axis=1)
    return bool((away < 1e-6).any())


@dataclasses.dataclass(frozen=True)
class Observe:
    """Measures the net, and adds a point to `extra`.

    `extra` is [n, 4]: depth, width, resolution, and the accuracy on the validation split (of a task
    without accuracy, minus the loss). A net whose dimensions were rounded to those of an earlier
    point is left out. The first point is the dense net: this one, or the one that was saved.

    Attributes:
        name: of the record.
    """

    name: str = "observe"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net with one more point in `extra`."""
        del key
        points = pruned.extra
        point = seen_of(task, pruned)
        if points is None:
            # The first point is the dense net, (1, 1, 1): the fit is a ratio to its accuracy.
            is_dense = min(where(task, pruned)) == 1
            points = (point if is_dense else seen_of(task, Pruned(pruned.saved["dense"], None)))[
                None
            ]
        # Twice the same point would only weigh it twice.
        if not is_among(points, point[:3]):
            points = np.concatenate([np.asarray(points), point[None]])
        metrics = dict(zip((*DIMENSIONS, "accuracy"), point.tolist()))
        return pruned._replace(extra=np.asarray(points)), [record(self.name, metrics)]


def seen_of(task: Task, pruned: Pruned) -> np.ndarray:
    """[4]: depth, width, resolution, `jprune.base.quality` on the validation split."""
    # On images of the net's own resolution, as it will be used.
    smaller = at_resolution(task, pruned)
    return np.array([*where(task, pruned), mean_quality(smaller, pruned.variables, "validation")])


@dataclasses.dataclass(frozen=True)
class Optimum:
    """Fits the points in `extra`, and prunes the dense net to the optimum under the budget.

    The optimum is sought under the cost depth * width^2 * resolution^2. Blocks and sides of images
    are whole numbers, so the candidates are the neighbours of the optimum on both sides, each with
    the width that the budget then allows by the net's own cost; the one with the highest predicted
    accuracy is taken. The polynomial is not trusted outside the box of its points: if no neighbour
    is inside and under the budget, all numbers of blocks and sides in the box are tried. A
    dimension in which no point is smaller stays whole.

    Attributes:
        budget: in MACs.
        multiple: sides of images are multiples of this.
        degree: of the polynomial.
        rank: of the polynomial.
        lowest: the smallest depth, width and resolution that will be sampled, for `check`.
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
            BudgetError: it costs more, by the net's own cost or by depth * width^2 * resolution^2.
        """
        smallest = self.smallest(task)
        cost = _cost(task, smallest)
        corner = where(task, smallest)
        # The cost that the optimum is sought under: depth * width^2 * resolution^2.
        # d w^2 r^2
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
        """The lower corner of the box, without variables; its most expensive blocks are removed."""
        groups, (depth, width, resolution) = Net(task).groups, self.lowest
        size = Narrow("resolution", resolution, self.budget, self.multiple).size(task)
        masks = Net(task).unit_masks(Pruned(None, None))
        if width < 1 and groups.sizes:
            density = {**dict.fromkeys(Budget.KINDS), "density": width}
            # Only the widths matter here, so any scores do.
            blank = {name: np.zeros(count) for name, count in groups.sizes.items()}
            masks = dict(allocate.uniform(blank, dataclasses.replace(self.budget, **density)))
        net = Pruned(None, masks, resolution=resolution_of(task, size))
        without = lambda *names: net._replace(masks={**masks, **dict.fromkeys(names, GONE)})
        names = [branch.name for branch in groups.branches]
        # Cheapest net first: the block whose removal saves most. Which blocks will go is not
        # decided yet, so the cheapest corner is what `check` may promise.
        names.sort(key=lambda name: _cost(task, without(name)))
        return without(*names[: len(names) - round(depth * len(names))])

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The pruned net; the record has the points, the optimum, and what is predicted there.

        Raises:
            BudgetError: no net in the box of the points is under the budget.
        """
        points = np.asarray(pruned.extra)
        # Accuracies as fractions of the dense net's: the scale of the task is no part of the model.
        # F(d, w, r) = A(d, w, r) / A(1, 1, 1)
        model = fit(points[:, :3], points[:, 3] / points[0, 3], self.degree, self.rank)
        lowest = points[:, :3].min(axis=0)
        dense = Pruned(pruned.saved["dense"], None, None, pruned.saved)
        sizes, blocks = self.box(task, lowest)
        corner, most = lowest.copy(), float(self.budget.value)
        if not corner[0]:
            # No block at all has no logarithm: half of one stands for it, or what T allows.
            corner[0] = min(0.5 / blocks[-1], most / math.prod(corner[1:] ** np.array(POWERS[1:])))
        # max F(d, w, r) subject to d w^2 r^2 = T
        best = optimum(model, POWERS, most, corner)
        # Whole numbers on both sides of the optimum, first.
        near = beside(blocks, best[0] * blocks[-1])
        sides = beside([size[0] for size in sizes], best[2] * task.data.shape[0])
        closest = [size for size in sizes if size[0] in sides]
        nets = [*self.inside(dense, task, lowest, closest, near, key)]
        # None of them fits: every number in the box.
        nets = nets or [*self.inside(dense, task, lowest, sizes, blocks, key)]
        if not nets:
            raise errors.BudgetError(
                f"no net from depth, width, resolution {np.round(lowest, 3).tolist()} upwards is "
                f"under Budget(macs={self.budget.value}). Ask for more, write a smaller --set "
                "lowest=..., or more --set dimensions=..."
            )
        # A(d, w, r) = A(1, 1, 1) F(d, w, r), at the dimensions that each net really has
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
        """Sizes of images and numbers of blocks in the box of the points; rising."""
        height, count = task.data.shape[0], len(Net(task).groups.branches)
        sizes = sizes_of(task, self.multiple)
        return (
            # 1e-6: a fraction times a length comes out a hair above a whole number.
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
        """Nets of these sizes and numbers of blocks that are in the box and under the budget."""
        for size in sizes:
            net, gone = dense._replace(resolution=resolution_of(task, size)), {}
            smaller = at_resolution(task, net)
            # From many blocks to few: what is removed for one number is removed for the next, too.
            for number in reversed(blocks):
                gone = fewer_blocks(smaller, net._replace(masks=gone), number, key)
                masks = {**Net(task).unit_masks(net), **gone}
                # What the budget leaves for the width: T / cost(d, 1, r).
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
                # Outside the box of the points the polynomial says nothing.
                if (np.array(where(task, smallest)) >= lowest - 1e-6).all():
                    variables = apply_masks(net.variables, Net(task).weight_masks(masks))
                    yield smallest._replace(variables=variables)


def beside(options: list[int], wanted: float) -> list[int]:
    """The nearest options at or below a number and at or above it; one where both are the same.

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

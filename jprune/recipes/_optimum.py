"""The stages of pruning in three dimensions: write points down, go to the optimum of their fit."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from jprune import errors
from jprune.base import Budget, Pruned, Records, Task
from jprune.masks import apply_masks
from jprune.recipes._dimensions import (
    DIMENSIONS,
    fewer_blocks,
    fewer_units,
    resolution_of,
    sizes_of,
    where,
)
from jprune.recipes._nets import cost_of, groups_of, weight_masks
from jprune.recipes._resolution import at_resolution
from jprune.recipes._training import evaluate
from jprune.recipes.stages import record
from jprune.search import fit, optimum

POWERS = (1, 2, 2)
"""Of depth, width and resolution in the cost of a convolutional net."""


@dataclasses.dataclass(frozen=True)
class Observe:
    """Writes down how good the net is, at its depth, width and resolution.

    `extra` is [n, 4] then: these three, and the accuracy on the validation split. A net whose
    dimensions were rounded to those of an earlier one is left out.

    Attributes:
        name: of the record.
    """

    name: str = "observe"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net with one more point in `extra`."""
        del key
        known = pruned.extra
        if known is None:
            known = seen_of(task, Pruned(pruned.saved["dense"], None))[None]
        point = seen_of(task, pruned)
        if not (np.abs(np.asarray(known)[:, :3] - point[:3]).max(axis=1) < 1e-6).any():
            known = np.concatenate([np.asarray(known), point[None]])
        metrics = dict(zip((*DIMENSIONS, "accuracy"), point.tolist()))
        return pruned._replace(extra=np.asarray(known)), [record(self.name, metrics)]


def seen_of(task: Task, pruned: Pruned) -> np.ndarray:
    """[4]: depth, width, resolution, accuracy on the validation split."""
    smaller = at_resolution(task, pruned)
    accuracy = evaluate(smaller, pruned.variables, "validation")["accuracy"]
    return np.array([*where(task, pruned), accuracy])


@dataclasses.dataclass(frozen=True)
class Optimum:
    """Fits the points in `extra`, and prunes the dense net to the optimum under the budget.

    The optimum is that of the cost depth * width^2 * resolution^2. Blocks and sides of images are
    whole numbers: of the neighbours on both sides, each with the width that the budget then allows
    by the net's own cost, the one is taken that the polynomial says most of.

    Attributes:
        budget: in MACs.
        multiple: of the sides of images.
        degree: of the polynomial.
        rank: of the polynomial.
        name: of the record.
    """

    budget: Budget
    multiple: int = 4
    degree: int = 3
    rank: int = 1
    name: str = "optimum"

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
        nets = list(self.neighbours(dense, task, best, lowest, key))
        if not nets:
            raise errors.BudgetError(
                f"no net near depth, width, resolution {np.round(best, 3).tolist()} is under "
                f"Budget(macs={self.budget.value}). Ask for more, or write a smaller --set lowest."
            )
        inside = lambda net: np.maximum(where(task, net), lowest)
        predicted = [points[0, 3] * float(model(inside(net)[None])[0]) for net in nets]
        chosen = nets[int(np.argmax(predicted))]
        metrics = dict(zip(DIMENSIONS, where(task, chosen))) | {
            "predicted": max(predicted),
            "optimum": best.tolist(),
            "points": points.tolist(),
            "macs": float(cost_of(at_resolution(task, chosen))(chosen.masks).macs)
            / float(cost_of(task)({}).macs),
        }
        return chosen, [record(self.name, metrics)]

    def neighbours(
        self, dense: Pruned, task: Task, best: np.ndarray, lowest: np.ndarray, key: jax.Array
    ) -> Iterator[Pruned]:
        """The nets around the optimum that are under the budget."""
        count = len(groups_of(task).branches)
        wanted = best[0] * count
        blocks = {int(np.floor(wanted + 1e-6)), int(np.ceil(wanted - 1e-6))}
        side = best[2] * task.data.shape[0]
        sizes = sizes_of(task, self.multiple) if lowest[2] < 1 else [task.data.shape[:2]]
        below = [size for size in sizes if size[0] <= side + 1e-6]
        above = [size for size in sizes if size[0] >= side - 1e-6]
        for size in {*below[-1:], *above[:1]}:
            for number in blocks:
                net = dense._replace(resolution=resolution_of(task, (int(size[0]), int(size[1]))))
                smaller = at_resolution(task, net)
                gone = fewer_blocks(smaller, net, number, key)
                left = float(cost_of(smaller)(gone).macs) / float(cost_of(task)({}).macs)
                allowed = min(1.0, float(self.budget.value) / left)
                try:
                    budget = dataclasses.replace(self.budget, macs=allowed)
                    masks = fewer_units(smaller, net, budget, gone)
                except errors.BudgetError:
                    continue
                variables = apply_masks(net.variables, weight_masks(task, masks))
                yield net._replace(variables=variables, masks=masks)

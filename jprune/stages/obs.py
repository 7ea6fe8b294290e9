"""Optimal brain surgery: weights are deleted one by one, and the others compensate."""

import dataclasses
import itertools

import jax
import numpy as np

from jprune.allocate import price_of
from jprune.base import Budget, Masks, Pruned, Records, Task
from jprune.curvature import Rows
from jprune.masks import intersect
from jprune.reconstruct.obs import obs as operate
from jprune.stages.frame import check_prunable, fractions, record
from jprune.train.net import Net
from jprune.train.step import stream


@dataclasses.dataclass(frozen=True)
class BrainSurgery:
    """Deletes single weights and moves the others, until the budget is met or `stop` is exceeded.

    Attributes:
        budget: what may be kept, of the dense net.
        block: largest block of the inverse Hessian; None: one block of all weights.
        alpha: damping: the inverse begins at I / alpha.
        curvature: "gauss_newton" or "fisher".
        samples: gradient rows per example, drawn; None: all of them, one for every output.
        stop: largest increase of the loss by one deletion, as a fraction of the loss; None: any.
        batches: calibration batches of the Hessian.
        batch_size: examples in one.
        name: of the record.
    """

    budget: Budget
    block: int | None = 128
    alpha: float = 1e-4
    curvature: str = "gauss_newton"
    samples: int | None = 1
    stop: float | None = None
    batches: int = 30
    batch_size: int = 64
    name: str = "prune"

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does."""
        check_prunable(task, self.budget, "weight")

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """New weights and masks, and a record of the fractions kept and the loss predicted."""
        alive = Net(task).prunable(pruned.masks, self.budget)
        before = Net(task).weight_masks(pruned.masks)
        # Rows are drawn apart from the order of the batches.
        data, draws = jax.random.split(key)
        size = min(self.batch_size, task.data.sizes["train"])
        rows = Rows(self.curvature, self.samples, None if self.samples is None else draws)
        done = operate(
            task.fn,
            task.loss,
            pruned.variables,
            itertools.islice(stream(task.data, size, data), self.batches),
            lambda masks: self.more(masks, alive, task),
            candidates=alive,
            masks=before,
            alpha=self.alpha,
            block=self.block,
            rows=rows,
            stop=self.stop,
            groups=Net(task).groups,
        )
        masks = done.masks if before is None else intersect(before, done.masks)
        predicted = {"predicted_increase": float(done.losses.sum()), "loss": done.loss}
        line = record(self.name, {**fractions(task, masks), **predicted})
        return pruned._replace(variables=done.variables, masks=masks), [line]

    def more(self, masks: Masks, alive: Masks, task: Task) -> int:
        """How many weights to delete before the budget is checked again."""
        sizes = [np.size(mask) for mask in jax.tree.leaves(masks)]
        alive_now = sum(int(np.sum(mask)) for mask in jax.tree.leaves(masks))
        if self.budget.kind == "density":
            # n - round((1 - d) n) weights stay
            goal = sum(sizes) - round((1 - float(self.budget.value)) * sum(sizes))
            return alive_now - goal
        price = price_of(alive, self.budget.of_weights(), Net(task).cost)(masks)
        excess = price - float(self.budget.value) - 1e-9
        # Prices differ from layer to layer: half of the way each time, and one by one at the end.
        return 0 if excess <= 0 else max(1, int(alive_now * excess / price / 2))

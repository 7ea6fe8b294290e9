"""Optimal brain surgery: weights go one by one, and the others make up for them."""

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
    """Deletes single weights and moves the others, until a budget is met or the stop rule says so.

    Attributes:
        budget: what may be kept, of the dense net.
        block: largest block of the inverse Hessian; None: all weights.
        alpha: damping.
        curvature: "gauss_newton" or "fisher".
        samples: rows an example; None: all.
        stop: largest increase of the loss by one deletion, over the loss; None: any.
        batches: that the Hessian is made of.
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
        """How many weights to delete before asking again."""
        sizes = [np.size(mask) for mask in jax.tree.leaves(masks)]
        alive_now = sum(int(np.sum(mask)) for mask in jax.tree.leaves(masks))
        if self.budget.kind == "density":
            goal = sum(sizes) - round((1 - float(self.budget.value)) * sum(sizes))
            return alive_now - goal
        price = price_of(alive, self.budget.of_weights(), Net(task).cost)(masks)
        excess = price - float(self.budget.value) - 1e-9
        # Prices differ from layer to layer: half of the way each time, and one by one at the end.
        return 0 if excess <= 0 else max(1, int(alive_now * excess / price / 2))

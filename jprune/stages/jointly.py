"""Weights of least cost are removed together, and the others adapted to it once."""

import dataclasses
import itertools

import jax

from jprune import errors
from jprune.allocate import ALLOCATORS
from jprune.base import Batch, Budget, Pruned, Records, Task
from jprune.curvature import fisher_rows
from jprune.masks import intersect
from jprune.reconstruct.jointly import Surgery
from jprune.stages.frame import check_prunable, fractions, record
from jprune.stages.rounds import evenly
from jprune.train.net import Net
from jprune.train.step import stream


@dataclasses.dataclass(frozen=True)
class PruneJointly:
    """Removes the single weights of least w^2 / (2 [F^-1]_qq) at once, F the empirical Fisher.

    Only kernels lose weights, and only they move. A large step is taken in several: each keeps the
    same fraction of what is left, and has gradients of its own, of the net as it is by then.

    Attributes:
        budget: what may be kept, of the dense net.
        block: largest block of the inverse, within a layer; None: one block of all kernels.
        damping: added to the diagonal of F.
        gradients: rows of F; fewer where the training split has not so many examples.
        average: examples whose mean gradient is a row.
        recomputations: in how many steps the weights go.
        update: "joint": the others go to their common minimum; "summed": the changes of all single
            removals are added up, as in the authors' code.
        allocator: "global_topk" (all layers compete), or "uniform".
        batch_size: examples whose gradients are taken in one call.
        name: of the record.
    """

    budget: Budget
    block: int | None = 128
    damping: float = 1e-5
    gradients: int = 256
    average: int = 1
    recomputations: int = 1
    update: str = "joint"
    allocator: str = "global_topk"
    batch_size: int = 64
    name: str = "prune"

    def __post_init__(self):
        counts = (self.gradients, self.average, self.recomputations, self.batch_size)
        counts = (*counts, 1 if self.block is None else self.block)
        if self.update not in ("joint", "summed") or self.allocator not in ALLOCATORS:
            raise errors.ArgumentError(
                f"update={self.update!r}, allocator={self.allocator!r}; write update='joint' or "
                f"'summed', and allocator one of {', '.join(ALLOCATORS)}."
            )
        if min(counts) < 1 or not self.damping > 0:
            raise errors.ArgumentError(
                f"gradients={self.gradients}, average={self.average}, recomputations="
                f"{self.recomputations}, batch_size={self.batch_size}, block={self.block}, "
                f"damping={self.damping}; numbers are 1 or more, damping is above 0."
            )

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does."""
        check_prunable(task, self.budget, "weight")

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """New weights and masks, and a record of the fractions kept and the rise predicted."""
        net, rise = Net(task), 0.0
        for number, goal in enumerate(evenly(self.budget, self.recomputations)):
            before = net.weight_masks(pruned.masks)
            batches = self.examples(task, jax.random.fold_in(key, number))
            rows = fisher_rows(task.fn, task.loss, pruned.variables, batches, self.average)
            surgery = Surgery(
                pruned.variables,
                net.prunable(pruned.masks, self.budget),
                rows,
                self.damping,
                self.block,
                net.groups.layers,
            )
            allocate = ALLOCATORS[self.allocator]
            keep = allocate(surgery.saliencies(), goal.of_weights(), net.cost)
            variables, cost = surgery.without(keep, self.update)
            masks = keep if before is None else intersect(before, keep)
            pruned, rise = pruned._replace(variables=variables, masks=masks), rise + cost
        metrics = {**fractions(task, pruned.masks), "predicted_increase": rise}
        return pruned, [record(self.name, metrics)]

    def examples(self, task: Task, key: jax.Array) -> list[Batch]:
        """The batches that rows are made of: whole rows each, but for the last."""
        examples = task.data.sizes["train"]
        wanted = min(self.gradients * self.average, examples)
        # A multiple of the average, so that no row is made of fewer examples than the others.
        size = max(self.batch_size // self.average, 1) * self.average
        size = min(size, wanted)
        return list(itertools.islice(stream(task.data, size, key), max(1, wanted // size)))

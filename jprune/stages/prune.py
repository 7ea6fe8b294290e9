"""The steps that recipes are made of.

A stage is a frozen dataclass of settings, called as `stage(pruned, task, key) -> (pruned, records)`
(`jprune.base.Stage`). Called so, it runs in memory and to the end. `Train` is long, so it can also
be taken apart: `learner(pruned, task, key)` hands out its steps, and `jprune.train` drives them
with checkpoints and a progress bar. That is all that a leaf needs to know of a stage, so recipes
import no leaf, and a new long stage is one with a `learner` of its own.

A stage has a `name`: of its records and of its folder in a run directory.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import numpy as np

from jprune import errors
from jprune.base import (
    Allocator,
    Budget,
    Criterion,
    Groups,
    Masks,
    Pruned,
    Records,
    Scores,
    Task,
    Variables,
    is_none,
    run_criterion,
)
from jprune.masks import apply_masks, density, intersect
from jprune.stages.evaluate import record
from jprune.train.net import Net, are_units, of_single_weights
from jprune.train.step import stream
from jprune.units import to_units

CriterionOf = Callable[[Task, Groups, jax.Array], Criterion]
"""`(task, groups, key) -> criterion`."""


@dataclasses.dataclass(frozen=True)
class Prune:
    """Scores units or single weights, and masks all but the best under a budget.

    What is masked already stays so. Units: the masked variables are zero at all places of a masked
    unit. Weights: those of kernels compete, biases and norms stay; `multiple_of` is not theirs.

    Attributes:
        criterion: makes the criterion for this net.
        allocator: scores to masks.
        budget: what may be kept, of the dense net; of weights, a density is that of all kernels.
            A floor of its whole size leaves a group whole.
        batches: calibration batches, from the training split, where the criterion looks at data.
        batch_size: examples in such a batch.
        pool: how scores of weights become scores of units, `within` and `across` of `to_units`.
        per: "unit" or "weight".
        name: of the record.
    """

    criterion: CriterionOf
    allocator: Allocator
    budget: Budget
    batches: int = 30
    batch_size: int = 64
    pool: str = "sum"
    per: str = "unit"
    name: str = "prune"

    def __post_init__(self):
        if self.per not in ("unit", "weight"):
            raise errors.ArgumentError(f"Prune(per={self.per!r}); write 'unit' or 'weight'.")

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Masks, masked variables, and a record of the fractions kept."""
        prune = self.of_units if self.per == "unit" else self.of_weights
        masks = prune(pruned, task, self.scores(pruned.variables, task, key))
        variables = apply_masks(pruned.variables, Net(task).weight_masks(masks))
        return pruned._replace(variables=variables, masks=masks), [
            record(self.name, fractions(task, masks))
        ]

    def of_units(self, pruned: Pruned, task: Task, scores: Scores) -> dict[str, np.ndarray]:
        """Masks {group: [units]} by scores of units or of weights."""
        if not are_units(Net(task).groups, scores):
            scores = to_units(Net(task).groups, scores, within=self.pool, across=self.pool)
        alive = Net(task).unit_masks(pruned)
        scores = {
            name: np.where(np.asarray(alive[name]), np.asarray(score, float), -np.inf)
            for name, score in scores.items()
        }
        chosen = self.allocator(scores, self.budget, Net(task).cost)
        return {name: np.asarray(mask, bool) for name, mask in {**alive, **chosen}.items()}

    def of_weights(self, pruned: Pruned, task: Task, scores: Scores) -> Masks:
        """Masks of kernels, a tree like the variables that is None elsewhere.

        Raises:
            ArgumentError: the criterion scores units.
        """
        if are_units(Net(task).groups, scores):
            raise errors.ArgumentError(
                "Prune(per='weight') came with a criterion that scores units; write per='unit'."
            )
        alive = Net(task).prunable(pruned.masks, self.budget)
        scores = jax.tree.map(
            lambda mask, score: None if mask is None else np.where(mask, score, -np.inf),
            alive,
            scores,
            is_leaf=is_none,
        )
        chosen = self.allocator(scores, of_single_weights(self.budget), Net(task).cost)
        before = Net(task).weight_masks(pruned.masks)
        return chosen if before is None else intersect(before, chosen)

    def scores(self, variables: Variables, task: Task, key: jax.Array) -> Scores:
        """What the criterion says: of units (groups it does not see left out) or of weights."""
        criterion = self.criterion(task, Net(task).groups, key)
        batch_size = min(self.batch_size, task.data.sizes["train"])
        batches = stream(task.data, batch_size, key) if criterion.needs_data else iter(())
        return run_criterion(criterion, variables, itertools.islice(batches, self.batches))


def fractions(task: Task, masks: Masks) -> dict[str, float]:
    """What masks keep of the dense net: `density` (of what is masked), `params`, `macs`."""
    kept, dense = Net(task).cost(masks), Net(task).cost({})
    return {
        "density": density(masks),
        "params": float(kept.params) / float(dense.params),
        "macs": float(kept.macs) / float(dense.macs),
    }

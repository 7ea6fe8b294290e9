"""Pruning by scores: units or weights are scored, and all but the best are masked.

A criterion may need the net's groups, so the stage makes it when it runs, by a `CriterionOf` such
as `l1_of`.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

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
from jprune.criteria.distance import distance
from jprune.criteria.magnitude import magnitude
from jprune.criteria.obd import obd
from jprune.criteria.random import random
from jprune.criteria.taylor import taylor
from jprune.curvature import Estimator
from jprune.masks import apply_masks, intersect
from jprune.stages.frame import check_prunable, fractions, record
from jprune.train.net import Net
from jprune.train.step import stream
from jprune.units import to_units

CriterionOf = Callable[[Task, Groups, jax.Array], Criterion]
"""`(task, groups, key) -> criterion`."""


@dataclasses.dataclass(frozen=True)
class Prune:
    """Scores units or single weights, and masks all but the best under a budget.

    What is masked already stays so. Units: the masked variables are zero at all places of a masked
    unit. Weights: those of kernels compete, biases and norms stay; `multiple_of` is ignored.

    Attributes:
        criterion: makes the criterion for this net.
        allocator: scores to masks.
        budget: what may be kept, of the dense net; of weights, a density is that of all kernels.
            A floor of its whole size leaves a group whole.
        batches: calibration batches, from the training split, where the criterion looks at data.
        batch_size: examples in such a batch.
        pool: how scores of weights become scores of units, `within` and `across` of `to_units`.
        per: "unit" or "weight".
        final: the budget of the last round, where units go in rounds: what it would keep by the
            scores of this round stays, so that the last round finds widths that fill it up.
        name: of the record.
    """

    criterion: CriterionOf
    allocator: Allocator
    budget: Budget
    batches: int = 30
    batch_size: int = 64
    pool: str = "sum"
    per: str = "unit"
    final: Budget | None = None
    name: str = "prune"

    def __post_init__(self):
        if self.per not in ("unit", "weight"):
            raise errors.ArgumentError(f"Prune(per={self.per!r}); write 'unit' or 'weight'.")

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does, and what making the criterion does."""
        check_prunable(task, self.budget, self.per)
        self.criterion(task, Net(task).groups, jax.random.key(0))

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
        if not Net(task).are_units(scores):
            # Over all places of a unit: coupled producers have one score.
            scores = to_units(Net(task).groups, scores, within=self.pool, across=self.pool)
        alive = Net(task).unit_masks(pruned)
        scores = {
            name: np.where(np.asarray(alive[name]), np.asarray(score, float), -np.inf)
            for name, score in scores.items()
        }
        if self.final not in (None, self.budget):
            # What is gone cannot come back: of widths in steps of 8, early rounds could leave only
            # some of which no choice comes near the last budget.
            wanted = self.allocator(scores, self.final, Net(task).cost)
            scores = {n: np.where(np.asarray(wanted[n]), np.inf, s) for n, s in scores.items()}
        chosen = self.allocator(scores, self.budget, Net(task).cost)
        # Groups that the criterion does not score stay as they are.
        return {name: np.asarray(mask, bool) for name, mask in {**alive, **chosen}.items()}

    def of_weights(self, pruned: Pruned, task: Task, scores: Scores) -> Masks:
        """Masks of kernels, a tree like the variables that is None elsewhere.

        Raises:
            ArgumentError: the criterion scores units.
        """
        if Net(task).are_units(scores):
            raise errors.ArgumentError(
                "Prune(per='weight') came with a criterion that scores units; write per='unit'."
            )
        alive = Net(task).prunable(pruned.masks, self.budget)
        # -inf: gone already. It may not come back, and it counts as pruned in the budget.
        scores = jax.tree.map(
            lambda mask, score: None if mask is None else np.where(mask, score, -np.inf),
            alive,
            scores,
            is_leaf=is_none,
        )
        chosen = self.allocator(scores, self.budget.of_weights(), Net(task).cost)
        before = Net(task).weight_masks(pruned.masks)
        return chosen if before is None else intersect(before, chosen)

    def scores(self, variables: Variables, task: Task, key: jax.Array) -> Scores:
        """The criterion's scores, of weights or of units (of those groups that it scores)."""
        criterion = self.criterion(task, Net(task).groups, key)
        batch_size = min(self.batch_size, task.data.sizes["train"])
        # Calibration data are training data: validation stays unseen.
        batches = stream(task.data, batch_size, key) if criterion.needs_data else iter(())
        return run_criterion(criterion, variables, itertools.islice(batches, self.batches))


def l1_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """The L1 norm of a unit's kernels, or the absolute value of a weight.

    References:
        Li, Kadav, Durdanovic, Samet, Graf, Pruning filters for efficient ConvNets, 2017, arXiv
        1608.08710.
    """
    del task, groups, key
    return magnitude(1)


def l2_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """The squared L2 norm of a unit's kernels, or the square of a weight.

    References:
        Li, Kadav, Durdanovic, Samet, Graf, Pruning filters for efficient ConvNets, 2017, arXiv
        1608.08710.
    """
    del task, groups, key
    return magnitude(2)


def random_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """One number a unit, drawn evenly from [0, 1).

    References:
        Mittal, Bhardwaj, Khapra, Ravindran, Recovering from random pruning, 2018, arXiv 1801.10447.
    """
    del task
    return random(key, groups)


def random_weights_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """One number a weight, drawn evenly from [0, 1).

    References:
        Mittal, Bhardwaj, Khapra, Ravindran, Recovering from random pruning, 2018, arXiv 1801.10447.
    """
    del task, groups
    return random(key)


def distance_of(metric: str = "l2", by_norm: float = 0.0) -> CriterionOf:
    """The sum of a unit's distances to the others of its group.

    Args:
        metric: "l2" or "cosine".
        by_norm: fraction of a group that goes by its norm, before distances are taken.

    References:
        He, Liu, Wang, Hu, Yang, Filter pruning via geometric median for deep convolutional neural
        networks acceleration, 2019, arXiv 1811.00250.
    """

    def criterion(task: Task, groups: Groups, key: jax.Array) -> Criterion:
        del task, key
        return distance(groups, metric, by_norm)

    return criterion


def taylor_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """The squared gradient of a gate behind the norm: the paper's Taylor-FO-BN.

    References:
        Molchanov, Mallya, Tyree, Frosio, Kautz, Importance estimation for neural network pruning,
        2019, arXiv 1906.10771.
    """
    del groups, key
    return Net(task).once(_taylor, task.loss)


def _taylor(net: Net, loss: Any) -> Criterion:
    return taylor(net.task.fn, loss, net.groups, form="gate", at="norm")


def obd_of(estimator: Estimator, negative: str = "clip", weight_decay: float = 0.0) -> CriterionOf:
    """The saliency h_kk w_k^2 / 2 of every weight.

    Args:
        estimator: of the diagonal h of the Hessian.
        negative: what to do with negative curvature: "clip", "keep" or "refuse".
        weight_decay: added to the curvature.

    References:
        LeCun, Denker, Solla, Optimal brain damage, 1990.
    """

    def criterion(task: Task, groups: Groups, key: jax.Array) -> Criterion:
        del groups
        return obd(task.fn, task.loss, estimator, key, negative, weight_decay)

    return criterion

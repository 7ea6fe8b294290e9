"""Pruning by scores: units or weights are scored, and all but the best are masked.

A criterion may need the net's groups, so the stage makes it when it runs, by a `CriterionOf` such
as `l1_of`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.base import (
    Allocator,
    Batch,
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
from jprune.criteria.coupled_norm import coupled_norm
from jprune.criteria.distance import distance
from jprune.criteria.layer_adaptive import layer_adaptive
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
        part: (round, number of rounds): the groups are divided evenly among rounds, in execution
            order; this one prunes its own, and those of earlier rounds stay as they are.
        once: whether no example is looked at twice: fewer batches where there are fewer examples.
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
    part: tuple[int, int] = (0, 1)
    once: bool = False
    name: str = "prune"

    def __post_init__(self):
        if self.per not in ("unit", "weight"):
            raise errors.ArgumentError(f"Prune(per={self.per!r}); write 'unit' or 'weight'.")
        if min(self.batches, self.batch_size) < 1:
            raise errors.ArgumentError(
                f"calibration with batches={self.batches}, batch_size={self.batch_size}; each is 1 "
                "or more."
            )

    def check(self, task: Task) -> None:
        """Raises what `check_prunable` does, and what making the criterion does."""
        check_prunable(task, self.budget, self.per)
        groups = Net(task).groups
        scored = self.criterion(task, groups, jax.random.key(0)).scored
        if scored is not None and self.per == "weight":
            raise _of_units()
        if scored is not None and {*scored} != {*groups.names}:
            # Groups without scores stay whole, so what is left has to do without theirs.
            whole = {name: size for name, size in groups.sizes.items() if name not in scored}
            floors = {**self.budget.floors, **whole}
            check_prunable(task, dataclasses.replace(self.budget, floors=floors), self.per)

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
        which, rounds = self.part
        order = [name for name in Net(task).groups.names if name in scores]
        # Contiguous parts: round `which` takes the groups n with floor(n rounds / N) = which.
        round_of = {name: n * rounds // len(order) for n, name in enumerate(order)}
        if rounds > 1:
            # By their order alone, widths are the same in all rounds, whatever the scores are then.
            scores = {name: _ranked(score) for name, score in scores.items()}
        for name in order:
            if round_of[name] < which:
                # Cut already: its width is fixed, and the others meet the budget beside it.
                scores[name] = np.where(np.asarray(alive[name]), np.inf, -np.inf)
        chosen = self.allocator(scores, self.budget, Net(task).cost)
        chosen = {name: mask for name, mask in chosen.items() if round_of[name] == which}
        # Groups that the criterion does not score stay as they are.
        return {name: np.asarray(mask, bool) for name, mask in {**alive, **chosen}.items()}

    def of_weights(self, pruned: Pruned, task: Task, scores: Scores) -> Masks:
        """Masks of kernels, a tree like the variables that is None elsewhere.

        Raises:
            ArgumentError: the criterion scores units.
        """
        if Net(task).are_units(scores):
            raise _of_units()
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
        examples = task.data.sizes["train"]
        size = min(self.batch_size, examples)
        count = min(self.batches, examples // size) if self.once else self.batches
        # Calibration data are training data: validation stays unseen.
        batches = _Calibration(task, size, count, key) if criterion.needs_data else ()
        return run_criterion(criterion, variables, batches)


def _ranked(scores: np.ndarray) -> np.ndarray:
    """-(r + 1/2) / n for the unit of rank r among the n of a group; what is not finite stays."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return np.where(np.isfinite(scores), -(ranks + 0.5) / len(scores), scores)


def _of_units() -> errors.ArgumentError:
    return errors.ArgumentError(
        "Prune(per='weight') came with a criterion that scores units; write per='unit'."
    )


@dataclasses.dataclass(frozen=True)
class _Calibration:
    """The same training batches whenever they are gone over; none of them is held."""

    task: Task
    batch_size: int
    count: int
    key: jax.Array

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(stream(self.task.data, self.batch_size, self.key), self.count)


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


def layer_adaptive_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """The square of a weight over those of its kernel that are no smaller.

    References:
        Lee, Park, Mo, Ahn, Shin, Layer-adaptive sparsity for the magnitude-based pruning, 2021,
        arXiv 2010.07611.
    """
    del task, groups, key
    return layer_adaptive()


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


def coupled_of(order: int = 2, normalize: str = "max", shifts: bool = False) -> CriterionOf:
    """The norm of all that belongs to a unit.

    Args:
        order: see `criteria.coupled_norm`.
        normalize: see there.
        shifts: see there.

    References:
        Fang, Ma, Song, Mi, Wang, DepGraph: towards any structural pruning, 2023, arXiv 2301.12900.
    """

    def criterion(task: Task, groups: Groups, key: jax.Array) -> Criterion:
        del task, key
        return coupled_norm(groups, order, normalize, shifts)

    return criterion


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

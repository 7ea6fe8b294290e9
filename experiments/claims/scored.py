"""Nets pruned by scores that were made before: one set of them serves all budgets."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.claims.claim import Case
from jprune import allocate, errors, run_criterion
from jprune.base import (
    Allocator,
    Batch,
    Budget,
    Criterion,
    Groups,
    Masks,
    Pruned,
    Scores,
    Stage,
    Task,
    is_none,
)
from jprune.recipes import Prune


def scored_before(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """In the place of a criterion, where a stage is called with scores."""
    raise errors.ArgumentError(
        "this stage prunes by scores that were made before: call its `of_units` or `of_weights` "
        "with them, and not the stage."
    )


def without_lowest_weights(
    case: Case[Any], pruned: Pruned, scores: Scores, kept: float
) -> tuple[Pruned, float]:
    """The net with so many weights left, and the sum of the scores of those that went."""
    stage = Prune(scored_before, allocate.global_topk, Budget(density=kept), per="weight")
    masks = stage.of_weights(pruned, case.task, scores)
    return case.masked(pruned, masks), removed(masks, scores)


def at_once(
    case: Case[Any],
    pruned: Pruned,
    criterion: Criterion,
    batches: Sequence[Batch],
    levels: Sequence[float],
) -> Iterator[tuple[float, Pruned, float]]:
    """(fraction kept, net, sum of the scores that went) at all levels, by scores made once."""
    scores = run_criterion(criterion, pruned.variables, batches)
    for kept in case.first(levels):
        yield kept, *without_lowest_weights(case, pruned, scores, kept)


def in_rounds(
    case: Case[Any],
    pruned: Pruned,
    criterion: Criterion,
    batches: Sequence[Batch],
    levels: Sequence[float],
    training: Stage,
) -> Iterator[tuple[float, Pruned]]:
    """(fraction kept, net) after every round of new scores, pruning and training."""
    for number, kept in enumerate(case.first(levels), start=1):
        scores = run_criterion(criterion, pruned.variables, batches)
        pruned, _ = without_lowest_weights(case, pruned, scores, kept)
        pruned = case.apply(pruned, 10 + number, training)
        yield kept, pruned


def removed(masks: Masks, scores: Scores) -> float:
    """The sum of the scores of what is masked."""
    gone = lambda mask, score: 0.0 if mask is None else float(np.sum(score, where=~mask))
    return sum(jax.tree.leaves(jax.tree.map(gone, masks, scores, is_leaf=is_none)))


def without_lowest_units(
    case: Case[Any],
    pruned: Pruned,
    scores: Scores,
    budget: Budget,
    allocator: Allocator,
    pool: str,
) -> Pruned:
    """The net under a budget of units, pooled from scores of weights."""
    stage = Prune(scored_before, allocator, budget, pool=pool)
    return case.masked(pruned, stage.of_units(pruned, case.task, scores))

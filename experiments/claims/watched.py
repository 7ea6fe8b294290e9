"""Trainings that are looked at on their way: masks, residuals, losses by step."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.claims.claim import Case
from jprune import masks_of
from jprune.base import Pruned
from jprune.recipes import evaluate


def states(learner: Any) -> Iterator[tuple[int, Any, Any]]:
    """(step, state, metrics) of a training, from step 0, which has no metrics."""
    state = learner.init()
    yield 0, state, {}
    for step, batch in enumerate(itertools.islice(learner.batches(0), learner.steps), start=1):
        state, metrics = learner.step(state, batch)
        yield step, state, metrics


def least_loss(
    case: Case[Any], stage: Any, pruned: Pruned, key: jax.Array, every: int
) -> tuple[Pruned, int]:
    """The net after a training, and the step whose validation loss was least.

    Args:
        case: whose task it is.
        stage: the training.
        pruned: the net before.
        key: of the training.
        every: steps between two looks; the last step is looked at as well.
    """
    learner, losses = stage.learner(pruned, case.task, key), {}
    state: Any = None
    for step, state, _ in states(learner):
        if step and (step % every == 0 or step == learner.steps):
            losses[step] = evaluate(case.task, learner.variables(state), "validation")["loss"]
    return learner.finish(state), min(losses, key=lambda step: losses[step])


def mask_changes(
    case: Case[Any], stage: Any, pruned: Pruned, key: jax.Array
) -> tuple[Pruned, dict[str, Any]]:
    """The net after surgery, and what its masks did.

    Returns:
        The net, and {"found": the fraction that is alive in the end, "spliced": of what came back
        at least once, "changes": of entries that change in a step, by tenths of the steps}.
    """
    learner = stage.learner(pruned, case.task, key)
    before, back, changes = np.ones(0, bool), np.zeros(0, bool), []
    state: Any = None
    for step, state, _ in states(learner):
        after = np.concatenate([np.ravel(m) for m in jax.tree.leaves(masks_of(state.opt_state))])
        if step:
            back |= after & ~before
            changes.append(float(np.mean(after != before)))
        else:
            back = np.zeros(after.size, bool)
        before = after
    tenths = [float(part.mean()) for part in np.array_split(changes, min(10, len(changes)))]
    record = {"found": float(before.mean()), "spliced": float(back.mean()), "changes": tenths}
    return learner.finish(state), record


def residuals(learner: Any, rounds: int) -> tuple[Pruned, list[float]]:
    """The net after ADMM, and the primal residual at the end of every round."""
    gaps, every, last = [], learner.steps // rounds, None
    for step, state, metrics in states(learner):
        if step and step % every == 0:
            gaps.append(float(metrics["primal"]))
        last = state
    return learner.finish(last), gaps

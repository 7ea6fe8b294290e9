"""The loop around a learner: epochs, resuming at any step, and a loss that is not finite."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Learner, Pruned, PyTree, Records, Task
from jprune.learners.evaluate import evaluator


class Progress(NamedTuple):
    """Where a run of a learner stands; enough to go on from, bit by bit."""

    step: int
    """Steps done."""
    state: PyTree
    sums: PyTree
    """{metric: sum over the steps of the current epoch}."""
    records: Records
    """One per finished epoch."""


def steps_per_epoch(task: Task, batch_size: int) -> int:
    """Whole batches of the training split.

    Raises:
        ArgumentError: the split is smaller than one batch.
    """
    size = task.data.sizes["train"]
    if batch_size < 1 or size < batch_size:
        raise errors.ArgumentError(
            f"a batch size of {batch_size} for {size} training examples; write 1 to {size}."
        )
    return size // batch_size


def drive(
    learner: Learner,
    pruned: Pruned,
    task: Task,
    key: jax.Array,
    *,
    epochs: int,
    batch_size: int,
    steps: int | None = None,
    progress: Progress | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    check_every: int = 50,
) -> tuple[Pruned, Records]:
    """Runs a learner to its end.

    The order of the data and the key of every step are functions of (`key`, step) alone, so a run
    that goes on from a `progress` ends bit by bit like one that was never interrupted.

    Args:
        learner: what to run.
        pruned: from where.
        task: data and metrics.
        key: of this run.
        epochs: passes over the training split.
        batch_size: examples per step.
        steps: stop after so many steps, if that comes first.
        progress: where to go on; None for the beginning.
        watch: called after every step and every epoch, for progress bars and checkpoints.
        check_every: steps between two looks at the loss (each waits for the device).

    Returns:
        The trained net, and a record per epoch: step and metrics of training and validation.

    Raises:
        DivergenceError: the loss is not finite; names the step. What `watch` saved before is good.
        ArgumentError: less than one batch.
    """
    length = steps_per_epoch(task, batch_size)
    total = epochs * length if steps is None else min(steps, epochs * length)
    seed = int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))
    if progress is None:
        progress = Progress(0, learner.init(pruned, key), {}, [])
    validate = evaluator(task)
    recent: list[Any] = []
    while progress.step < total:
        epoch, start = divmod(progress.step, length)
        for batch in task.data.batches("train", batch_size, seed=seed, epoch=epoch, start=start):
            state, metrics = learner.step(
                progress.state, batch, jax.random.fold_in(key, progress.step)
            )
            recent.append(metrics["loss"])
            sums = metrics if not progress.sums else _add(progress.sums, metrics)
            progress = Progress(progress.step + 1, state, sums, progress.records)
            at_end = progress.step % length == 0 or progress.step == total
            if len(recent) >= check_every or at_end:
                _check_finite(recent, progress.step)
                recent = []
            if at_end:
                progress = _closed(progress, learner, pruned, validate, length)
            watch(progress)
            if progress.step == total:
                break
    return learner.finish(progress.state, pruned), progress.records


@jax.jit
def _add(sums: PyTree, metrics: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, sums, metrics)


def _closed(
    progress: Progress, learner: Learner, pruned: Pruned, validate: Any, length: int
) -> Progress:
    """The end of an epoch: a record, and fresh sums."""
    count = (progress.step - 1) % length + 1
    metrics = {f"train_{name}": float(value) / count for name, value in progress.sums.items()}
    state = learner.epoch_end(progress.state)
    scores = validate(learner.finish(state, pruned).variables, "validation")
    metrics |= {f"validation_{name}": value for name, value in scores.items()}
    record = {"step": progress.step, "metrics": metrics}
    return Progress(progress.step, state, {}, [*progress.records, record])


def _check_finite(losses: list[Any], step: int) -> None:
    values = np.asarray([float(loss) for loss in losses])
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        first = step - len(losses) + int(bad[0]) + 1
        raise errors.DivergenceError(
            f"the loss at step {first} is {values[bad[0]]}. Lower the learning rate; the last "
            "checkpoint before it is kept."
        )

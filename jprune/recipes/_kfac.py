"""What the methods of EigenDamage's paper share: factors of a net, and the order of stages."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from jprune import errors
from jprune.base import Batch, Budget, Groups, Recipe, Stage, Task, Variables, run_criterion
from jprune.curvature import Factors, Layer, kfac
from jprune.recipes._rounds import in_rounds
from jprune.recipes._training import stream
from jprune.recipes.stages import Evaluate, Recalibrate, Save, Train


def recipe_of(
    prune: Callable[[Budget], Stage],
    budget: Budget,
    train: Train | None,
    finetune: Train,
    rounds: int,
    recalibrate: int,
) -> Recipe:
    """Training, pruning in rounds that keep the same fraction each, fine-tuning, new statistics.

    Raises:
        ArgumentError: less than one round.
    """
    if rounds < 1:
        raise errors.ArgumentError(f"rounds={rounds}; it is 1 or more.")
    kept = float(budget.value)
    fractions = [*(kept ** (number / rounds) for number in range(1, rounds)), kept]
    pruning, last = in_rounds(prune, budget, fractions, finetune)
    return (
        *(() if train is None else (train,)),
        Save("dense"),
        Evaluate("test", name="dense"),
        *pruning,
        Evaluate("validation", name="before_finetune"),
        last,
        *((Recalibrate(recalibrate, finetune.batch_size),) if recalibrate else ()),
    )


def calibration(task: Task, key: jax.Array, batches: int | None, size: int) -> Iterator[Batch]:
    """Training batches; one pass over the training split if no number is given.

    Raises:
        ArgumentError: a number below 1.
    """
    if size < 1 or (batches is not None and batches < 1):
        raise errors.ArgumentError(f"batches={batches}, batch_size={size}; both are 1 or more.")
    size = min(size, task.data.sizes["train"])
    count = task.data.sizes["train"] // size if batches is None else batches
    return itertools.islice(stream(task.data, size, key), count)


def factors_of(
    fn: Callable[..., Any],
    variables: Variables,
    groups: Groups,
    layers: Mapping[str, Layer],
    task: Task,
    batches: Iterator[Batch],
    labels: str,
    key: jax.Array,
    inputs: str = "patches",
) -> dict[str, Factors]:
    """{layer: Factors} of a net on calibration batches.

    Args:
        fn: the net; `task.fn`, or its opened form.
        variables: of `fn`.
        groups: of `fn`.
        layers: whose factors.
        task: whose loss.
        batches: calibration batches.
        labels: "model" or "data".
        key: of drawn labels.
        inputs: "patches" or "channels".
    """
    drawing = key if labels == "model" else None
    criterion = kfac(fn, task.loss, groups, layers, labels=labels, key=drawing, inputs=inputs)
    return run_criterion(criterion, variables, batches)


def floors_of(sizes: Mapping[str, int], limit: float) -> dict[str, int]:
    """Smallest numbers kept if at most a fraction `limit` may go.

    Raises:
        ArgumentError: a limit outside (0, 1].

    Example:
        >>> floors_of({"a": 100, "b": 3}, 0.95)
        {'a': 5, 'b': 1}
    """
    if not 0 < limit <= 1:
        raise errors.ArgumentError(
            f"limit={limit} is outside (0, 1]: it is the largest fraction of a layer that may go."
        )
    return {name: max(1, math.ceil((1 - limit) * size - 1e-9)) for name, size in sizes.items()}

"""Train, prune, fine-tune: the classic, with the criteria that everything is compared with.

The dense net is trained, its units are scored, all but the best are masked under a budget, and what
is left is fine-tuned. Pruning goes in one step, or in rounds with training in between: half of the
fine-tuning epochs are then spent between the rounds, at a constant learning rate, so that every
schedule trains equally long.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    l1: Li, Kadav, Durdanovic, Samet, Graf, Pruning filters for efficient ConvNets, 2017, arXiv
    1608.08710. taylor: Molchanov, Mallya, Tyree, Frosio, Kautz, Importance estimation for neural
    network pruning, 2019, arXiv 1906.10771 [18]. random: Mittal, Bhardwaj, Khapra, Ravindran,
    Recovering from random pruning, 2018, arXiv 1801.10447 [47]. Rounds: Han, Pool, Tran, Dally,
    2015, arXiv 1506.02626. Cubic: Zhu and Gupta, 2017, arXiv 1710.01878.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import allocate, criteria, errors, schedules
from jprune.base import Allocator, Budget, Criterion, Groups, Recipe, Task
from jprune.stages.evaluate import Evaluate
from jprune.stages.prune import CriterionOf, Prune
from jprune.stages.recalibrate import Recalibrate
from jprune.stages.rounds import in_rounds
from jprune.stages.saving import Save
from jprune.stages.train import Train
from jprune.train.net import Net

ALLOCATORS: dict[str, Allocator] = {
    "uniform": allocate.uniform,
    "global_topk": allocate.global_topk,
}
ROUNDS = 5
"""Of the schedules that have several, where none are asked for."""


def three_step(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    criterion: CriterionOf,
    allocator: str = "uniform",
    schedule: str = "one_shot",
    rounds: int | None = None,
    recalibrate: int = 0,
    per: str = "unit",
) -> Recipe:
    """Train, prune, fine-tune.

    Weight scores are summed over a unit for `uniform`, where units compete with their like, and
    averaged for `global_topk`, where a large kernel would win by its size.

    Args:
        budget: what is kept after the last round.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; with rounds, half of its epochs lie between them.
        criterion: makes the criterion.
        allocator: "uniform" or "global_topk".
        schedule: "one_shot", "iterative" (every round keeps the same fraction of what is left) or
            "cubic" (early rounds remove more).
        rounds: how often is pruned; None is 1 for "one_shot" and 5 for the others.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.
        per: "unit" or "weight"; single weights need a criterion that scores them, as l1, l2 and
            random do.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: an unknown allocator or schedule, or rounds that the schedule cannot have.

    Example:
        >>> recipe = three_step(Budget(macs=0.25), None, Train(8, 0.05, name="finetune"),
        ...                     criterion=l1_of, schedule="iterative", rounds=2)
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'between', 'prune', 'before_finetune', 'finetune']
        >>> [stage.budget.macs for stage in recipe if isinstance(stage, Prune)]
        [0.5, 0.25]
    """
    if allocator not in ALLOCATORS:
        raise errors.ArgumentError(
            f"there is no allocator {allocator!r}; write one of {', '.join(ALLOCATORS)}."
        )
    fractions = kept_after(float(budget.value), schedule, rounds)
    pool = "sum" if allocator == "uniform" else "mean"
    criterion = OF_WEIGHTS.get(criterion, criterion) if per == "weight" else criterion
    prune = lambda wanted: Prune(criterion, ALLOCATORS[allocator], wanted, pool=pool, per=per)
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


def kept_after(fraction: float, schedule: str, rounds: int | None = None) -> list[float]:
    """The fraction kept after each round.

    Raises:
        ArgumentError: an unknown schedule, or rounds that it cannot have.

    Example:
        >>> kept_after(0.25, "iterative", 2), kept_after(0.25, "one_shot")
        ([0.5, 0.25], [0.25])
    """
    if schedule not in schedules.SCHEDULES:
        raise errors.ArgumentError(
            f"there is no schedule {schedule!r}; write one of {', '.join(schedules.SCHEDULES)}."
        )
    at_once = schedule == "one_shot"
    rounds = (1 if at_once else ROUNDS) if rounds is None else rounds
    if rounds < 1 or (at_once and rounds > 1):
        raise errors.ArgumentError(
            f"{schedule} with rounds={rounds}: one_shot has 1 round, iterative and cubic have 1 or "
            "more. Write --schedule iterative for several."
        )
    if at_once:
        return [fraction]
    if schedule == "iterative":
        density = schedules.iterative(fraction, rounds, every=1)
        kept = [density(number) for number in range(rounds - 1)]
    else:
        density = schedules.cubic(fraction, 0, rounds)
        kept = [density(number) for number in range(1, rounds)]
    return [*np.asarray(kept, float).tolist(), fraction]


def l1_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """The L1 norm of a unit's kernels."""
    del task, groups, key
    return criteria.magnitude(1)


def l2_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """The squared L2 norm of a unit's kernels."""
    del task, groups, key
    return criteria.magnitude(2)


def random_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """One number a unit, drawn evenly from [0, 1)."""
    del task
    drawn = criteria.random(key)
    units = {name: jnp.zeros(size) for name, size in groups.sizes.items()}
    return drawn._replace(score=lambda state, variables: drawn.score(state, units))


def random_weights_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """One number a weight."""
    del task, groups
    return criteria.random(key)


OF_WEIGHTS: dict[CriterionOf, CriterionOf] = {random_of: random_weights_of}
"""What stands for a criterion of units where single weights are pruned."""


def taylor_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """The squared gradient of a gate behind the norm: the paper's Taylor-FO-BN."""
    del groups, key
    return Net(task).once(_taylor, task.loss)


def _taylor(net: Net, loss: Any) -> Criterion:
    return criteria.taylor(net.task.fn, loss, net.groups, form="gate", at="norm")


METHODS: dict[str, Callable[..., Recipe]] = {
    "l1": partial(three_step, criterion=l1_of),
    "l2": partial(three_step, criterion=l2_of),
    "random": partial(three_step, criterion=random_of),
    # As in the paper: all layers compete, and a little goes at a time.
    "taylor": partial(
        three_step, criterion=taylor_of, allocator="global_topk", schedule="iterative"
    ),
}

"""Train, prune, fine-tune: the classic, with the criteria that everything is compared with.

The dense net is trained, its units are scored, all but the best are masked under a budget, and what
is left is fine-tuned. Pruning goes in one step, or in rounds with training in between: with a
geometric or a cubic schedule, half of the fine-tuning epochs are then spent between the rounds, at a
constant learning rate, so that every schedule trains equally long.

References:
    l1: Li, Kadav, Durdanovic, Samet, Graf, Pruning filters for efficient ConvNets, 2017, arXiv
    1608.08710. taylor: Molchanov, Mallya, Tyree, Frosio, Kautz, Importance estimation for neural
    network pruning, 2019, arXiv 1906.10771 [18]. random: Mittal, Bhardwaj, Khapra, Ravindran,
    Recovering from random pruning, 2018, arXiv 1801.10447 [47]. Rounds: Han, Pool, Tran, Dally,
    2015, arXiv 1506.02626. Cubic: Zhu and Gupta, 2017, arXiv 1710.01878.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jprune import allocate, criteria, errors, schedules
from jprune.base import Allocator, Budget, Criterion, Groups, Recipe, Task
from jprune.recipes.stages import (
    CriterionOf,
    Evaluate,
    Prune,
    Recalibrate,
    Save,
    Train,
)

ALLOCATORS: dict[str, Allocator] = {
    "uniform": allocate.uniform,
    "global_topk": allocate.global_topk,
}


def three_step(
    prune: Prune,
    train: Train | None,
    finetune: Train,
    schedule: str = "one_shot",
    rounds: int = 1,
    recalibrate: int = 0,
) -> Recipe:
    """Train, prune, fine-tune.

    Args:
        prune: how units are chosen; its budget is that of the last round.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; with rounds, half of its epochs lie between them.
        schedule: "one_shot", "iterative" (every round keeps the same fraction of what is left) or
            "cubic" (early rounds remove more).
        rounds: how often is pruned; 1 for "one_shot".
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.

    Returns:
        The recipe; its evaluations are named `dense` (test), `before_finetune` (validation).

    Raises:
        ArgumentError: an unknown schedule, or rounds that it cannot have.

    Example:
        >>> prune = Prune(l1_of, allocate.uniform, Budget(macs=0.25))
        >>> tune = Train(8, 0.05, name="finetune")
        >>> [stage.name for stage in three_step(prune, None, tune, "iterative", rounds=2)]
        ['save', 'dense', 'prune', 'between', 'prune', 'before_finetune', 'finetune']
        >>> [s.budget.macs for s in three_step(prune, None, tune, "iterative", rounds=2)
        ...  if isinstance(s, Prune)]
        [0.5, 0.25]
    """
    fractions = kept_after(float(prune.budget.value), schedule, rounds)
    pruning: Recipe = ()
    between = dataclasses.replace(
        finetune,
        epochs=finetune.epochs / 2 / max(1, rounds - 1),
        schedule="constant",
        name="between",
    )
    for number, fraction in enumerate(fractions):
        budget = dataclasses.replace(prune.budget, **{prune.budget.kind: fraction})
        pruning += (dataclasses.replace(prune, budget=budget),)
        if number < rounds - 1:
            pruning += (between,)
    last = finetune if rounds == 1 else dataclasses.replace(finetune, epochs=finetune.epochs / 2)
    return (
        *(() if train is None else (train,)),
        Save("dense"),
        Evaluate("test", name="dense"),
        *pruning,
        Evaluate("validation", name="before_finetune"),
        last,
        *((Recalibrate(recalibrate, finetune.batch_size),) if recalibrate else ()),
    )


def kept_after(fraction: float, schedule: str, rounds: int) -> list[float]:
    """The fraction kept after each round.

    Raises:
        ArgumentError: an unknown schedule, or rounds that it cannot have.

    Example:
        >>> kept_after(0.25, "iterative", 2), kept_after(0.25, "cubic", 1)
        ([0.5, 0.25], [0.25])
    """
    if schedule not in schedules.SCHEDULES:
        raise errors.ArgumentError(
            f"there is no schedule {schedule!r}; write one of {', '.join(schedules.SCHEDULES)}."
        )
    if rounds < 1 or (schedule == "one_shot" and rounds > 1):
        raise errors.ArgumentError(
            f"rounds={rounds} with the schedule {schedule!r}; one_shot has 1, iterative and cubic "
            "have 1 or more. Write --schedule iterative."
        )
    if schedule == "one_shot":
        return [fraction]
    if schedule == "iterative":
        kept = schedules.iterative(fraction, rounds, every=1)
        return [*(float(kept(number)) for number in range(rounds - 1)), fraction]
    kept = schedules.cubic(fraction, 0, rounds)
    return [*(float(kept(number + 1)) for number in range(rounds - 1)), fraction]


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
    draw = criteria.random(key)
    units = {name: jnp.zeros(size) for name, size in groups.sizes.items()}
    return draw._replace(score=lambda state, variables: draw.score(state, units))


def taylor_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """The squared gradient of a gate behind the norm, the paper's Taylor-FO-BN."""
    del key
    return criteria.taylor(task.fn, task.loss, groups, form="gate", at="norm")


def _method(
    criterion: CriterionOf, allocator: str, schedule: str, rounds: int
) -> Callable[..., Recipe]:
    """A factory with these defaults."""
    of_schedule = {"one_shot": 1, "iterative": 5, "cubic": 5}

    def factory(
        budget: Budget,
        train: Train | None,
        finetune: Train,
        *,
        allocator: str = allocator,
        schedule: str = schedule,
        rounds: int | None = rounds,
        recalibrate: int = 0,
    ) -> Recipe:
        return three_step(Prune(criterion))

    return factory

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

from jprune import errors
from jprune.allocate import ALLOCATORS
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed, settled
from jprune.stages.prune import (
    CriterionOf,
    Prune,
    l1_of,
    l2_of,
    random_of,
    random_weights_of,
    taylor_of,
)
from jprune.stages.rounds import in_rounds, scheduled
from jprune.stages.train import Train


def three_step(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    criterion: CriterionOf,
    of_weights: CriterionOf | None = None,
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
        of_weights: makes that of single weights; None: `criterion` scores them too.
        allocator: "uniform" or "global_topk".
        schedule: "one_shot", "iterative" (every round keeps the same fraction of what is left) or
            "cubic" (early rounds remove more).
        rounds: number of rounds of pruning; None is 1 for "one_shot" and 5 for the others.
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
    pool = "sum" if allocator == "uniform" else "mean"
    chosen = criterion if of_weights is None or per == "unit" else of_weights
    prune = lambda wanted: Prune(
        chosen, ALLOCATORS[allocator], wanted, pool=pool, per=per, final=budget
    )
    pruning, last = in_rounds(prune, scheduled(budget, schedule, rounds), finetune)
    return framed(train, *pruning, finetune=last, after=settled(recalibrate, finetune.batch_size))


METHODS: dict[str, Callable[..., Recipe]] = {
    "l1": partial(three_step, criterion=l1_of),
    "l2": partial(three_step, criterion=l2_of),
    "random": partial(three_step, criterion=random_of, of_weights=random_weights_of),
    # As in the paper: all layers compete, and a little goes at a time.
    "taylor": partial(
        three_step, criterion=taylor_of, allocator="global_topk", schedule="iterative"
    ),
}

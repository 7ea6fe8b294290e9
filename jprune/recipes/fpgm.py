"""Filters near the geometric median of their layer go, for the others can replace them.

The dense net is trained, each filter is scored by the sum of its distances to all others, and those
of the smallest sums are masked under a budget, once or in rounds. The authors' code prunes softly:
that is `sfp` with score=distance.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    He, Liu, Wang, Hu, Yang, Filter pruning via geometric median for deep convolutional neural
    networks acceleration, 2019, arXiv 1811.00250. The authors' code takes Euclidean distances
    whatever it is asked for, and counts MACs of residual streams as saved that stay; here budgets
    are counted on the masks, and a stream is one layer, whose filters are those of all producers.
"""

from jprune.base import Budget, Recipe
from jprune.recipes.three_step import three_step
from jprune.stages.prune import distance_of
from jprune.stages.train import Train


def fpgm(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    metric: str = "l2",
    by_norm: float = 0.0,
    allocator: str = "uniform",
    schedule: str = "one_shot",
    rounds: int | None = None,
    recalibrate: int = 0,
) -> Recipe:
    """Train, prune by distances, fine-tune.

    Args:
        budget: what is kept after the last round; the paper keeps 0.6 of the filters of a layer.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; with rounds, half of its epochs lie between them.
        metric: "l2", "manhattan" or "cosine".
        by_norm: fraction of a layer's filters, of those that are there, that go first by their L2
            norm. The paper's mixed form is 0.3 with a budget of 0.6: a tenth goes by distance.
        allocator: "uniform" (the paper's: the same fraction of every layer), or "global_topk".
        schedule: "one_shot", "iterative" (every round keeps the same fraction of what is left) or
            "cubic" (early rounds remove more).
        rounds: number of rounds of pruning; None is 1 for "one_shot" and 5 for the others.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: an unknown word, or a number out of range.

    Example:
        >>> recipe = fpgm(Budget(density=0.6), None, Train(8, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune']
    """
    return three_step(
        budget,
        train,
        finetune,
        criterion=distance_of(metric, by_norm),
        allocator=allocator,
        schedule=schedule,
        rounds=rounds,
        recalibrate=recalibrate,
    )


METHODS = {"fpgm": fpgm}

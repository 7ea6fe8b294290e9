"""Data-free pruning: similar units are merged, by their weights alone.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Srinivas, Babu, Data-free parameter pruning for deep neural networks, 2015, arXiv 1507.06149
    [5].
"""

from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.merge import MergeUnits
from jprune.stages.train import Train


def data_free(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    allocator: str = "uniform",
    normalize: bool = False,
    drop: bool = False,
    stop: str = "budget",
) -> Recipe:
    """Removes one of two units with similar incoming weights; the other takes over its outputs.

    The paper merges neurons of dense layers in one pass, and stops there: that is the evaluation
    `before_finetune`. Here units of convolutions and of residual streams are merged too. Units are
    compared by all their incoming weights, biases and norms folded in, over all their producers;
    units that are equal are merged without any loss.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks.
        allocator: "uniform": every group keeps the same fraction; "global_topk": merges of all
            groups compete by their saliency.
        normalize: units that are multiples of each other count as equal too; for functions with
            h(c x) = c h(x), c > 0, such as ReLU. An extension.
        drop: a unit that is nearer to zero than to any other is dropped; for functions with
            h(0) = 0. An extension, and much better than merging where few units are alike.
        stop: "budget": merge until it is met; "cutoff" (the paper's rule): stop a group before
            where its saliencies reach the low mode of those of all its pairs. The budget is then
            mostly not met.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word.

    Example:
        >>> recipe = data_free(Budget(density=0.5), None, Train(8, 0.05, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune']
    """
    return framed(train, MergeUnits(budget, allocator, normalize, drop, stop), finetune=finetune)


METHODS = {"data_free": data_free}

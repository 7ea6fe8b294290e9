"""GraSP: before training, the weights go whose removal hurts the flow of gradients least.

A net learns as fast as its gradient is long. S = -w (H g) says how the squared length changes to
first order when a weight goes; the weights with the highest S go at once, in all layers together,
and what is left is trained as the dense net is.

As in the authors' code: ten examples of every class, sorted by class and cut into two halves that
are run one after the other (so norms, in training mode, see half of the classes at a time), logits
over 200, and dense layers drawn anew (Glorot, normal) in the copy that is scored. The code rounds
counts down, here they are exact, and the best weight of a layer stays. The code sums gradients over
both halves, here it is their mean: the order is the same.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Wang, Zhang, Grosse, Picking winning tickets before training by preserving gradient flow, 2020,
    arXiv 2002.07376.
"""

from jprune.base import Budget, Recipe
from jprune.stages.train import Train
from jprune.stages.untrained import PruneUntrained, before_training
from jprune.stages.untrained_scores import ByGradientFlow


def grasp(
    budget: Budget,
    train: Train | None,
    *,
    temperature: float = 200.0,
    per_class: int | None = 10,
    parts: int = 2,
    redraw_dense: bool = True,
    batches: int = 1,
    batch_size: int = 128,
    rounds: int = 1,
    per: str = "weight",
    norms: str = "batch",
    collapse: str = "refuse",
) -> Recipe:
    """Prunes the untrained net by gradient flow, and trains it.

    Args:
        budget: what is kept; of weights, a density is that of all kernels.
        train: training of the pruned net, and of the dense one beside it.
        temperature: that logits are divided by while they are scored; write 1 for a loss that is no
            cross entropy.
        per_class: examples of every class; None: `batches` in the order of training. Labels that
            are no classes have such batches anyway.
        parts: that a batch is run in, one after the other.
        redraw_dense: whether dense layers are scored with weights drawn anew.
        batches: where `per_class` is None.
        batch_size: examples in one, or that are read at a time.
        rounds: 1, as in the paper; several score what is left anew after each.
        per: "weight", as in the paper, or "unit": scores are summed over a filter.
        norms: "batch", as in the authors' code, or "inference".
        collapse: where no path of weights is left: "refuse", or "warn" and go on.

    Returns:
        The recipe; it has no fine-tuning. Its evaluations are named `dense` (test) and
        `before_finetune` (validation, of the untrained sparse net).

    Raises:
        ArgumentError: another word, a number out of range, or a net that is read and not trained
            here.

    Example:
        >>> [stage.name for stage in grasp(Budget(density=0.1), Train(20, 0.1))]
        ['save', 'train', 'save', 'dense', 'rewind', 'prune', 'before_finetune', 'finetune']
    """
    criterion = ByGradientFlow(temperature, parts, redraw_dense, norms)
    prune = PruneUntrained(
        criterion, budget, rounds, per, False, batches, batch_size, per_class, collapse
    )
    return before_training("grasp", train, prune)


METHODS = {"grasp": grasp}

"""SNIP: weights that the loss does not react to are pruned at once, before any training.

One batch, one gradient: of the net as it is drawn, the connections with the largest |g w| stay,
whatever layer they are in, and the sparse net is trained as the dense one is.

The authors' code prunes biases as well, which are 0 as they begin and so go first; here they stay
unless `biases` says otherwise. It trains new weights under the masks that others gave, which the
paper does not: that is `redraw`. Ties go by index. The net draws its own weights: the paper wants
variance scaling (He et al. or Glorot), without which layers are not comparable. The best weight of
a layer always stays, a layer that no path leads through is named, and a net without any path is
refused.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Lee, Ajanthan, Torr, SNIP: single-shot network pruning based on connection sensitivity, 2019,
    arXiv 1810.02340 [46].
"""

from jprune.base import Budget, Recipe
from jprune.stages.reinitialise import Reinitialise
from jprune.stages.train import Train
from jprune.stages.untrained import PruneUntrained, before_training
from jprune.stages.untrained_scores import BySensitivity


def snip(
    budget: Budget,
    train: Train | None,
    *,
    batches: int = 1,
    batch_size: int = 128,
    rounds: int = 1,
    per: str = "weight",
    biases: bool = False,
    norms: str = "inference",
    redraw: bool = False,
    collapse: str = "refuse",
) -> Recipe:
    """Prunes the untrained net by connection sensitivity, and trains it.

    Args:
        budget: what is kept; of weights, a density is that of all kernels.
        train: training of the pruned net, and of the dense one beside it. The paper's has SGD with
            momentum 0.9 and a rate of 0.1 that falls.
        batches: that the gradient is a mean over, signs included; 1 in the paper.
        batch_size: examples in one; 100 (MNIST) and 128 (CIFAR) in the paper.
        rounds: 1, as in the paper; several score what is left anew after each.
        per: "weight", as in the paper, or "unit": sensitivities are summed over a filter.
        biases: whether biases compete too, as in the authors' code. A bias of 0 scores 0.
        norms: "inference", as in the authors' code, or "batch": those of the scoring batch.
        redraw: whether weights drawn anew are trained under the masks, as in the authors' code.
        collapse: where no path of weights is left: "refuse", or "warn" and go on.

    Returns:
        The recipe; it has no fine-tuning. Its evaluations are named `dense` (test) and
        `before_finetune` (validation, of the untrained sparse net).

    Raises:
        ArgumentError: another word, a number below 1, or a net that is read and not trained here.

    Example:
        >>> [stage.name for stage in snip(Budget(density=0.1), Train(20, 0.1))]
        ['save', 'train', 'save', 'dense', 'rewind', 'prune', 'before_finetune', 'finetune']
    """
    prune = PruneUntrained(
        BySensitivity(norms), budget, rounds, per, biases, batches, batch_size, collapse=collapse
    )
    return before_training("snip", train, prune, *((Reinitialise(),) if redraw else ()))


METHODS = {"snip": snip}

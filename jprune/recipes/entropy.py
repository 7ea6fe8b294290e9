"""Entropy: channels whose mean activation hardly varies over images go, layer by layer.

There is no code of the authors. The paper cuts layer after layer and trains for an epoch or two
behind each, longer behind the last. It leaves the last convolutions of VGG-16 whole: write floors
for that. Layers keep the same share of their channels, since entropies of different layers are not
comparable. Residual streams, which the paper does not prune, are judged by their mean entropy
behind all their sums (`stream`).

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Luo, Wu, An entropy-based pruning method for CNN compression, 2017, arXiv 1706.05791 [21].
"""

from jprune.base import Budget, Recipe
from jprune.criteria.entropy import entropy as entropies
from jprune.stages.activations import ByActivations, layer_by_layer
from jprune.stages.train import Train


def entropy(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    bins: int = 100,
    stream: str = "joint",
    rounds: int = 10,
    batches: int = 40,
    batch_size: int = 125,
    recalibrate: int = 0,
) -> Recipe:
    """Masks the units of lowest entropy, a few layers at a time, with training in between.

    Args:
        budget: what is kept; the paper's layers keep half of their channels.
        train: training of the dense net; None where it is trained already.
        finetune: all training under the masks; with rounds, half of its epochs lie between them.
        bins: of the histograms; the paper's are 100.
        stream: residual streams are pruned by their mean entropy behind all sums ("joint"), or stay
            "whole".
        rounds: into which the layers are divided, with training in between; with more rounds than
            layers some rounds only train. 1: all layers at once, no training in between.
        batches: of training images that are looked at, or what there is.
        batch_size: images in one.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> recipe = entropy(Budget(macs=0.5), None, Train(8, 1e-3, name="finetune"), rounds=2)
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'between', 'prune', 'before_finetune', 'finetune']
    """
    score = ByActivations(entropies, (bins,), stream=stream)
    numbers = rounds, batches, batch_size, recalibrate
    return layer_by_layer(score, budget, train, finetune, *numbers)


METHODS = {"entropy": entropy}

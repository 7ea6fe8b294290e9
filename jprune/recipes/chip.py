"""CHIP: channels that are nearly combinations of their layer's other channels go.

A channel is worth what the nuclear norm of its layer's activations loses if it is set to 0. As in
the authors' code, activations are those behind the ReLU, five batches of 128 are looked at, and
all layers go at once. There each layer has a rate of its own, written by hand, activations are
rounded to four decimals, and in ResNets the convolutions before a sum are cut one by one. Here
layers keep the same share of their channels (write floors for those that shall keep more), nothing
is rounded, and a residual stream is judged by the mean behind all its sums.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Sui, Yin, Xie, Phan, Zonouz, Yuan, CHIP: channel independence-based pruning for compact neural
    networks, 2021, arXiv 2110.13981.
"""

from jprune.base import Budget, Recipe
from jprune.criteria.independence import independence
from jprune.stages.activations import ByActivations, layer_by_layer
from jprune.stages.train import Train


def chip(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    stream: str = "joint",
    rounds: int = 1,
    batches: int = 5,
    batch_size: int = 128,
    recalibrate: int = 0,
) -> Recipe:
    """Masks the units that add least to the nuclear norm of their layer, and fine-tunes.

    A decomposition for every unit and image: `criteria.independence` says what that costs.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: all training under the masks; with rounds, half of its epochs lie between them.
        stream: residual streams are pruned by the mean behind all sums ("joint"), or stay "whole".
        rounds: into which the layers are divided, with training in between; the paper's is 1: all
            layers at once.
        batches: of training images that are looked at, or what there is; the paper's are 5.
        batch_size: images in one.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> recipe = chip(Budget(macs=0.5), None, Train(8, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune']
    """
    score = ByActivations(independence, stream=stream)
    numbers = rounds, batches, batch_size, recalibrate
    return layer_by_layer(score, budget, train, finetune, *numbers)


METHODS = {"chip": chip}

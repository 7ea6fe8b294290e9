"""HRank: channels whose feature maps have a low rank go, layer by layer.

The ranks are those of the maps behind the ReLU, as in the authors' code, which looks at five
batches. There a net is trained anew behind every layer for 30 epochs, each layer has a rate of its
own, written by hand, and in ResNets the convolutions before a sum are cut one by one, so that the
sum adds channels that do not belong together. Here layers keep the same share of their channels
(write floors for those that shall keep more), and a residual stream is judged by its mean rank
behind all its sums.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Lin, Ji, Wang, Zhang, Zhang, Tian, Shao, HRank: filter pruning using high-rank feature map,
    2020, arXiv 2002.10179.
"""

from jprune.base import Budget, Recipe
from jprune.criteria.map_rank import map_rank
from jprune.stages.activations import ByActivations, layer_by_layer
from jprune.stages.train import Train


def hrank(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    tolerance: float | None = None,
    stream: str = "joint",
    rounds: int = 10,
    batches: int = 5,
    batch_size: int = 128,
    recalibrate: int = 0,
) -> Recipe:
    """Masks the units of lowest mean rank, a few layers at a time, with training in between.

    A decomposition for every unit and image: `criteria.map_rank` says what that costs. With rounds
    the ranks are taken anew in each.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: all training under the masks; with rounds, half of its epochs lie between them.
        tolerance: singular values above this fraction of the largest count; None: the precision of
            the type times the longer side of the map, as in the authors' code.
        stream: residual streams are pruned by their mean rank behind all sums ("joint"), or stay
            "whole".
        rounds: into which the layers are divided, with training in between; with more rounds than
            layers some rounds only train. 1: all layers at once, no training in between.
        batches: of training images that are looked at, or what there is; the paper's are 5.
        batch_size: images in one.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> recipe = hrank(Budget(macs=0.5), None, Train(8, 0.01, name="finetune"), rounds=2)
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'between', 'prune', 'before_finetune', 'finetune']
    """
    score = ByActivations(map_rank, (tolerance,), stream=stream)
    numbers = rounds, batches, batch_size, recalibrate
    return layer_by_layer(score, budget, train, finetune, *numbers)


METHODS = {"hrank": hrank}

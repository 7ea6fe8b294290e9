"""ThiNet: a channel is worth what the next layer makes of it; found greedily, layer by layer.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Luo, Wu, Lin, ThiNet: a filter level pruning method for deep neural network compression, 2017,
    arXiv 1707.06342 [20]; with matching pursuit: Luo, Zhang, Zhou, Xie, Wu, Lin, ThiNet:
    pruning CNN filters for a thinner net, TPAMI, 2018.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.layer_wise import ByThiNet, LayerWise
from jprune.stages.train import Train
from jprune.train.numbers import Numbers


def thinet(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    greedy: str = "remove",
    scale: bool = True,
    filters: str = "one",
    stream: str = "whole",
    ratios: Numbers = 1.0,
    rounds: int = 10,
    batches: int = 80,
    batch_size: int = 125,
    points: int = 10,
) -> Recipe:
    """Channels are removed whose sum in the next layer's outputs stays nearest to zero.

    Layers go in execution order with training in between, as in the paper. Outputs are those of the
        net as pruned so far, without the bias.

    Args:
        budget: what is kept; the paper's VGG-16 keeps half of the channels up to conv4_3.
        train: training of the dense net; None where it is trained already.
        finetune: all training under the masks; with rounds, half of its epochs lie between them.
        greedy: "remove" (2017): the removed set grows; "omp" (2018): the kept set grows by matching
            pursuit; "grow": the kept set grows without scales (2018, their dense layers).
        scale: give every channel that stays a least-squares factor, folded into the next layer.
        filters: "one": one output a position, drawn (the paper); "all".
        stream: residual streams stay "whole" (the paper's), or are pruned for all their consumers
            together ("joint").
        ratios: shares kept relative to each other: one for each step in execution order (on the
            command line with ":" between), or {step: share}; `inf` keeps a layer whole while
            others have units to give. The paper leaves conv5 whole.
        rounds: into which the layers are divided, with training in between; with more rounds than
            layers some rounds only train. 1: all layers at once, no training in between.
        batches: of calibration images; by default 10,000 images, as in the paper, or what there is.
        batch_size: images in one.
        points: sampled positions per image and layer.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = thinet(Budget(macs=0.5), None, Train(8, 1e-3, name="finetune"), rounds=2)
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'between', 'prune', 'before_finetune', 'finetune']
    """
    if rounds < 1 or stream == "sampler":
        raise errors.ArgumentError(
            f"thinet(rounds={rounds}, stream={stream!r}); rounds are 1 or more, and streams stay "
            "'whole' or are pruned 'joint'."
        )
    by = ByThiNet(greedy, filters)
    layers = LayerWise(
        budget,
        by,
        by.scales if scale else None,
        "now",
        stream,
        ratios,
        batches=batches,
        batch_size=batch_size,
        points=points,
        bias=False,
    )
    parts = [dataclasses.replace(layers, part=(number, rounds)) for number in range(rounds)]
    share = finetune.epochs / 2 if rounds > 1 else 0.0
    between = dataclasses.replace(
        finetune, epochs=share / max(1, rounds - 1) or 1, schedule="constant", name="between"
    )
    middle = [stage for part in parts[1:] for stage in (between, part)]
    return framed(
        train,
        parts[0],
        *middle,
        finetune=dataclasses.replace(finetune, epochs=finetune.epochs - share),
    )


METHODS = {"thinet": thinet}

"""Channel pruning by LASSO and least squares, layer by layer, against the dense net's outputs.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    He, Zhang, Sun, Channel pruning for accelerating very deep neural networks, 2017, arXiv
    1707.06168 [19].
"""

from jprune.base import Budget, Recipe
from jprune.stages.frame import framed, settled
from jprune.stages.layer_wise import ByLasso, LayerWise, by_least_squares
from jprune.stages.train import Train
from jprune.train.numbers import Numbers


def channel_lasso(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    refit: bool = True,
    targets: str = "dense",
    stream: str = "sampler",
    ratios: Numbers = 1.0,
    start: float = 1e-3,
    tolerance: float = 0.1,
    ridge: float | None = None,
    bias: bool = True,
    batches: int = 40,
    batch_size: int = 125,
    points: int = 10,
    recalibrate: int = 0,
) -> Recipe:
    """Chooses the channels that a layer reads by LASSO, and refits the layer by least squares.

    The inputs are those of the net as pruned so far, the targets those of the dense net; a layer
    whose outputs go into a residual sum aims at what makes the sum right.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; the paper's is 10 epochs at 1e-5 for VGG-16, and its
            results without are the evaluation `before_finetune`.
        refit: whether layers are refitted; False: channels are chosen only.
        targets: "dense", or "now": the outputs of the net as pruned so far, whose errors add up.
        stream: residual streams: "sampler" (the paper's: they stay whole, and a layer that begins
            a branch reads a part of them, which makes masks of weights), "whole" (nothing) or
            "joint" (pruned like other layers, for all consumers together).
        ratios: shares kept relative to each other: one for each step in execution order (on the
            command line with ":" between), or {step: share}; `inf` keeps a layer whole while
            others have units to give. The paper's VGG-16 keeps 1.5 in conv4 for 1 in shallower
            layers, and conv5 whole.
        start: the first penalty, as a fraction of the one that leaves no unit (the paper's 1e-3 has
            the unit of the outputs).
        tolerance: how many units beyond the width LASSO may leave, as a fraction of the width.
        ridge: how strongly weights are held, over the mean square of the inputs; None: 1e-6, or
            1e-2 where there are fewer than two rows an unknown. The paper has 0.
        bias: fit constants too, where a bias or a norm takes them.
        batches: of calibration images; by default 5,000 images, as in the paper, or what there is.
        batch_size: images in one.
        points: sampled positions per image and layer.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = channel_lasso(Budget(macs=0.5), None, Train(10, 1e-5, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune']
    """
    prune = LayerWise(
        budget,
        ByLasso(start, tolerance),
        by_least_squares if refit else None,
        targets,
        stream,
        ratios,
        batches=batches,
        batch_size=batch_size,
        points=points,
        ridge=ridge,
        bias=bias,
    )
    return framed(train, prune, finetune=finetune, after=settled(recalibrate, finetune.batch_size))


METHODS = {"channel_lasso": channel_lasso}

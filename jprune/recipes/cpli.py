"""Channel pruning by LASSO and least squares, where errors count by what they do to the loss.

A layer is fitted as by `channel_lasso`, with two terms more: each error of an output is multiplied
by the slope of the classification loss there, and outputs that the next step will remove do not
count where channels are chosen.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Guo, Ouyang, Xu, Channel pruning guided by classification loss and feature importance, 2020,
    arXiv 2003.06757 [29]. There is no code of it. What is here follows the two ideas of its
    abstract; how exactly the two terms enter its objective is not certain, so figures of the paper
    are not to be compared with. Without both terms it is He, Zhang, Sun, Channel pruning for
    accelerating very deep neural networks, 2017, arXiv 1707.06168 [19].
"""

from jprune.base import Budget, Recipe
from jprune.stages.error_weights import ErrorWeights
from jprune.stages.frame import framed, settled
from jprune.stages.layer_wise import ByLasso, LayerWise, by_least_squares
from jprune.stages.train import Train
from jprune.train.numbers import Numbers


def cpli(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    loss_term: bool = True,
    removal_term: bool = True,
    importance: str = "product",
    floor: float = 0.1,
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
    """Chooses the channels that a layer reads by LASSO, and refits it, errors weighted by the loss.

    With `loss_term` the refit solves every output by itself, which takes as many times as long as
    there are outputs; fewer `points` make it shorter.

    The inputs are those of the net as pruned so far, the targets those of the dense net; a layer
    whose outputs go into a residual sum aims at what makes the sum right.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: training under the masks; [19] has 10 epochs at 1e-5 for VGG-16.
        loss_term: multiply errors by |dC/dY|, C being the loss of the dense net, with labels; for
            the choice and for the refit.
        removal_term: leave out errors of outputs that the next step will remove; for the choice.
        importance: which outputs the next step is taken to keep: those of the largest mean of
            "product", |Y dC/dY|, or "gradient", (dC/dY)^2. With neither term nothing is looked at.
        floor: added to |dC/dY|, times its mean over the layer, since well-fitted examples have next
            to no slope. The size is ours.
        refit: whether layers are refitted; False: channels are chosen only.
        targets: "dense", or "now": the outputs of the net as pruned so far, whose errors add up.
        stream: residual streams: "sampler" (that of [19]: they stay whole, and a layer that begins
            a branch reads a part of them, which makes masks of weights), "whole" (nothing) or
            "joint" (pruned like other layers, for all consumers together).
        ratios: shares kept relative to each other: one for each step in execution order (on the
            command line with ":" between), or {step: share}; `inf` keeps a layer whole while
            others have units to give. The VGG-16 of [19] keeps 1.5 in conv4 for 1 in shallower
            layers, and conv5 whole.
        start: the first penalty, as a fraction of the one that leaves no unit (the 1e-3 of [19]
            has the unit of the outputs).
        tolerance: how many units beyond the width LASSO may leave, as a fraction of the width.
        ridge: how strongly weights are held, over the mean square of the inputs; None: 1e-6, or
            1e-2 where there are fewer than two rows an unknown. [19] has 0.
        bias: fit constants too, where a bias or a norm takes them.
        batches: of calibration images; by default 5,000 images, as in [19], or what there is.
        batch_size: images in one.
        points: sampled positions per image and layer.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = cpli(Budget(macs=0.5), None, Train(10, 1e-5, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune']
    """
    weigh = ErrorWeights(loss_term, removal_term, importance, floor)
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
        weigh=weigh if loss_term or removal_term else None,
    )
    return framed(train, prune, finetune=finetune, after=settled(recalibrate, finetune.batch_size))


METHODS = {"cpli": cpli}

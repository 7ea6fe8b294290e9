"""Feature maps go one at a time, those whose removal changes the loss least, while the net trains.

Between two removals the net is fine-tuned, and the steps of that fine-tuning give the scores: for
every example the slope of the loss as the map is scaled to 0, its absolute value, the mean over the
examples, divided by the norm of the layer's scores, less a price of the map's FLOPs.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Molchanov, Tyree, Karras, Aila, Kautz, Pruning convolutional neural networks for resource
    efficient inference, 2017, arXiv 1611.06440 [17]. There is no code of that paper. Of later
    versions one lets examples cancel (`form="signed"`), and that of the authors' 2019 paper takes
    absolute values of single entries (`criteria.gate_slopes(form="entries")`); this is the paper's.
    The rankings that it is judged by are `criteria.removal` and `criteria.rank_agreement`. The
    paper's nets have no residual sums; their streams are pruned here as one layer.
"""

import dataclasses

from jprune.base import Budget, Recipe
from jprune.stages.frame import framed, settled
from jprune.stages.one_by_one import Adjust, BySlopes, RemoveOneByOne
from jprune.stages.train import Train


def taylor2016(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    form: str = "absolute",
    normalise: bool = True,
    flops: float = 1e-3,
    count: str = "own",
    every: int = 10,
    units: int = 1,
    at: str = "norm",
    stream: str = "joint",
    recalibrate: int = 0,
) -> Recipe:
    """Removes units while fine-tuning, and fine-tunes what is left.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: all training after the dense net's: half of its epochs while units are removed, at
            a constant learning rate, half behind that.
        form: "absolute" (of every example, before the mean) or "signed" (after it).
        normalise: divide the scores of a layer by their L2 norm.
        flops: price of a MFLOP that a map costs, two FLOPs a multiply-accumulate; 0: none.
        count: FLOPs of a map: "own", those of the layer that makes it (the paper's), or "all",
            those of its readers too, in the net as it is by then.
        every: steps between removals: 10 for the paper's AlexNet, 30 for its VGG-16. Fewer where
            the steps that there are do not suffice for one map at a time.
        units: maps that go at a time (5 on ImageNet, every 1,000 steps); more where steps are few.
        at: where maps are scaled: "norm" (before the nonlinearity), "act" (behind it) or "in". With
            ReLUs the slope is the same.
        stream: residual streams are pruned as one layer, "joint", or stay "whole".
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: an unknown word, or a number out of range.

    Example:
        >>> recipe = taylor2016(Budget(macs=0.5), None, Train(8, 1e-3, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'remove', 'before_finetune', 'finetune']
    """
    half = dataclasses.replace(finetune, epochs=finetune.epochs / 2)
    remove = RemoveOneByOne(
        dataclasses.replace(half, schedule="constant", warmup=0.0, name="remove"),
        budget,
        BySlopes(form, at),
        Adjust("l2" if normalise else None, flops, count=count),
        every,
        units,
        stream,
    )
    after = settled(recalibrate, finetune.batch_size)
    return framed(train, remove, finetune=half, after=after)


METHODS = {"taylor2016": taylor2016}

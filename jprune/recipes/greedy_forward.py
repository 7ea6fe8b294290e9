"""Greedy forward selection: every layer grows from nothing, by the unit that lowers the loss most.

The n units that a layer keeps of D are averaged as all of them were: each is multiplied by D / n,
which is folded into the weights that read it. Losses are those of the whole net, forward alone.
The paper shows that the loss falls as 1 / n^2 where the wanted output is inside of the hull of the
units' outputs, and random sets as 1 / n.

Differences. The authors' code (MobileNetV2 alone) ends a layer where accuracy is near enough, which
is `tolerance` here; by default the budget says how many units a layer keeps. It fine-tunes after
every layer, here after every round of layers, for `finetune.epochs` in all. Its masks of a block's
output leave the stream the union of the blocks' choices; here a stream stays whole, or is selected
once for all its readers. Imitation of outputs (global) and of the next layer (local) is of the same
authors' later paper.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Ye, Gong, Nie, Zhou, Klivans, Liu, Good subnetworks provably exist: pruning via greedy forward
    selection, 2020, arXiv 2003.01794 [8]. Imitation: Ye, Wu, Liu, Greedy optimization provably wins
    the lottery: logarithmic number of winning tickets is enough, 2020, arXiv 2010.15969.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.forward import SelectForward
from jprune.stages.frame import framed
from jprune.stages.train import Train
from jprune.train.numbers import Numbers


def greedy_forward(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    imitate: str = "loss",
    repeat: bool = False,
    candidates: int = 50,
    tolerance: float | None = None,
    examples: int = 1024,
    stream: str = "whole",
    ratios: Numbers = 1.0,
    rounds: int = 10,
    batches: int = 20,
    batch_size: int = 128,
) -> Recipe:
    """Units are selected layer by layer in execution order, with training in between.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: all training under the masks; with rounds, half of its epochs lie between them.
        imitate: "loss" (on labels, the paper's code), "outputs" (the dense net's, global
            imitation), "layer" (the outputs of the layers that read the units, local imitation).
        repeat: a unit can be selected again and then counts twice, as in the theorem; fewer units
            stay than the budget allows. The authors' code has no repetition.
        candidates: units drawn for a choice (the authors' 50); 0: all are tried.
        tolerance: a layer ends, before the budget's n, where the quality on `examples` images is
            within this fraction of that with the whole layer (the authors' 0.02); None: never.
        examples: training images that the tolerance is judged on; the authors' 1/200 of ImageNet.
        stream: residual streams stay "whole", or are pruned for all their readers together
            ("joint").
        ratios: shares kept relative to each other: one for all, one for each step in execution
            order, or {step: share}; `inf` keeps a layer whole while others have units to give. The
            authors leave the first and the last blocks whole.
        rounds: into which the layers are divided, with training in between; with more rounds than
            layers some rounds only train. 1: all layers at once, no training in between.
        batches: of training images that choices look at, one after the other; 1: always the same.
        batch_size: images in one.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: another word, or a number out of range.

    Example:
        >>> recipe = greedy_forward(Budget(macs=0.5), None, Train(8, 1e-3, name="finetune"),
        ...                         rounds=2)
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'between', 'prune', 'before_finetune', 'finetune']
    """
    if rounds < 1:
        raise errors.ArgumentError(f"greedy_forward(rounds={rounds}); rounds are 1 or more.")
    select = SelectForward(
        budget,
        imitate,
        stream,
        ratios,
        repeat=repeat,
        candidates=candidates,
        batches=batches,
        batch_size=batch_size,
        tolerance=tolerance,
        examples=examples,
    )
    parts = [dataclasses.replace(select, part=(number, rounds)) for number in range(rounds)]
    share = finetune.epochs / 2 if rounds > 1 else 0.0
    between = dataclasses.replace(
        finetune, epochs=share / max(1, rounds - 1) or 1, schedule="constant", name="between"
    )
    middle = [stage for part in parts[1:] for stage in (between, part)]
    last = dataclasses.replace(finetune, epochs=finetune.epochs - share)
    return framed(train, parts[0], *middle, finetune=last)


METHODS = {"greedy_forward": greedy_forward}

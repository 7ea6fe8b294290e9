"""Channels go one at a time by their Fisher information, while the net is fine-tuned.

Between two removals the net takes a number of steps, and these give the scores: for every example
the slope of the loss as the channel is scaled to 0, summed over the map, squared, half its mean.
What the paper asks is whether the weights that are left are worth anything: `anew` draws new ones
for the shape that was found and trains it like the dense net. Its other control, a net made
narrower evenly, is `scratch_e`.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Crowley, Turner, Storkey, O'Boyle, A closer look at structured pruning for neural network
    compression, 2018, arXiv 1810.04622 [50]. The authors' code divides slopes of a mean over the
    batch, which scales all scores alike, and its L1 score sums weights with their signs; here they
    are absolute. It prunes the first convolution of every residual block, so that residual streams
    stay whole. The score over the cost of a channel is that of Theis, Korshunova, Tejani, Huszar,
    2018, arXiv 1801.05787.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed, settled
from jprune.stages.one_by_one import Adjust, ByMagnitude, BySlopes, RemoveOneByOne
from jprune.stages.reinitialise import BeginAnew, like_the_dense
from jprune.stages.train import Train


def fisher(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    score: str = "fisher",
    flop_aware: bool = False,
    every: int = 100,
    units: int = 1,
    at: str = "norm",
    stream: str = "whole",
    anew: str | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    recalibrate: int = 0,
) -> Recipe:
    """Removes channels while fine-tuning, and fine-tunes what is left or trains it anew.

    Args:
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: half of its epochs while channels are removed, at a constant learning rate (8e-4
            in the paper), half behind that.
        score: "fisher", or "l1": the L1 norm of a channel's kernels.
        flop_aware: divide scores by the MACs that go with a channel, in the net as it is by then.
        every: steps between removals; fewer where the steps that there are do not suffice for one
            channel at a time.
        units: channels that go at a time; more where steps are few.
        at: where channels are scaled: "norm" (before the nonlinearity), "act" (behind it, as in the
            paper) or "in". With ReLUs the slope is the same.
        stream: residual streams stay "whole" (the paper's), or are pruned as one layer, "joint".
        anew: the control, in place of the second half of the fine-tuning: the shape is trained from
            new initial values for as many "epochs" as the dense net, or for as many "macs", which
            are more epochs; None: no.
        epochs: of `anew`; None: as the dense net, where it is trained here.
        learning_rate: of `anew`; None: likewise.
        recalibrate: batches that the norms' statistics settle on afterwards; 0: none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: an unknown word, or a number out of range; epochs or a learning rate without
            `anew`.

    Example:
        >>> recipe = fisher(Budget(macs=0.5), Train(8, 0.1), Train(8, 8e-4, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['train', 'save', 'dense', 'remove', 'before_finetune', 'finetune']
        >>> recipe = fisher(Budget(macs=0.5), Train(8, 0.1), Train(8, 8e-4), anew="epochs")
        >>> [stage.name for stage in recipe]
        ['train', 'save', 'dense', 'remove', 'begin_anew', 'before_finetune', 'scratch']
    """
    if score not in ("fisher", "l1"):
        raise errors.ArgumentError(f"fisher(score={score!r}); write fisher or l1.")
    if anew is None and (epochs is not None or learning_rate is not None):
        raise errors.ArgumentError(
            f"fisher(epochs={epochs}, learning_rate={learning_rate}) are those of the control; "
            "write anew=epochs beside them, or leave them out."
        )
    half = dataclasses.replace(finetune, epochs=finetune.epochs / 2)
    remove = RemoveOneByOne(
        dataclasses.replace(half, schedule="constant", warmup=0.0, name="remove"),
        budget,
        BySlopes("square", at) if score == "fisher" else ByMagnitude(1),
        Adjust(divided=flop_aware, count="all"),
        every,
        units,
        stream,
    )
    after = settled(recalibrate, finetune.batch_size)
    if anew is None:
        return framed(train, remove, finetune=half, after=after)
    control = like_the_dense(train, half, anew, epochs=epochs, learning_rate=learning_rate)
    return framed(train, remove, BeginAnew(), finetune=control, after=after)


METHODS = {"fisher": fisher}

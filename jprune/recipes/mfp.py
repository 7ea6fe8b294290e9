"""Meta filter pruning: the net says while it trains by which criterion it is pruned next.

Soft filter pruning (see sfp) with a pool of criteria: norms, and sums of distances to the other
filters. After an epoch a copy of the net is pruned by each of them; the criterion whose copy is
nearest to the net as it is, by a few numbers (meta-attributes), sets its filters to 0, and all
weights train on. The zeros are made by the step itself, without a mask: masks meet gradients as
after a *prox* step. Training under the last masks is *frozen*.

The paper's meta-attributes are the sparsity level and the loss. How they are measured and compared
could not be read in code, for there is none: here the loss is that on the batch of the step, the
level the sum of |w| over all kernels (`mass`), and of both the differences are added, each over the
largest of the pool. By `mass` alone the l1 norm wins almost always, since it removes the least. A
copy is pruned at all places of a unit, so that no constant of a shift counts. The authors' earlier
code takes l2 and Euclidean distances whatever is asked for (`if dist_type == "l2" or "cos"`); here
each metric is what its name says. Numbers of filters, coupled layers and the end are as in sfp.

References:
    He, Liu, Zhu, Yang, Meta filter pruning to accelerate deep convolutional neural networks, 2019,
    arXiv 1904.03961 [34].
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.goal import Goal, Settle
from jprune.stages.soft_prune import Pool, SoftPrune
from jprune.stages.train import Train


def mfp(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    criteria: str = "l1:l2:distance:cosine",
    attribute: str = "loss",
    choose: str = "nearest",
    ramp: str = "constant",
    every: float | None = None,
    stop: float = 1.0,
) -> Recipe:
    """Soft pruning by the criterion that the net chooses.

    Args:
        budget: what is kept; every group keeps the same fraction of its units.
        train: training of the dense net; None where it is trained already, or not at all.
        finetune: both parts of the training.
        criteria: names with ':' between, of l1, l2, distance (Euclidean), manhattan, cosine.
        attribute: what copies are compared by, loss or mass, or both with ':' between.
        choose: "nearest": the copy that is most like the net as it is; "lowest": that with the
            lowest loss, another reading of the paper.
        ramp: "constant", or "asymptotic" as in asfp.
        every: epochs from one choice to the next; None: one, in runs of less than ten epochs a
            tenth of the steps.
        stop: fraction of the fine-tuning epochs after which masks are fixed, and the rest is
            fine-tuning; the paper's is 1.

    Returns:
        The recipe; it prunes units.

    Raises:
        ArgumentError: an unknown name, or a number out of range.

    Example:
        >>> recipe = mfp(Budget(macs=0.5), None, Train(8, 0.01, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'soft', 'prune', 'before_finetune']
    """
    if not 0 < stop <= 1:
        raise errors.ArgumentError(f"stop={stop}; it is a fraction of the epochs, in (0, 1].")
    pool = Pool((*criteria.split(":"),), (*attribute.split(":"),), choose)
    goal = Goal(budget, "unit", order=2)
    during = dataclasses.replace(finetune, epochs=stop * finetune.epochs)
    left = (1 - stop) * finetune.epochs
    return framed(
        train,
        SoftPrune(during, goal, every, ramp, pool),
        Settle(goal),
        finetune=dataclasses.replace(finetune, epochs=left) if left > 0 else None,
    )


METHODS = {"mfp": mfp}

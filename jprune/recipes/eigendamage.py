"""EigenDamage: rows and columns are pruned in the Kronecker-factored eigenbasis of every layer.

A layer becomes rotation, core, rotation: a 1 x 1 convolution to the columns that are kept, the
window's convolution to the rows that are kept, a 1 x 1 convolution back. All channels stay as wide
as they were, so norms and residual streams are untouched.

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Wang, Grosse, Fidler, Zhang, EigenDamage: structured pruning in the Kronecker-factored
    eigenbasis, 2019, arXiv 1905.05934 [28]. Biases stay outside of the rotation: as a constant
    input, which is how the authors' code has them, they would not be exact at padded borders.
"""

import dataclasses

from jprune.base import Budget, Recipe
from jprune.stages.eigenbasis import Rotate, cores_only
from jprune.stages.frame import framed, settled
from jprune.stages.rounds import evenly, in_rounds
from jprune.stages.train import Train


def eigendamage(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    rounds: int = 1,
    limit: float | None = None,
    labels: str = "model",
    normalize: bool = False,
    per_cost: bool = False,
    last: bool = False,
    fix_rotation: bool = False,
    recalibrate: int = 50,
    batches: int | None = None,
    batch_size: int = 64,
) -> Recipe:
    """Rotate, prune rows and columns of all layers under one threshold, fine-tune the parts.

    Args:
        budget: what is kept; a density is that of all rows and columns (1 minus the paper's ratio),
            of which a layer keeps all if its parts would be larger than it: the record of `prune`
            says what is held, and a warning where that is more than was asked for.
        train: training of the dense net; None where it is trained already.
        finetune: training of the net in its new form; with rounds, half of it lies between them.
        rounds: the paper prunes in one pass, or repeatedly: what was rotated is rotated again.
        limit: the largest fraction of a layer's rows, or columns, that may go in a round; None:
            0.95 of a single round, 0.5 of several.
        labels: "model": drawn from the net, the true Fisher information; "data": the empirical one.
        normalize: divide the scores of each layer by their sum (off in the paper's settings; what
            is divided by what is our reading).
        per_cost: divide the score of a row or column by what it costs, in parameters or, for a
            budget of MACs, in MACs (not in the paper, whose budgets are of rows and columns: under
            one of MACs the scores alone empty layers that are large and cheap).
        last: the last layer is pruned too; in the paper it is not.
        fix_rotation: fine-tune the cores alone.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.
        batches: calibration batches of the factors; None: one pass over the training images.
        batch_size: examples in one.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: less than one round, or a limit outside (0, 1].

    Example:
        >>> recipe = eigendamage(Budget(macs=0.5), None, Train(8, 0.05, name="finetune"))
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune', 'recalibrate']
    """
    # Several rounds can come back to a layer, so that one of them need not take nearly all of it.
    limit = (0.95 if rounds == 1 else 0.5) if limit is None else limit
    if fix_rotation:
        finetune = dataclasses.replace(finetune, wrap=cores_only)
    rotate = Rotate(budget, limit, labels, normalize, per_cost, last, batches, batch_size)
    # The same settings for every round, towards its own budget.
    goals = evenly(budget, rounds)
    first = iter([True, *[False] * (rounds - 1)])
    prune = lambda goal: dataclasses.replace(rotate, budget=goal, first=next(first))
    pruning, tune = in_rounds(prune, goals, finetune)
    after = settled(recalibrate, finetune.batch_size)
    return framed(train, *pruning, finetune=tune, after=after)


METHODS = {"eigendamage": eigendamage}

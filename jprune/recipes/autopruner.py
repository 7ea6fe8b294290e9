"""AutoPruner: a small layer reads a code of every batch, which is sharpened to 0 and 1.

While the net is fine-tuned, each group of channels has a code sigmoid(alpha v), v being read off
the mean of the batch by a dense layer of its own, and its channels are multiplied by it. alpha
rises, so that codes end at 0 and 1, and a penalty of its own strength pulls the mean of each code
to the ratio that shall be kept. In the end the last vote of the codes says which channels stay, and
the net is fine-tuned without them. While codes are soft, nothing is masked; what earlier parts have
masked is *frozen*, as in the fine-tuning.

Differences: a code is read where its channels are read first, which is behind the ReLU as in the
paper, and behind a pooling where one follows (VGG). One schedule rises over the whole of a part.
The ratio is the same for all groups and follows from the budget; where the vote is off it, the
nearest codes are opened or closed, so that the budget is met. Codes are decayed by nothing.
Residual sums have no codes, as in the authors' code, unless the budget cannot be met without.

References:
    Luo, Wu, AutoPruner: an end-to-end trainable filter pruning method for efficient deep model
    inference, 2020, arXiv 1805.08941 [44]; details as in the authors' code.
"""

import dataclasses

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.learners import Sharpening
from jprune.stages.batch_codes import ByCodes
from jprune.stages.frame import framed
from jprune.stages.train import Train
from jprune.stages.unit_gates import CutGates, Gated, TrainGates


def autopruner(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    gates: str = "",
    residual: bool | None = None,
    parts: int = 1,
    share: float = 0.5,
    alpha: float = 1.0,
    alpha_end: float = 100.0,
    alpha_step: float = 1.0,
    alpha_every: int | None = None,
    vote: int | None = None,
    spread: float = 10.0,
    strength: float = 10.0,
) -> Recipe:
    """Fine-tuning under codes that become 0 and 1, then without what is 0.

    Args:
        budget: what is kept; every group keeps the same fraction.
        train: training of the dense net; None where it is trained already.
        finetune: training under codes and fine-tuning after it (the paper: 0.001, a tenth of it
            after a half; 8 epochs for each of 4 parts, and 30 epochs after them).
        gates: patterns of groups that get codes, with ":" between; none: all.
        residual: whether the channels of residual sums get codes too; None: where the budget
            cannot be met without them.
        parts: groups are pruned in so many parts one after another, in execution order: 1 is all at
            once; the paper takes 4 for ResNet-50 and a part a layer for VGG-16.
        share: fraction of the fine-tuning epochs that training under codes takes, all parts
            together.
        alpha: of the sigmoid in the beginning: 1, and 0.1 for VGG-16 and MobileNetV2.
        alpha_end: in the end: 100, and 2 for VGG-16.
        alpha_step: what is added to all of alpha where too many codes are 0, or too few decided:
            1, and 0.1 for VGG-16.
        alpha_every: steps in which alpha stays as it is; None: 100, in trainings of fewer than
            1,000 steps a tenth of them.
        vote: codes that vote together, and steps from one vote to the next; None: 20, in trainings
            of fewer than 200 steps a tenth of them.
        spread: factor of the initial deviation of the layers that make the codes.
        strength: of the pull to the ratio before the first vote; from then on it is 100 times how
            far the vote is from the ratio.

    Returns:
        The recipe.

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> recipe = autopruner(Budget(macs=0.5), None, Train(8, 0.05, name="finetune"), parts=2)
        >>> [stage.name for stage in recipe][2:]
        ['gates', 'prune', 'gates', 'prune', 'before_finetune', 'finetune']
    """
    errors.check_numbers(
        "autopruner",
        ("share", share, 0 < share < 1, "in (0, 1)"),
        ("parts", parts, parts >= 1, "1 or more"),
    )
    during = dataclasses.replace(finetune, epochs=share * finetune.epochs / parts)
    codes = ByCodes(
        Sharpening(alpha, alpha_end, step=alpha_step, spread=spread, strength=strength),
        alpha_every,
        vote,
    )
    gated = Gated(gates, residual)
    stages = []
    for number in range(parts):
        part = (number, parts)
        stages.append(TrainGates(during, budget, gated, codes, part=part))
        stages.append(CutGates(budget, gated, "layer", part=part))
    rest = dataclasses.replace(finetune, epochs=(1 - share) * finetune.epochs)
    return framed(train, *stages, finetune=rest)


METHODS = {"autopruner": autopruner}

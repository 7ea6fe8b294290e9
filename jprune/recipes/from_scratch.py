"""Pruning from scratch: gates on an untrained net find the shape, which is then trained anew.

No weight is trained before the shape is known: the net is as it was drawn, its weights stay, and
only gates are learned for a few epochs, with a penalty on their mean. They are ranked together, as
many of the lowest go as the budget says, and what is left is drawn anew and trained like the dense
net (which is trained here for comparison alone).

A gate stands in what reads its unit; behind a ReLU that is the paper's place between norm and
ReLU. While gates are learned nothing is masked; in the last training masked weights are *frozen*,
exactly 0.

Differences: the initial values of the untrained net are those of the net that is brought (the
authors begin VGG's norms with scales of 1/2). Residual sums have no gates, as in the authors' code,
unless the budget cannot be met without. The authors widen the net first (by 80/64) and count the
budget of the net before: bring the wider net, and write `widened=1.25`. Their search takes the
fraction of gates that comes nearest to the budget; here it is never overshot. One gate of a group
never closes.

References:
    Wang, Zhang, Xie, Zhou, Su, Zhang, Hu, Pruning from scratch, 2020, arXiv 1909.12579 [51];
    details as in the authors' code.
"""

from jprune import errors
from jprune.base import Budget, Recipe
from jprune.stages.frame import framed
from jprune.stages.mean_gates import ToMean
from jprune.stages.reinitialise import BeginAnew, like_the_dense
from jprune.stages.train import Train
from jprune.stages.unit_gates import CutGates, Gated, TrainGates


def from_scratch(
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    gates: str = "",
    residual: bool | None = None,
    widened: float = 1.0,
    ratio: float = 0.2,
    strength: float = 0.5,
    gate_epochs: float = 10.0,
    gate_rate: float = 0.01,
    same: str = "epochs",
    epochs: float | None = None,
    learning_rate: float | None = None,
    schedule: str | None = None,
) -> Recipe:
    """Gates on an untrained net, the units with the lowest ones go, and the rest is trained anew.

    Args:
        budget: what is kept.
        train: training of the dense net; the small one is trained in the same way.
        finetune: is not run. Where the dense net is read, its batch size is that of the trainings.
        gates: patterns of groups that get gates, with ":" between; none: all.
        residual: whether the channels of residual sums get gates too; None: where the budget
            cannot be met without them.
        widened: how many times as wide as the net that the budget is a fraction of the net is.
        ratio: that the mean gate is pulled to: 0.2, and 0.5 for ImageNet.
        strength: the paper's eta: 0.5, and 0.05 for ImageNet.
        gate_epochs: of the training of gates.
        gate_rate: Adam's learning rate for gates. In fewer than 100 steps gates do not come from 1
            to 0 at the paper's 0.01: they are then ranked by how far they came.
        same: as what the dense net's training took: "epochs", or "macs" (the paper's budget
            training: 160 epochs become 160 / (1 - p) where the fraction p of all MACs is gone).
        epochs: of the dense net; None are those of `train`.
        learning_rate: the largest one of the last training; None is that of `train`.
        schedule: of that learning rate; None is that of `train`.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation, of
        the untrained small net), its trainings `gates` and `scratch`.

    Raises:
        ArgumentError: the dense net is read, and epochs or learning rate are not written; or a
            number out of range.

    Example:
        >>> recipe = from_scratch(Budget(macs=0.5), Train(160, 0.1), Train(40, 0.001))
        >>> [stage.name for stage in recipe][3:]
        ['begin_anew', 'gates', 'prune', 'begin_anew', 'before_finetune', 'scratch']
    """
    errors.check_numbers(
        "from_scratch",
        ("gate_epochs", gate_epochs, gate_epochs > 0, "a number above 0"),
        ("gate_rate", gate_rate, gate_rate > 0, "a number above 0"),
        ("ratio", ratio, 0 <= ratio < 1, "a number in [0, 1)"),
        ("strength", strength, strength >= 0, "0 or more"),
    )
    own = {"epochs": epochs, "learning_rate": learning_rate, "schedule": schedule}
    anew = like_the_dense(train, finetune, same, None, **own)
    of_gates = Train(
        gate_epochs,
        gate_rate,
        anew.train.batch_size,
        "constant",
        weight_decay=0.0,
        max_steps=anew.train.max_steps,
        optimizer="adam",
    )
    gated = Gated(gates, residual, widened)
    return framed(
        train,
        BeginAnew(),
        TrainGates(of_gates, budget, gated, ToMean(ratio, strength), keep=ratio),
        CutGates(budget, gated),
        BeginAnew(),
        finetune=anew,
    )


METHODS = {"from_scratch": from_scratch}

"""The pruned shape trained from scratch: what inherited weights have to beat.

The dense net is trained and pruned by the L1 norm, all that is kept gets new initial values, and
the small net is trained like the dense one: for as many epochs (Scratch-E), or for as many
multiply-accumulates, which are more epochs (Scratch-B).

Masks meet gradients *frozen*: a masked weight is exactly 0 and takes no step.

References:
    Liu, Sun, Zhou, Huang, Darrell, Rethinking the value of network pruning, 2019, arXiv 1810.05270
    [49]. Its CIFAR nets train for 160 epochs, from 0.1, a tenth of it after a half and after three
    quarters (`schedule="step"`); its ImageNet nets count ratios of MACs up to 2 (`cap=2`).
"""

import dataclasses
import math
from functools import partial

import jax

from jprune import allocate, criteria, errors
from jprune.base import Budget, Criterion, Groups, Learner, Pruned, Recipe, Records, Task
from jprune.recipes._anew import BeginAnew
from jprune.recipes._nets import are_units, cost_of, groups_of
from jprune.recipes._small import small
from jprune.recipes.stages import Evaluate, Prune, Save, Train, trained


def scratch(
    same: str,
    budget: Budget,
    train: Train | None,
    finetune: Train,
    *,
    epochs: float | None = None,
    learning_rate: float | None = None,
    schedule: str | None = None,
    cap: float | None = None,
    per: str = "unit",
) -> Recipe:
    """Train, prune, begin anew.

    Args:
        same: as what the dense net's training took: "epochs" or "macs".
        budget: what is kept.
        train: training of the dense net; the small one is trained in the same way.
        finetune: is not run. Where the dense net is read, its batch size is that of the training.
        epochs: of the dense net; None are those of `train`.
        learning_rate: the largest one; None is that of `train`.
        schedule: of the learning rate; None is that of `train`.
        cap: the largest ratio of MACs that counts; None: there is none.
        per: "unit", or "weight" for single weights of kernels under new initial values.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation, of
        the untrained small net), its training `scratch`.

    Raises:
        ArgumentError: the dense net is read, and epochs or learning rate are not given; or a
            number out of range.

    Example:
        >>> recipe = METHODS["scratch_b"](Budget(macs=0.5), Train(160, 0.1), Train(40, 0.001))
        >>> [stage.name for stage in recipe]
        ['train', 'save', 'dense', 'prune', 'begin_anew', 'before_finetune', 'scratch']
    """
    if same not in ("epochs", "macs") or (cap is not None and cap < 1):
        raise errors.ArgumentError(
            f"scratch(same={same!r}, cap={cap}); same is epochs or macs, cap is 1 or more."
        )
    if train is None and (epochs is None or learning_rate is None):
        raise errors.ArgumentError(
            "The dense net is read, so nobody knows how long it was trained. Write --set "
            "epochs=160,learning_rate=0.1, as the paper trains its nets for CIFAR-10."
        )
    given = {"epochs": epochs, "learning_rate": learning_rate, "schedule": schedule}
    like = dataclasses.replace(
        dataclasses.replace(finetune, distill=0.0) if train is None else train,
        **{name: value for name, value in given.items() if value is not None},
        name="scratch",
    )
    return (
        *(() if train is None else (train,)),
        Save("dense"),
        Evaluate("test", name="dense"),
        Prune(l1_of, allocate.uniform, budget, per=per),
        BeginAnew(),
        Evaluate("validation", name="before_finetune"),
        TrainAnew(like, same, cap),
    )


def l1_of(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """The L1 norm of a unit's kernels, or of a weight."""
    del task, groups, key
    return criteria.magnitude(1)


@dataclasses.dataclass(frozen=True)
class TrainAnew:
    """Trains what is kept as long as the dense net was trained: the small net, at its own cost.

    Attributes:
        train: training of the dense net.
        same: "epochs" or "macs".
        cap: the largest ratio of MACs that counts.
        name: of the records.
    """

    train: Train
    same: str
    cap: float | None = None
    name: str = "scratch"

    def settled(self, pruned: Pruned, task: Task) -> Train:
        """The training, with the epochs that these masks are worth."""
        if self.same == "epochs":
            return self.train
        model = cost_of(task)
        dense, small = (float(model(masks).macs) for masks in ({}, pruned.masks or {}))
        return dataclasses.replace(
            self.train, epochs=epochs_of(self.train.epochs, dense / small, self.cap)
        )

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """Its steps; under masks of single weights they are those of the dense net."""
        train = self.settled(pruned, task)
        if not are_units(groups_of(task), pruned.masks):
            return train.learner(pruned, task, key)
        net = small(task, pruned)
        steps = train.learner(Pruned(net.variables, None), net.task, key)
        variables = lambda state: net.back(steps.variables(state))
        return steps._replace(
            variables=variables,
            finish=lambda state: pruned._replace(variables=variables(state)),
        )

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """Trains to the end, in memory."""
        return trained(self.learner(pruned, task, key), self.name)


def epochs_of(epochs: float, ratio: float, cap: float | None = None) -> float:
    """Epochs of a small net that cost as much as those of the dense one.

    Args:
        epochs: of the dense net. Whole ones stay whole, rounded down as in the paper.
        ratio: MACs of the dense net over those of the small one.
        cap: the largest ratio that counts.

    Example:
        >>> epochs_of(160, 1 / (1 - 0.342)), epochs_of(90, 3.0, cap=2)
        (243, 180)
    """
    longer = epochs * (ratio if cap is None else min(ratio, cap))
    # A ratio of 2 comes out of a division a hair below it.
    return math.floor(longer + 1e-6) if epochs == int(epochs) else longer


METHODS = {
    "scratch_e": partial(scratch, "epochs"),
    "scratch_b": partial(scratch, "macs"),
}

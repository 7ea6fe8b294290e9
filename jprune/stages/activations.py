"""Criteria of stages that look at activations."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jprune import errors
from jprune.allocate import uniform
from jprune.base import Budget, Criterion, Groups, Recipe, Task
from jprune.criteria.activations import Statistic, activations
from jprune.graph.look.activations import rectified
from jprune.stages.frame import framed, settled
from jprune.stages.prune import Prune
from jprune.stages.rounds import in_rounds, parts
from jprune.stages.train import Train
from jprune.train.net import Net

STREAMS = ("joint", "whole")


@dataclasses.dataclass(frozen=True)
class ByActivations:
    """A `CriterionOf`: units scored by a statistic of their activations.

    Attributes:
        statistic: makes the statistic, such as `criteria.entropy`.
        settings: its arguments.
        at: kind of the places where activations are read; see `criteria.activations`.
        stream: residual streams are scored by the mean over the places behind their sums
            ("joint"), or stay "whole": the layer before a sum has no activation of its own.

    Example:
        >>> from jprune import criteria, stages
        >>> from jprune.allocate import uniform
        >>> from jprune.base import Budget
        >>> by_zeros = ByActivations(criteria.zeros)
        >>> stages.Prune(by_zeros, uniform, Budget(density=0.5)).criterion.at
        'act'
    """

    statistic: Callable[..., Statistic]
    settings: tuple[Any, ...] = ()
    at: str = "act"
    stream: str = "joint"

    def __post_init__(self):
        if self.stream not in STREAMS:
            raise errors.ArgumentError(
                f"stream={self.stream!r}; write one of {', '.join(STREAMS)}."
            )
        # Settings out of range are refused here, before there is a net.
        self.statistic(*self.settings)

    def __call__(self, task: Task, groups: Groups, key: jax.Array) -> Criterion:
        """The criterion for a task's net, compiled once for all rounds.

        Raises:
            ArgumentError: no group can be scored.
        """
        del groups, key
        return Net(task).once(_criterion, self)


def layer_by_layer(
    score: ByActivations,
    budget: Budget,
    train: Train | None,
    finetune: Train,
    rounds: int,
    batches: int,
    batch_size: int,
    recalibrate: int,
) -> Recipe:
    """A recipe that masks the lowest units of every layer, a few layers a round.

    Args:
        score: of units; it is taken anew in each round.
        budget: what is kept.
        train: training of the dense net; None where it is trained already.
        finetune: all training under the masks; with rounds, half of its epochs lie between them.
        rounds: into which the layers are divided; 1: all layers at once.
        batches: of training images that are looked at, or what there is.
        batch_size: images in one.
        recalibrate: batches that the norms' statistics settle on after fine-tuning; 0: none.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> from jprune import criteria
        >>> finetune = Train(8, 0.01, name="finetune")
        >>> score, budget = ByActivations(criteria.zeros), Budget(macs=0.5)
        >>> recipe = layer_by_layer(score, budget, None, finetune, 1, 5, 64, 0)
        >>> [stage.name for stage in recipe]
        ['save', 'dense', 'prune', 'before_finetune', 'finetune']
    """
    prune = lambda part: Prune(score, uniform, budget, batches, batch_size, part=part, once=True)
    pruning, last = in_rounds(prune, parts(rounds), finetune)
    return framed(train, *pruning, finetune=last, after=settled(recalibrate, finetune.batch_size))


def _criterion(net: Net, by: ByActivations) -> Criterion:
    statistic, names = by.statistic(*by.settings), net.groups.names
    if by.stream == "whole":
        names = tuple(name for name in names if name not in net.groups.streams)
    if statistic.rectified and names:
        can = rectified(net.task.fn, net.groups, net.shapes, net.task.example, at=by.at)
        names = tuple(name for name in names if name in can)
    if not names:
        raise errors.ArgumentError(
            f"no group of {net.task.name} can be scored by "
            f"{getattr(by.statistic, '__name__', by.statistic)}: "
            + (
                "none has an activation that a function makes exactly 0, as ReLU does and GELU, "
                "tanh and leaky ReLU do not (lenet5 has its ReLUs with --net conv_relu=true). "
                if statistic.rectified
                else "all of them are on residual streams, and stream='whole' leaves these alone. "
            )
            + "Write another method, such as entropy or l1."
        )
    return activations(net.task.fn, net.groups, statistic, by.at, names)

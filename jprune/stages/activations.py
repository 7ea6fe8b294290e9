"""Criteria of stages that look at activations."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jprune import errors
from jprune.base import Criterion, Groups, Task
from jprune.criteria.activations import Statistic, activations
from jprune.graph.look.activations import rectified
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

"""A penalty on the singular values of kernels, as a wrap of training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from jprune.base import Schedule, Task
from jprune.sparsify.low_rank import kernels_of_rank, low_rank, singular_values
from jprune.train.net import Net
from jprune.train.numbers import Numbers, per_name


@dataclasses.dataclass(frozen=True)
class RankPenalty:
    """Settings of a penalty on singular values, see `jprune.sparsify.low_rank`.

    Attributes:
        strength: lambda of all kernels, of each in execution order, or by name. None: what brings
            the mean singular value of a kernel to 0 in half of the training, unless gradients hold
            it.
        kernels: that are penalised; None: all of plain layers but the last.
        every: steps from one singular value decomposition to the next.
    """

    strength: Numbers | None = dataclasses.field(default=None, hash=False)
    kernels: tuple[str, ...] | None = None
    every: int = 1

    def strengths(self, task: Task) -> dict[str, float]:
        """{kernel: lambda}, 1 where it is not known yet.

        Raises:
            StructureError: a kernel that the net does not have, or a net without kernels.
            ArgumentError: not as many strengths as kernels, a negative one, or `every` below 1.
        """
        groups = Net(task).groups
        names = tuple(kernels_of_rank(groups, self.kernels))
        strengths = per_name(
            1.0 if self.strength is None else self.strength, names, "rank_strength"
        )
        low_rank(groups, strengths, 1.0, names=names, every=self.every)  # refuses what it does
        return strengths

    def settled(self, task: Task, variables: Any, travel: float) -> "RankPenalty":
        """With strengths in numbers; travel is the sum of the rates of all steps."""
        if self.strength is not None:
            return self
        values = singular_values(Net(task).groups, variables, self.kernels)
        # lambda / 2 sum_t rate_t = mean of the singular values of all modes
        strengths = {n: 2 * float(np.concatenate(v).mean()) / travel for n, v in values.items()}
        return dataclasses.replace(self, strength=strengths)

    def __call__(self, net: Net, rate: Schedule, key: jax.Array) -> Callable[..., Any]:
        """As `jprune.base.Wrap`."""
        del key
        strengths = self.strengths(net.task)
        step = low_rank(net.groups, strengths, rate, names=tuple(strengths), every=self.every)
        return lambda inner: optax.chain(inner, step)

"""Gates with a mean that is pulled to a ratio, on frozen weights."""

import dataclasses
from typing import Any

import optax

from jprune.base import Budget, Schedule, Task, Wrap
from jprune.learners import Gating, mean_gates
from jprune.sparsify import box
from jprune.train.net import Net


@dataclasses.dataclass(frozen=True)
class ToMean:
    """Gates in [0, 1] on frozen weights, whose mean is pulled to a ratio.

    Attributes:
        ratio: that their mean is pulled to.
        strength: of the pull.
    """

    ratio: float = 0.2
    strength: float = 0.5

    def gating(self, task: Task, sizes: dict[str, int], budget: Budget, steps: int) -> Gating:
        """As `jprune.stages.unit_gates.Kind`."""
        del task, budget, steps
        return mean_gates(sizes, self.ratio, self.strength)

    def wrap(self, sizes: dict[str, int], budget: Budget, steps: int) -> Wrap:
        """As `jprune.stages.unit_gates.Kind`."""
        del steps
        least = lambda name: max(budget.min_units, budget.floors.get(name, 0))
        return Boxed(tuple((name, least(name)) for name in sizes))


@dataclasses.dataclass(frozen=True)
class Boxed:
    """A wrap that clips gates into [0, 1] after every step.

    Attributes:
        floors: (group, how many of its gates never close).
    """

    floors: tuple[tuple[str, int], ...]

    def __call__(self, net: Net, rate: Schedule, key: Any) -> Any:
        """As `jprune.base.Wrap`."""
        del net, rate, key
        return lambda inner: optax.chain(inner, box(0.0, 1.0, {"gates": dict(self.floors)}))

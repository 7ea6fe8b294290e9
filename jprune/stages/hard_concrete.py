"""Hard-concrete gates under a barrier, with steps of their own beside those of the weights."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Budget, Schedule, Task, Wrap
from jprune.cost import spent
from jprune.learners import Gating, Limits, hard_concrete
from jprune.learners.own_steps import beside
from jprune.stages.unit_gates import even_widths
from jprune.train.net import Net

MEASURES = ("budget", "volume")


@dataclasses.dataclass(frozen=True)
class ByBarrier:
    """Hard-concrete gates, whose cost a barrier keeps below a shrinking budget.

    Attributes:
        strength: of the expected cost times the barrier.
        measure: "budget": the cost is what the budget counts; "volume": the positions of all maps,
            and the goal is what the same fraction everywhere that meets the budget has of them.
        slope: see `jprune.learners.Limits`.
        tolerance: see `jprune.learners.Limits`.
        margin: see `jprune.learners.Limits`.
        rate: of plain gradient steps on phi; None: 2,000 over the number of steps, 10 at least.
        limit: the largest step of a phi; None: 24 over the number of steps, 1/2 at most, so that
            a gate that is pressed all the time is closed in a tenth of them.
    """

    strength: float = 0.1
    measure: str = "budget"
    slope: float = 10.0
    tolerance: float = 0.01
    margin: float = 1e-4
    rate: float | None = None
    limit: float | None = None

    def __post_init__(self):
        errors.check_words("ByBarrier", ("measure", self.measure, MEASURES))

    def gating(self, task: Task, sizes: dict[str, int], budget: Budget, steps: int) -> Gating:
        """As `jprune.stages.unit_gates.Kind`."""
        net = Net(task)
        least = {n: max(budget.min_units, budget.floors.get(n, 0)) for n in sizes}
        cost, goal = _budget_cost(net, budget), float(budget.value)
        if self.measure == "volume":
            cost = _volume(net)
            counts = even_widths(net, budget)
            kept = {n: jnp.arange(size) < counts[n] for n, size in net.groups.sizes.items()}
            goal = float(cost(kept))
        limits = Limits(goal, self.slope, self.tolerance, self.margin)
        return hard_concrete(sizes, cost, limits, steps, self.strength, least)

    def wrap(self, sizes: dict[str, int], budget: Budget, steps: int) -> Wrap:
        """As `jprune.stages.unit_gates.Kind`."""
        del sizes, budget
        rate = max(10.0, 2000 / steps) if self.rate is None else self.rate
        return OwnSteps(rate, min(0.5, 24 / steps) if self.limit is None else self.limit)


def _budget_cost(net: Net, budget: Budget) -> Any:
    """`{group: gates} -> cost` as a fraction of the whole net's, in the budget's unit."""
    if budget.kind == "density":
        total = sum(net.groups.sizes.values())
        # Groups without gates are whole.
        return lambda gates: 1 - sum((1 - gate).sum() for gate in gates.values()) / total
    count = lambda gates: spent(net.cost(gates), budget)
    dense = float(count({}))
    return lambda gates: count(gates) / dense


def _volume(net: Net) -> Any:
    """`{group: gates} -> positions of maps that are alive`, as a fraction of all units'."""
    groups = net.groups
    area = {
        name: sum(layer.positions for layer in groups.layers.values() if name in layer.writes)
        for name in groups.names
    }
    total = sum(area[name] * size for name, size in groups.sizes.items())

    def of(gates: Any) -> Any:
        # L_S = sum_l A_l sum_i P(z_li > 0), over V_0
        gone = sum(area[name] * (1.0 - jnp.asarray(gate)).sum() for name, gate in gates.items())
        return 1 - gone / total

    return of


@dataclasses.dataclass(frozen=True)
class OwnSteps:
    """A wrap under which gates take plain gradient steps, no longer than a limit.

    The optimizer of the weights sees nothing of their gradient, which a barrier lets explode.

    Attributes:
        rate: of the steps.
        limit: the largest change of one number.
    """

    rate: float
    limit: float

    def __call__(self, net: Net, rate: Schedule, key: Any) -> Any:
        """As `jprune.base.Wrap`."""
        del net, rate, key
        own = optax.chain(optax.scale(-self.rate), optax.clip(self.limit))
        return lambda inner: beside(inner, own)

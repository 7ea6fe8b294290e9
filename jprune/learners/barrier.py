"""A barrier that explodes as a cost comes near a budget, and the budget as it shrinks over time.

References:
    Lemaire, Achkar, Jodoin, Structured pruning of neural networks with budget-aware regularization,
    2019, arXiv 1811.09332 [24].
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def barrier(cost: Any, comfortable: Any, budget: Any, cap: float = 1e10) -> Any:
    """f(V, a, b): 0 up to a cost that is comfortable, exploding towards the budget.

    Args:
        cost: V.
        comfortable: a, up to which there is no pressure.
        budget: b, which is not to be reached.
        cap: from b on, and the most before it.

    Example:
        >>> [float(barrier(cost, 20.0, 100.0)) for cost in (20.0, 60.0, 100.0)]
        [0.0, 0.5, 10000000000.0]
    """
    a, b = comfortable, budget
    inside = (cost > a) & (cost < b)
    # Where it is not inside, numbers that divide by nothing close to 0.
    v = jnp.where(inside, cost, 0.5 * (a + b))
    # f = (V - a)^2 / ((b - V) (b - a))
    value = jnp.minimum((v - a) ** 2 / ((b - v) * (b - a)), cap)
    return jnp.where(cost <= a, 0.0, jnp.where(inside, value, cap))


def transition(progress: Any, slope: float = 10.0) -> Any:
    """How far the budget has come from all to its goal: a sigmoid from 0 to 1.

    Example:
        >>> [round(float(transition(p)), 6) for p in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.070104, 0.5, 1.0]
    """
    # sigma(p) = (S(p) - S(0)) / (S(1) - S(0)), S(p) = 1 / (1 + exp(slope (1/2 - p)))
    first, last = (1 / (1 + math.exp(slope * (0.5 - p))) for p in (0, 1))
    return (jax.nn.sigmoid(slope * (progress - 0.5)) - first) / (last - first)


class Limits(NamedTuple):
    """The budget over time; costs are fractions of the whole net's.

    Attributes:
        goal: what shall be kept in the end.
        slope: of the sigmoid along which the budget shrinks.
        tolerance: how far above the whole net's cost the budget begins.
        margin: how far below the goal there is no pressure any more, over 1 + tolerance.
        cap: the largest value of the barrier.
    """

    goal: float
    slope: float = 10.0
    tolerance: float = 0.01
    margin: float = 1e-4
    cap: float = 1e10

    def allowed(self, progress: Any) -> Any:
        """The budget b, progress being the fraction of the training that is done."""
        done = transition(progress, self.slope)
        # b = (1 - sigma) (1 + tol) V_0 + sigma B V_0
        return (1 - done) * (1 + self.tolerance) + done * self.goal

    def comfortable(self) -> float:
        """The cost a, up to which there is no pressure."""
        # a = B V_0 - margin
        return self.goal - self.margin * (1 + self.tolerance)

"""Distance: units near to all others of their group are removed first, for these can replace them.

References:
    He, Liu, Wang, Hu, Yang, Filter pruning via geometric median for deep convolutional neural
    networks acceleration, 2019, arXiv 1811.00250. Other metrics: He, Liu, Zhu, Yang, Meta filter
    pruning, 2019, arXiv 1904.03961 [34].
"""

from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.base import Criterion, Groups, Variables
from jprune.graph.shrink.concrete import on_host
from jprune.units import rows

METRICS = ("l2", "manhattan", "cosine")


def distance(groups: Groups, metric: str = "l2", by_norm: float = 0.0) -> Criterion:
    """Sum of a unit's distances to all other units of its group.

    The geometric median of the units minimises that sum over all points; the unit with the smallest
    sum is nearest to it. Norms do not matter: units that are all shifted alike score as before.

    Units whose weights are all 0 are gone: they are no neighbours, and score below all others.

    Args:
        groups: from `trace`. A unit is all the weights that make it: those of all producers of a
            residual stream, in one vector.
        metric: "l2", "manhattan", or "cosine": 1 - the cosine of the angle.
        by_norm: fraction of each group that goes first, by smallest L2 norm; distances are those
            among the others. The norms' scores are below 0, in their order.

    Returns:
        A criterion without data; scores are {group: [units]}.

    Raises:
        ArgumentError: another metric, or a fraction outside [0, 1).
        StructureError: units that stand at different numbers of positions (when scoring).

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.array([[1.0, 2.0, 5.0]]), "second": jnp.ones((3, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 1)))
        >>> jprune.run_criterion(distance(groups), variables, ())["first"].tolist()
        [5.0, 4.0, 7.0]
        >>> jprune.run_criterion(distance(groups, by_norm=0.4), variables, ())["first"].tolist()
        [-1.0, 3.0, 3.0]
    """
    if metric not in METRICS or not 0 <= by_norm < 1:
        raise errors.ArgumentError(
            f"distance(metric={metric!r}, by_norm={by_norm}); the metric is one of "
            f"{', '.join(METRICS)}, the fraction in [0, 1)."
        )

    def score(state: Any, variables: Variables) -> dict[str, Any]:
        del state
        of = on_host(lambda xnp, units: _sums(xnp, units, metric, by_norm))
        return {name: of(rows(groups, variables, name)) for name in groups.names}

    return Criterion(lambda variables: (), lambda state, variables, batch: state, score, False)


def _sums(xnp: Any, units: Any, metric: str, by_norm: float) -> Any:
    """[units]: distances [units, weights of one] summed over the others."""
    # In double precision on the host: differences of large squares are small.
    units = units.astype(np.float64) if xnp is np else units
    norms = xnp.sqrt((xnp.abs(units) ** 2).sum(1))
    alive = norms > 0
    # round(f n) of those that are there, ties by lowest index
    going = xnp.round(by_norm * alive.sum())
    rank = xnp.argsort(xnp.argsort(xnp.where(alive, norms, xnp.inf), stable=True))
    small = alive & (rank < going)
    others = alive & ~small
    if metric == "cosine":
        # cos = f . g / (|f| |g|)
        units = units / xnp.where(alive, norms, 1)[:, None]
    numbers = xnp.arange(len(units))

    def sum_of(unit: Any, number: Any) -> Any:
        if metric == "cosine":
            apart = 1 - xnp.real(units @ xnp.conj(unit))
        else:
            differences = xnp.abs(units - unit)
            l1 = metric == "manhattan"
            apart = differences.sum(1) if l1 else xnp.sqrt((differences**2).sum(1))
        # s_c = sum_j d(W_c, W_j), itself left out
        return xnp.where(others & (numbers != number), apart, 0).sum()

    # Unit by unit: the differences of all pairs at once would not fit into memory in wide layers,
    # and |x|^2 + |y|^2 - 2 x y loses what is small.
    if xnp is np:
        sums = np.array([sum_of(unit, number) for number, unit in enumerate(units)])
    else:
        sums = jax.lax.map(lambda pair: sum_of(*pair), (units, numbers))
    # Norms keep their order below all sums; the largest is at -1.
    largest = xnp.where(small, norms, 0).max() if len(units) else 1.0
    below = norms / xnp.where(largest > 0, largest, 1) - 2
    return xnp.where(small, below, xnp.where(alive, sums, -3))

"""Distances between units: what lies in the middle of the others can be replaced by them.

References:
    He, Liu, Wang, Hu, Yang, Filter pruning via geometric median for deep convolutional neural
    networks acceleration, 2019, arXiv 1811.00250. Among other metrics: He, Liu, Zhu, Yang, Meta
    filter pruning, 2019, arXiv 1904.03961 [34].
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Criterion, Groups
from jprune.graph.shrink.concrete import at_hand
from jprune.units import rows

METRICS = ("euclidean", "manhattan", "cosine")


def distances(groups: Groups, metric: str = "euclidean") -> Criterion:
    """The sum of a unit's distances to the other units of its group, by its kernels.

    Units with a small sum go first. A norm does not matter to the first two, only where a unit
    lies; "cosine" looks at directions alone. Units of zeros are at distance 0 from each other, and
    at cosine distance 1 from all units, themselves left out.

    Args:
        groups: from `trace`.
        metric: "euclidean", "manhattan" or "cosine" (1 - cos).

    Returns:
        A criterion that scores units, {group: [units]}, without data; groups without kernels have
        no scores.

    Raises:
        ArgumentError: another metric.

    Example:
        >>> import jprune
        >>> params = {"w": jnp.array([[0.0, 3.0, 1.0]]), "out": jnp.ones((3, 1))}
        >>> fn = lambda v, x: jax.nn.relu(x @ v["w"]) @ v["out"]
        >>> groups = jprune.trace(fn, params, jnp.ones((1, 1)))
        >>> jprune.run_criterion(distances(groups), params, ())["w"]
        Array([4., 5., 3.], dtype=float32)
    """
    if metric not in METRICS:
        raise errors.ArgumentError(
            f"distances(metric={metric!r}); write one of {', '.join(METRICS)}."
        )
    names = [n for n in groups.names if any("kernel" in p.roles for p in groups.places[n])]

    def score(state: Any, variables: Any) -> dict[str, Any]:
        del state
        return {name: sums(rows(groups, variables, name), metric) for name in names}

    return Criterion(lambda variables: (), lambda state, variables, batch: state, score, False)


def sums(units: Any, metric: str = "euclidean") -> Any:
    """[units]: the sum of the distances of every row to all others.

    Args:
        units: [units, weights]; NumPy sums those at hand in float64.
        metric: see `distances`.

    Example:
        >>> sums(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
        [5.0, 5.0]
    """
    numbers = at_hand(units)
    xnp: Any = jnp if numbers is None else np
    points = units if numbers is None else numbers.astype(np.float64)
    if metric == "cosine":
        # cos = f . g / (|f| |g|), 0 where one of them is 0
        length = xnp.sqrt((points**2).sum(1, keepdims=True))
        points = points / xnp.where(length > 0, length, 1)

    def to_all(point: Any) -> Any:
        if metric == "cosine":
            return 1 - points @ point
        apart = points - point
        return xnp.abs(apart).sum(1) if metric == "manhattan" else xnp.sqrt((apart**2).sum(1))

    # Row by row: differences of all pairs at once would not fit into memory for wide layers, and
    # those by products of rows lose what is small.
    if numbers is None:
        each = jax.lax.map(to_all, points)
        return jnp.where(jnp.eye(len(points), dtype=bool), 0, each).sum(1)
    total = [float(np.delete(to_all(point), number).sum()) for number, point in enumerate(points)]
    result = np.array(total, units.dtype)
    return result if isinstance(units, np.ndarray) else jnp.asarray(result)

"""Channels chosen greedily by their contribution to the next layer, and scales for the others.

x_j [rows] is the contribution of unit j to sampled outputs, and y = sum_j x_j. Everything is
computed from the Gram matrix G_ij = x_i . x_j, so that a greedy step costs O(units), whatever the
number of rows.

References:
    Luo, Wu, Lin, ThiNet: a filter level pruning method for deep neural network compression, 2017,
    arXiv 1707.06342 [20]; matching pursuit: Luo, Zhang, Zhou, Xie, Wu, Lin, ThiNet: pruning CNN
    filters for a thinner net, TPAMI, 2018.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from jprune import errors
from jprune.base import Problem, Reconstructor
from jprune.reconstruct.moments import CHUNK, contributions, moments

FILTERS = ("one", "all")


def remove(gram: np.ndarray, count: int) -> np.ndarray:
    """Grows the removed set T so that its sum stays small: argmin_j ||sum_T x + x_j|| each step.

    Args:
        gram: [units, units].
        count: how many to remove.

    Returns:
        [count] numbers of units, in the order of their removal, ties by lowest index.

    Example:
        >>> x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.5]])
        >>> remove(x @ x.T, 2).tolist()
        [2, 0]
    """
    # ||s + x_j||^2 = ||s||^2 + 2 s . x_j + G_jj with s = sum_T x; ||s||^2 is the same for all j.
    # Example: x = (1, 0), (-1, 0), (0, 0.5). First G_jj = 1, 1, 0.25: take 2. Then s = (0, 0.5) and
    # G_jj + 2 s . x_j = 1, 1: a tie, take 0. A third step has 1 + 2 (-1) = -1: 1 cancels 0.
    own, with_sum = np.diagonal(gram), np.zeros(len(gram))
    free, order = np.ones(len(gram), bool), []
    for _ in range(count):
        unit = int(np.argmin(np.where(free, own + 2 * with_sum, np.inf)))
        free[unit] = False
        order.append(unit)
        with_sum += gram[unit]
    return np.array(order, int)


def grow(gram: np.ndarray, count: int) -> np.ndarray:
    """Grows the kept set S whose sum is nearest to y: argmin_j ||y - sum_S x - x_j||.

    Returns:
        [count] numbers of units, in the order in which they were taken.
    """
    # ||r - x_j||^2 = ||r||^2 - 2 r . x_j + G_jj with r = y - sum_S x; missing[j] is r . x_j.
    own, missing = np.diagonal(gram), gram.sum(axis=1)
    free, order = np.ones(len(gram), bool), []
    for _ in range(count):
        unit = int(np.argmin(np.where(free, own - 2 * missing, np.inf)))
        free[unit] = False
        order.append(unit)
        missing = missing - gram[unit]
    return np.array(order, int)


def pursue(gram: np.ndarray, count: int) -> np.ndarray:
    """Orthogonal matching pursuit for y: argmax_j (x_j . r)^2 / x_j . x_j, r with scales refitted.

    Returns:
        [count] numbers of units, in the order in which they were taken.
    """
    own, whole = np.diagonal(gram), gram.sum(axis=1)
    free, order, missing = own > 0, [], whole
    for _ in range(min(count, int(free.sum()))):
        # min over c of ||r - c x_j||^2 = ||r||^2 - (x_j . r)^2 / G_jj
        gain = missing**2 / np.where(own > 0, own, 1)
        unit = int(np.argmax(np.where(free, gain, -np.inf)))
        free[unit] = False
        order.append(unit)
        # x_j . r with r = y - sum_S w_i x_i, all scales w refitted (the orthogonal part).
        missing = whole - gram[:, order] @ scales(gram, np.array(order))[order]
    # Units that add nothing are taken last, so that there are always `count`.
    dead = np.setdiff1d(np.arange(len(gram)), order)
    return np.array([*order, *dead[: count - len(order)]], int)


def scales(gram: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The w that minimises ||y - sum over chosen units of w_j x_j||, 0 elsewhere.

    Where w is not unique (dead or dependent units), the solution nearest to 1.

    Args:
        gram: [units, units].
        chosen: bool [units], or numbers of units.

    Example:
        >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
        >>> scales(x @ x.T, np.array([True, True, False])).tolist()
        [1.5, 1.0, 0.0]
    """
    chosen = np.flatnonzero(chosen) if np.asarray(chosen).dtype == bool else np.asarray(chosen)
    # w = (X_S^T X_S)^-1 X_S^T y. Solved for w - 1: the minimum-norm solution then leaves units
    # that the data do not determine at scale 1. X_S^T (y - X_S 1) = sum of G_ij over removed j.
    inside = gram[np.ix_(chosen, chosen)]
    missing = gram[chosen].sum(axis=1) - inside.sum(axis=1)
    cutoff = len(inside) * np.finfo(float).eps
    result = np.zeros(len(gram))
    result[chosen] = 1 + np.linalg.lstsq(inside, missing, rcond=cutoff)[0]
    return result


def _by_removal(gram: np.ndarray, width: int) -> np.ndarray:
    return np.delete(np.arange(len(gram)), remove(gram, len(gram) - width))


GREEDY: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "remove": _by_removal,
    "grow": grow,
    "omp": pursue,
}
"""{name: (gram, width) -> numbers of the units that stay}."""


def sampled_gram(problem: Problem, key: jax.Array, filters: str = "one") -> np.ndarray:
    """[units, units]: x_i . x_j, x being the units' contributions to outputs of a consumer.

    Args:
        problem: of one consumer.
        key: of the draw of outputs.
        filters: "one": one output per position, drawn uniformly (the paper); "all": every output.

    Raises:
        ArgumentError: another word.
    """
    if filters not in FILTERS:
        raise errors.ArgumentError(f"filters={filters!r}; write 'one' or 'all'.")
    if filters == "all":
        return contributions(problem, moments(problem))[0]
    units, _, outputs = problem.weight.shape
    drawn = np.asarray(jax.random.randint(key, (len(problem.inputs),), 0, outputs))
    weight = np.moveaxis(np.asarray(problem.weight, np.float64), -1, 0)
    gram = np.zeros((units, units))
    for start in range(0, len(drawn), CHUNK):
        rows = slice(start, start + CHUNK)
        x = np.asarray(problem.inputs[rows], np.float64)
        # x_hat_nu = sum over the window of W[o_n, u] * patch[n, u], o_n the output drawn for row n.
        parts = np.einsum("nuw,nuw->nu", x, weight[drawn[rows]])
        gram += parts.T @ parts
    alive = np.asarray(problem.keep, float)
    return gram * np.outer(alive, alive)


def thinet(
    problems: Sequence[Problem],
    width: int,
    key: jax.Array,
    greedy: str = "remove",
    filters: str = "one",
) -> np.ndarray:
    """Bool [units]: the units to keep, chosen greedily by what the next layer's outputs lose.

    Args:
        problems: one per consumer, of the same units; `keep` [units] says which exist. Their
            targets are not used: y is the sum of the units' present contributions. With several
            consumers each Gram matrix is divided by its y . y, so that all have the same weight.
        width: units to keep.
        key: of the draw of outputs.
        greedy: "remove" (2017): the removed set grows; "omp" (2018): the kept set grows by matching
            pursuit; "grow": the kept set grows without scales (2018, their dense layers).
        filters: see `sampled_gram`.

    Raises:
        ArgumentError: another word.
    """
    if greedy not in GREEDY:
        raise errors.ArgumentError(f"greedy={greedy!r}; write one of {', '.join(GREEDY)}.")
    keep = np.asarray(problems[0].keep, bool)
    gram = np.zeros((len(keep), len(keep)))
    for problem in problems:
        sampled = sampled_gram(problem, key, filters)
        # y . y = sum of all G_ij, as y = sum_j x_j.
        gram += sampled / sampled.sum() if len(problems) > 1 and sampled.sum() > 0 else sampled
    alive = np.flatnonzero(keep)
    chosen = GREEDY[greedy](gram[np.ix_(alive, alive)], min(width, len(alive)))
    mask = np.zeros(len(keep), bool)
    mask[alive[chosen]] = True
    return mask


def channel_scales(
    before: Sequence[bool] | np.ndarray, key: jax.Array, filters: str = "one"
) -> Reconstructor:
    """A reconstructor that multiplies every unit's weights by one factor, equal for all outputs.

    Args:
        before: bool [units]: the units before pruning; their sum y is the target of the fit.
        key: of the draw of outputs.
        filters: see `sampled_gram`.
    """

    def reconstruct(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
        gram = sampled_gram(problem._replace(keep=np.asarray(before, bool)), key, filters)
        weight = np.asarray(problem.weight, np.float64)
        factors = scales(gram, np.asarray(problem.keep, bool))
        return weight * factors[:, None, None], np.zeros(weight.shape[-1])

    return reconstruct

"""Channels chosen greedily by what they add to the next layer, and scales for those that stay.

With x_j [rows] what unit j adds to sampled outputs and y = sum_j x_j, all that is needed is the
Gram matrix G_ij = x_i . x_j: rows never enter the loop.

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
from jprune.reconstruct._moments import CHUNK, contributions, moments

FILTERS = ("one", "all")


def remove(gram: np.ndarray, count: int) -> np.ndarray:
    """Grows the removed set T whose sum is smallest: argmin_j ||sum_T x + x_j|| at every step.

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
    own, with_sum = np.diagonal(gram), np.zeros(len(gram))
    left, order = np.ones(len(gram), bool), []
    for _ in range(count):
        unit = int(np.argmin(np.where(left, own + 2 * with_sum, np.inf)))
        left[unit] = False
        order.append(unit)
        with_sum += gram[unit]
    return np.array(order, int)


def grow(gram: np.ndarray, count: int) -> np.ndarray:
    """Grows the kept set S whose sum is nearest to y: argmin_j ||y - sum_S x - x_j||.

    Returns:
        [count] numbers of units, in the order in which they were taken.
    """
    own, missing = np.diagonal(gram), gram.sum(axis=1)
    left, order = np.ones(len(gram), bool), []
    for _ in range(count):
        unit = int(np.argmin(np.where(left, own - 2 * missing, np.inf)))
        left[unit] = False
        order.append(unit)
        missing = missing - gram[unit]
    return np.array(order, int)


def pursue(gram: np.ndarray, count: int) -> np.ndarray:
    """Orthogonal matching pursuit for y: argmax_j (x_j . r)^2 / x_j . x_j, r with scales refitted.

    Returns:
        [count] numbers of units, in the order in which they were taken.
    """
    own, whole = np.diagonal(gram), gram.sum(axis=1)
    left, order, missing = own > 0, [], whole
    for _ in range(min(count, int(left.sum()))):
        gain = missing**2 / np.where(own > 0, own, 1)
        unit = int(np.argmax(np.where(left, gain, -np.inf)))
        left[unit] = False
        order.append(unit)
        missing = whole - gram[:, order] @ scales(gram, np.array(order))[order]
    dead = np.setdiff1d(np.arange(len(gram)), order)
    return np.array([*order, *dead[: count - len(order)]], int)


def scales(gram: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The w that minimises ||y - sum over kept of w_j x_j||, 0 elsewhere.

    Where that leaves w open (dead or dependent units), the one nearest to 1.

    Args:
        gram: [units, units].
        kept: bool [units], or numbers of units.

    Example:
        >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
        >>> scales(x @ x.T, np.array([True, True, False])).tolist()
        [1.5, 1.0, 0.0]
    """
    kept = np.flatnonzero(kept) if np.asarray(kept).dtype == bool else np.asarray(kept)
    inside = gram[np.ix_(kept, kept)]
    missing = gram[kept].sum(axis=1) - inside.sum(axis=1)
    cutoff = len(inside) * np.finfo(float).eps
    result = np.zeros(len(gram))
    result[kept] = 1 + np.linalg.lstsq(inside, missing, rcond=cutoff)[0]
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
    """[units, units]: x_i . x_j, x being what units add to one output at every sampled position.

    Args:
        problem: of one consumer.
        key: of the outputs that are looked at.
        filters: "one": one output a position, drawn evenly (the paper); "all": all of them.

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
    """Bool [units]: which stay.

    Args:
        problems: one a consumer, of the same units; `keep` [units] says which are there. Their
            targets are not looked at: y is what the units add now. Several consumers count alike,
            each divided by its y . y.
        width: units to keep.
        key: of the outputs that are looked at.
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
        here = sampled_gram(problem, key, filters)
        gram += here / here.sum() if len(problems) > 1 and here.sum() > 0 else here
    alive = np.flatnonzero(keep)
    chosen = GREEDY[greedy](gram[np.ix_(alive, alive)], min(width, len(alive)))
    mask = np.zeros(len(keep), bool)
    mask[alive[chosen]] = True
    return mask


def channel_scales(
    before: Sequence[bool] | np.ndarray, key: jax.Array, filters: str = "one"
) -> Reconstructor:
    """A reconstructor that gives every unit one factor, the same for all outputs.

    Args:
        before: bool [units]: those that were there, whose sum y the scaled ones are to reproduce.
        key: of the outputs that are looked at.
        filters: see `sampled_gram`.
    """

    def reconstruct(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
        gram = sampled_gram(problem._replace(keep=np.asarray(before, bool)), key, filters)
        weight = np.asarray(problem.weight, np.float64)
        factors = scales(gram, np.asarray(problem.keep, bool))
        return weight * factors[:, None, None], np.zeros(weight.shape[-1])

    return reconstruct

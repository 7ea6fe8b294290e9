"""Weights out of random numbers: the nearest subset sum, and Malach's pair of units.

References:
    Horowitz, Sahni, Computing partitions with applications to the knapsack problem, 1974 (meeting
    in the middle). Malach et al., 2020, arXiv 2002.00585 [10].
"""

import math

import numpy as np


def best_subsets(products: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """For every target the subset of numbers whose sum is nearest to it, exactly.

    All sums of one half of the numbers are matched with the sorted sums of the other half, so the
    work is 2^(n / 2) a target instead of 2^n.

    Args:
        products: [n].
        targets: [m].

    Returns:
        [m, n] bool.

    Example:
        >>> best_subsets(np.array([0.5, -0.25, 0.125]), np.array([0.6, 0.3])).tolist()
        [[True, False, True], [True, True, False]]
    """
    first, second = np.array_split(np.asarray(products, np.float64), 2)
    left, right = _subsets(first), _subsets(second)
    left_sums, right_sums = left @ first, right @ second
    order = np.argsort(left_sums)
    ordered = left_sums[order]
    nearest = np.full(len(targets), np.inf)
    chosen = np.zeros((2, len(targets)), int)
    for number, added in enumerate(right_sums):
        wanted = targets - added
        above = np.clip(np.searchsorted(ordered, wanted), 1, len(ordered) - 1)
        place = np.where(wanted - ordered[above - 1] <= ordered[above] - wanted, above - 1, above)
        error = np.abs(wanted - ordered[place])
        better = error < nearest
        nearest[better] = error[better]
        chosen[0, better], chosen[1, better] = order[place[better]], number
    return np.concatenate([left[chosen[0]], right[chosen[1]]], axis=1)


def _subsets(numbers: np.ndarray) -> np.ndarray:
    """[2^n, n] bool: all subsets."""
    return (np.arange(2 ** len(numbers))[:, None] >> np.arange(len(numbers))) % 2 == 1


def edge_units(tolerance: float, failure: float) -> int:
    """Random units that hold an edge with probability 1 - failure: (8 / eps^2) ln(2 / delta).

    Example:
        >>> edge_units(0.1, 5e-5)
        8478
    """
    return math.ceil(8 / tolerance**2 * math.log(2 / failure))


def edge(
    alpha: float, tolerance: float, inner: np.ndarray, outer: np.ndarray
) -> tuple[int, int] | None:
    """Malach's construction of alpha x = relu(alpha x) - relu(-alpha x) from two random units.

    Args:
        alpha: the weight, |alpha| <= 1 - tolerance / 2.
        tolerance: eps: the error is at most eps |x|.
        inner: [k] weights before the units, of U[-1, 1].
        outer: [k] weights behind them, of U[-1, 1].

    Returns:
        The units i, j that are kept, with |inner_i - alpha|, |outer_i - 1|, |inner_j + alpha| and
        |outer_j + 1| at most eps / 2; None where there are none.

    Example:
        >>> edge(0.5, 0.1, np.array([0.1, 0.52, -0.47]), np.array([0.9, 0.98, -0.99]))
        (1, 2)
    """
    found = []
    for sign in (1, -1):
        distance = np.maximum(np.abs(inner - sign * alpha), np.abs(outer - sign))
        if not distance.size or distance.min() > tolerance / 2:
            return None
        found.append(int(distance.argmin()))
    return found[0], found[1]

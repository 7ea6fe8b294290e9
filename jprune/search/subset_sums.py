"""Weights approximated by random numbers: the nearest subset sum, and Malach's pair of units.

References:
    Horowitz, Sahni, Computing partitions with applications to the knapsack problem, 1974 (meeting
    in the middle). Malach et al., 2020, arXiv 2002.00585 [10].
"""

import math

import numpy as np


def best_subsets(products: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """For every target the subset of numbers whose sum is nearest to it, exactly.

    Every subset sum of one half of the numbers is matched with the sorted sums of the other half,
    so the work per target is 2^(n / 2) binary searches instead of 2^n sums.

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
    first_subsets, second_subsets = _subsets(first), _subsets(second)
    first_sums, second_sums = first_subsets @ first, second_subsets @ second
    order = np.argsort(first_sums)
    ordered = first_sums[order]
    nearest = np.full(len(targets), np.inf)
    chosen = np.zeros((2, len(targets)), int)
    for number, added in enumerate(second_sums):
        # first + second = target: the first half's sum that is nearest to target - second is one of
        # its two neighbours in sorted order.
        wanted = targets - added
        above = np.clip(np.searchsorted(ordered, wanted), 1, len(ordered) - 1)
        place = np.where(wanted - ordered[above - 1] <= ordered[above] - wanted, above - 1, above)
        error = np.abs(wanted - ordered[place])
        better = error < nearest
        nearest[better] = error[better]
        chosen[0, better], chosen[1, better] = order[place[better]], number
    return np.concatenate([first_subsets[chosen[0]], second_subsets[chosen[1]]], axis=1)


def _subsets(numbers: np.ndarray) -> np.ndarray:
    """[2^n, n] bool: all subsets; row r is r in binary, lowest bit first."""
    return (np.arange(2 ** len(numbers))[:, None] >> np.arange(len(numbers))) % 2 == 1


def edge_units(tolerance: float, failure: float) -> int:
    """Random units among which `edge` succeeds with probability 1 - failure.

    Example:
        >>> edge_units(0.1, 5e-5)
        8478
    """
    # k >= (8 / eps^2) ln(2 / delta): one unit fits with probability eps/2 * eps/4 = eps^2 / 8, two
    # kinds are needed, and 2 (1 - eps^2 / 8)^k <= 2 exp(-k eps^2 / 8) <= delta.
    return math.ceil(8 / tolerance**2 * math.log(2 / failure))


def edge(
    alpha: float, tolerance: float, inner: np.ndarray, outer: np.ndarray
) -> tuple[int, int] | None:
    """Malach's construction of a weight alpha from two random units.

    A weight is alpha x = relu(alpha x) - relu(-alpha x). Unit i computes u_i relu(w_i x), so one
    unit with w ~ alpha, u ~ 1 and one with w ~ -alpha, u ~ -1 are needed.

    Args:
        alpha: the weight, |alpha| <= 1 - tolerance / 2.
        tolerance: eps: the error is at most eps |x|.
        inner: [k] weights w into the units, uniform in [-1, 1].
        outer: [k] weights u out of them, uniform in [-1, 1].

    Returns:
        The units i, j to keep, with |w_i - alpha|, |u_i - 1|, |w_j + alpha| and |u_j + 1| at most
        eps / 2; None where there are none.

    Example:
        >>> edge(0.5, 0.1, np.array([0.1, 0.52, -0.47]), np.array([0.9, 0.98, -0.99]))
        (1, 2)
    """
    units = []
    for sign in (1, -1):
        # max(|w - s alpha|, |u - s|) <= eps / 2, for s = 1 and s = -1
        distance = np.maximum(np.abs(inner - sign * alpha), np.abs(outer - sign))
        if not distance.size or distance.min() > tolerance / 2:
            return None
        units.append(int(distance.argmin()))
    return units[0], units[1]

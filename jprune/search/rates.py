"""Rates for the layers of a net under a constraint on all of them.

References:
    Liu, Ma, Xu, Wang, Tang, Ye, AutoCompress: an automatic DNN structured pruning framework for
    ultra-high compression rates, 2020, arXiv 1907.03141 [37].
"""

from collections.abc import Callable

import numpy as np


def by_size(
    sizes: np.ndarray,
    goal: float,
    kinds: np.ndarray | None = None,
    price: Callable[[np.ndarray], float] | None = None,
) -> Callable[[np.ndarray], np.ndarray | None]:
    """Rates for layers: larger ones for larger layers, scaled until the constraint holds.

    Args:
        sizes: [layers]: weights n_l.
        goal: S, the fraction that goes.
        kinds: [layers]: rates are sorted among layers of the same number alone; None: among all.
        price: `rates -> fraction that is left`, falling with the rates; None: the weights that go
            are sum n_l s_l.

    Returns:
        `rates -> rates`; None where one of them would be 1 or more: clipping would break the
        constraint.

    Example:
        >>> by_size(np.array([100, 400, 1600]), 0.5)(np.array([0.6, 0.2, 0.4])).round(4)
        array([0.1842, 0.3684, 0.5526])
    """
    numbers = np.zeros(len(sizes)) if kinds is None else np.asarray(kinds)

    def arrange(rates: np.ndarray) -> np.ndarray | None:
        ordered = np.array(rates, float)
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            # The prior of the paper: what has more weights bears a larger rate.
            ordered[places[np.argsort(sizes[places], kind="stable")]] = np.sort(ordered[places])
        if not ordered.max() > 0:
            return None
        if price is None:
            # s <- s S / (sum n_l s_l / sum n_l)
            scaled = ordered * goal / (sizes @ ordered / sizes.sum())
            return scaled if scaled.max() < 1 else None
        return _scaled(ordered, price, 1 - goal)

    return arrange


def _scaled(
    rates: np.ndarray, price: Callable[[np.ndarray], float], most: float
) -> np.ndarray | None:
    """Rates times the smallest factor whose price is at most so much."""
    low, high = 0.0, (1 - 1e-6) / rates.max()
    if price(high * rates) > most:
        return None
    # Counts are whole: 20 halvings tell apart rates that differ by one group in a million.
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if price(middle * rates) <= most else (middle, high)
    return high * rates

"""What the next decision may be, so that a budget can still be met by those that follow.

References:
    He, Lin, Liu, Wang, Li, Han, AMC: AutoML for model compression and acceleration on mobile
    devices, 2018, arXiv 1802.03494.
    Liu, Guo, Guo, Jiang, Chen, Conditional automated channel pruning for deep neural networks,
    2021, arXiv 2009.09724 [48], whose bound counts what reads a layer as if all of it stayed.
"""

from collections.abc import Callable

import numpy as np

Price = Callable[[np.ndarray], np.ndarray]
"""`price(widths [p, groups]) -> [p]`: fractions of the dense net."""


def bound(
    price: Price,
    chosen: np.ndarray,
    lowest: np.ndarray,
    goal: float,
    own: Callable[[np.ndarray], np.ndarray] | None = None,
) -> float:
    """How much of the next group may stay, so that the goal can still be met.

    All later groups are counted at their lowest. The price is taken to be linear in one group;
    where it is convex (a residual stream is on both sides of a layer), the bound is on the safe
    side.

    Args:
        price: of ratios [p, groups].
        chosen: [t]: ratios decided already; group t is next.
        lowest: [groups].
        goal: the price that may be paid.
        own: `own(ratios [groups]) -> [groups]`: the price of the layers that make a group. With it,
            what reads group t is counted as if all of it stayed. None: it is counted as it is.

    Returns:
        A ratio, which may be above 1, or below the lowest where the goal is out of reach.

    Example:
        >>> price = lambda a: (10 * a[:, 0] + 20 * a[:, 0] * a[:, 1]) / 30  # two layers in a row
        >>> round(bound(price, np.array([1.0]), np.array([0.2, 0.2]), goal=0.5), 6)
        0.25
    """
    place = len(chosen)
    ends = np.array([[*chosen, end, *lowest[place + 1 :]] for end in (0.0, 1.0)])
    none, whole = price(ends).tolist()
    if own is not None:
        none = whole - float(own(ends[1])[place])
    # a_max = (beta F - F(a_t = 0)) / (F(a_t = 1) - F(a_t = 0))
    return (goal - none) / (whole - none) if whole > none else np.inf


def rounded_up(size: int, ratio: float, step: int) -> int:
    """Units for a ratio: the next multiple of the step, or the last one; all of them for 1.

    Example:
        >>> rounded_up(64, 0.4, 8), rounded_up(12, 0.99, 8), rounded_up(12, 1.0, 8)
        (32, 8, 12)
    """
    if ratio >= 1:
        return size
    # d = ceil(max(1, round(C a)) / q) q, at most floor(C / q) q
    width = int(np.ceil(max(1, np.round(size * ratio)) / step) * step)
    return width if width <= size else size // step * step

"""A layer's weights are deleted one by one, each time the others of that output adapted exactly.

With squared errors of a layer's outputs, every output has the same Hessian, 2 X^T X / n, and no
weight of another output matters.

References:
    Frantar, Singh, Alistarh, Optimal brain compression, 2022, arXiv 2208.11580.
"""

import numpy as np
import scipy.linalg

from jprune.curvature import damped_inverse, deletions, without_dead
from jprune.masks import best
from jprune.reconstruct.moments import checked


def eliminate(
    hessian: np.ndarray,
    weights: np.ndarray,
    count: int,
    alive: np.ndarray | None = None,
    damping: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Keeps `count` weights of a layer; those that stay have the least error that they can have.

    For every output alone, the weight that costs least, w^2 / (2 [H^-1]_pp), is deleted, the others
    make up for it, and so on to the last. Of these sequences the cheapest beginnings are taken, the
    next cheapest deletion of any output first, until so many weights are left. That takes some n^3
    operations for every output: seconds a layer for hundreds of inputs, hours for thousands.

    Args:
        hessian: H [n, n]: 2 X^T X over the number of rows, X the layer's inputs.
        weights: [n, outputs].
        count: how many weights stay.
        alive: bool [n, outputs]: False where a weight is gone already; None: all are there.
        damping: added to the diagonal, over its mean; 0 in the paper. Where H has no inverse, it is
            raised as far as it must. An input that is always 0 loses its weights at no cost.

    Returns:
        New weights [n, outputs], 0 where a weight is gone; bool [n, outputs]: those that stay.

    Raises:
        ArgumentError: shapes that do not fit, a damping below 0, or more weights to keep than there
            are.

    Example:
        >>> hessian = np.array([[2.0, 1.0], [1.0, 2.0]])
        >>> weights, keep = eliminate(hessian, np.array([[1.0], [1.1]]), 1)
        >>> weights[:, 0].round(6).tolist(), keep[:, 0].tolist()
        ([0.0, 1.6], [False, True])
    """
    hessian, weights, alive = checked(hessian, weights, count, alive, damping)
    hessian, weights = without_dead(hessian, weights)
    size, outputs = weights.shape
    order = np.zeros((outputs, size), int)
    # +inf: what is gone is in no sequence, and is never taken from one.
    costs = np.full((outputs, size), np.inf)
    inverse = damped_inverse(hessian, damping)
    for output in range(outputs):
        there = np.flatnonzero(alive[:, output])
        whole = len(there) == size
        own = inverse.copy() if whole else damped_inverse(hessian[np.ix_(there, there)], damping)
        moved = weights[there, output].copy()
        found = list(deletions(moved, own))
        order[output, : len(found)] = there[[deletion.place for deletion in found]]
        costs[output, : len(found)] = [deletion.loss for deletion in found]
    # The next cheapest deletion of any output, again and again: in the order of the largest cost
    # so far, since a costly deletion stands before all that follow it.
    so_far = np.maximum.accumulate(costs, axis=1)
    taken = best(-so_far.ravel(), int(alive.sum()) - count).reshape(outputs, size)
    keep = alive.copy()
    for output in range(outputs):
        keep[order[output, taken[output]], output] = False
    return refitted(hessian, weights, keep), keep


def refitted(hessian: np.ndarray, weights: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The weights of least squared error (v - w)^T H (v - w) that are 0 where they are not kept.

    Args:
        hessian: [n, n].
        weights: w [n, outputs].
        keep: bool [n, outputs].

    Example:
        >>> hessian = np.array([[2.0, 1.0], [1.0, 2.0]])
        >>> refitted(hessian, np.ones((2, 1)), np.array([[False], [True]]))[:, 0].tolist()
        [0.0, 1.5]
    """
    result = weights * keep
    # Outputs that keep the same inputs share a factorisation.
    patterns, which = np.unique(keep, axis=1, return_inverse=True)
    for number, stay in enumerate(patterns.T):
        columns = np.flatnonzero(which.ravel() == number)
        if stay.all() or not stay.any():
            continue
        # v_R = w_R + H_RR^-1 H_RQ w_Q
        part = hessian[np.ix_(stay, stay)]
        pull = hessian[np.ix_(stay, ~stay)] @ weights[np.ix_(~stay, columns)]
        result[np.ix_(stay, columns)] += _solved(part, pull)
    return result


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    try:
        return scipy.linalg.solve(matrix, right, assume_a="pos")
    except np.linalg.LinAlgError:
        # Inputs that say the same: of all solutions the smallest change.
        return np.linalg.lstsq(matrix, right, rcond=None)[0]

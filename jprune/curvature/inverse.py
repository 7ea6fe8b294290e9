"""The inverse of an outer-product Hessian, and the deletion step of OBS. On the host, in float64.

float64 because rounding errors add up over thousands of updates; JAX defaults to float32.

References:
    Hassibi, Stork, Second order derivatives for network pruning: optimal brain surgeon, 1993,
    Advances in Neural Information Processing Systems 5 [2].
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jprune import errors

WAITING = 64
"""Deletions whose updates of the inverse are applied together."""
RAISED = tuple(10.0**power for power in range(-10, 0))
"""Dampings that are tried one after the other where a Hessian has no inverse."""
PANEL = 256
"""Rows of an inverse that are updated at a time: memory for a product of so many rows is enough."""


class Deletion(NamedTuple):
    """The weight that is deleted next.

    Attributes:
        loss: predicted increase of the loss, L_q = w_q^2 / (2 [H^-1]_qq).
        place: q, the number of the weight.
    """

    loss: float
    place: int


def identity(size: int, alpha: float) -> np.ndarray:
    """I / alpha, the inverse that the recursion starts from: alpha I damps the Hessian.

    Raises:
        ArgumentError: alpha is not above 0.
    """
    if not alpha > 0:
        raise errors.ArgumentError(
            f"alpha={alpha} must be above 0: the recursion begins with I / alpha. The paper takes "
            "1e-8 to 1e-4."
        )
    inverse = np.zeros((size, size))
    np.fill_diagonal(inverse, 1 / alpha)
    return inverse


def _subtract_squares(inverse: np.ndarray, rows: np.ndarray) -> None:
    """Inverse -= rows^T rows, in place and symmetric, without a second matrix of that size."""
    for start in range(0, len(inverse), PANEL):
        stop = start + PANEL
        panel = rows[:, start:stop]
        inverse[start:stop, start:stop] -= panel.T @ panel
        # What is right of the panel's square, and its mirror image below.
        inverse[start:stop, stop:] -= panel.T @ rows[:, stop:]
        inverse[stop:, start:stop] = inverse[start:stop, stop:].T


def with_rows(inverse: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(H + sum_i r_i r_i^T)^-1 from H^-1.

    One row is the Sherman-Morrison step of the paper, H^-1 - H^-1 r r^T H^-1 / (1 + r^T H^-1 r),
    with r = X / sqrt(P). Several rows at once (Woodbury) give the same result, faster.

    Args:
        inverse: [n, n] float64, symmetric; written in place.
        rows: [m, n].

    Returns:
        The inverse, [n, n], symmetric.

    Example:
        >>> with_rows(np.eye(2), np.array([[1.0, 0.0]])).round(9).tolist()
        [[0.5, 0.0], [0.0, 1.0]]
    """
    for start in range(0, len(rows), WAITING):
        some = np.asarray(rows[start : start + WAITING], np.float64)
        # (H + R^T R)^-1 = H^-1 - H^-1 R^T (I + R H^-1 R^T)^-1 R H^-1, R [rows, n] (Woodbury).
        product = some @ inverse
        middle = np.eye(len(some)) + product @ some.T
        # With the middle as C C^T the subtracted term is half^T half, symmetric by construction.
        half = np.linalg.solve(np.linalg.cholesky(middle), product)
        _subtract_squares(inverse, half)
    return inverse


def deletions(
    weights: np.ndarray, inverse: np.ndarray, candidates: np.ndarray | None = None
) -> Iterator[Deletion]:
    """The weights in the order in which OBS deletes them.

    Each item proposes a weight q; asking for the next item deletes it. All weights then move by
    -w_q H^-1_q / [H^-1]_qq (H^-1_q is column q), w_q becomes 0 and stays so, and the inverse
    becomes that of the Hessian without q, H^-1 - H^-1_q (H^-1_q)^T / [H^-1]_qq. On a quadratic loss
    the proposed increases are exact.

    Args:
        weights: [n] float64; written in place.
        inverse: [n, n] float64, of the Hessian of all n; written in place, with the updates of up
            to `WAITING` deletions outstanding.
        candidates: bool [n]: True may be deleted, False only moves; None: all may be deleted.

    Yields:
        The deletions, until no candidate is left; the smallest L_q first, ties by lowest index.

    Raises:
        ArgumentError: weights or an inverse that are not float64.

    Example:
        >>> weights = np.array([1.0, 1.0])
        >>> order = deletions(weights, np.linalg.inv(np.array([[2.0, 1.0], [1.0, 2.0]])))
        >>> round(next(order).loss, 6), next(order).place, weights.tolist()
        (0.75, 1, [0.0, 1.5])
    """
    if weights.dtype != np.float64 or inverse.dtype != np.float64:
        raise errors.ArgumentError(
            f"deletions got weights of {weights.dtype} and an inverse of {inverse.dtype}; both are "
            "written in place and must be float64. Write np.asarray(w, np.float64)."
        )
    # By hand, for H = ((2, 1), (1, 2)) and w = (1, 1): H^-1 = ((2, -1), (-1, 2)) / 3, so both
    # L_q = 1 / (2 * 2/3) = 0.75. Deleting w_0 moves w_1 by -1 / (2/3) * (-1/3) = 0.5, to 1.5, and
    # leaves [H^-1]_11 = 2/3 - (1/3)^2 / (2/3) = 1/2, the inverse of the 2 that remains of H.
    open_ = np.ones(len(weights), bool) if candidates is None else np.array(candidates, bool)
    gone = np.zeros(len(weights), bool)
    diagonal = inverse.diagonal().copy()
    # An update changes all n^2 entries, but the next deletion reads one column and the diagonal.
    # So updates are kept as vectors c with H^-1 = inverse - sum of c c^T, and applied in one matrix
    # product when WAITING of them have come together.
    columns = np.zeros((WAITING, len(weights)))
    waiting = 0
    while open_.any():
        # Rounding may turn a diagonal entry near zero negative.
        safe = np.maximum(diagonal, np.finfo(float).tiny)
        # L_q = w_q^2 / (2 [H^-1]_qq)  (Hassibi and Stork, eq. 5)
        losses = np.where(open_, weights**2 / (2 * safe), np.inf)
        q = int(losses.argmin())
        yield Deletion(float(losses[q]), q)
        # c = H^-1_q / sqrt([H^-1]_qq); exactly 0 at deleted weights, which rounding would revive.
        column = (inverse[q] - columns[:waiting, q] @ columns[:waiting]) / np.sqrt(safe[q])
        column[gone] = 0
        # dw = -w_q / [H^-1]_qq H^-1_q = -w_q / sqrt([H^-1]_qq) c
        weights -= weights[q] / np.sqrt(safe[q]) * column
        weights[q] = 0
        open_[q], gone[q] = False, True
        # H^-1 <- H^-1 - H^-1_q (H^-1_q)^T / [H^-1]_qq = H^-1 - c c^T
        diagonal -= column**2
        columns[waiting] = column
        waiting += 1
        if waiting == WAITING:
            _subtract_squares(inverse, columns)
            waiting = 0


def without_dead(hessian: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs that are always 0 get a curvature of 1 and weights of 0: copies of both.

    Args:
        hessian: [n, n]; its diagonal is 0 at such inputs.
        weights: [n, outputs].

    Example:
        >>> _, weights = without_dead(np.diag([2.0, 0.0]), np.ones((2, 1)))
        >>> weights[:, 0].tolist()
        [1.0, 0.0]
    """
    dead = hessian.diagonal() == 0
    return hessian + np.diag(dead.astype(float)), weights * ~dead[:, None]


def damped_inverse(hessian: np.ndarray, damping: float) -> np.ndarray:
    """(H + damping mean(diag H) I)^-1, with as much more damping as it must have.

    Args:
        hessian: H [n, n] float64, symmetric.
        damping: 0 or more; where there is no inverse, 1e-10, 1e-9, ... up to 0.1 are tried.

    Returns:
        [n, n].

    Raises:
        ArgumentError: none of them helps.

    Example:
        >>> damped_inverse(np.diag([1.0, 3.0]), 0.5).round(6).tolist()
        [[0.5, 0.0], [0.0, 0.25]]
    """
    mean = hessian.diagonal().mean() if len(hessian) else 1.0
    for more in (damping, *(each for each in RAISED if each > damping)):
        try:
            root = np.linalg.cholesky(hessian + more * mean * np.eye(len(hessian)))
        except np.linalg.LinAlgError:
            continue
        if not np.isfinite(root).all():
            continue
        half = np.linalg.inv(root)
        return half.T @ half
    raise errors.ArgumentError(
        "a layer's Hessian has no inverse whatever the damping: its inputs are not finite. Check "
        "the net and its data before pruning."
    )

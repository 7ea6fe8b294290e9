"""A layer's weights cut by magnitude, those that hurt together put back, the rest refitted.

What a set of removed weights does to an output is not the sum of what each of them does: two that
cancel are harmless together. So the weights of least magnitude go first, more than should, and then
come back one by one, always the one whose return lowers the error of the output most.

References:
    Yang, Chen, Sze, Designing energy-efficient convolutional neural networks using energy-aware
    pruning, 2017, arXiv 1611.05128 [22].
"""

import numpy as np

from jprune import errors

CHUNK = 2**25
"""Numbers of the batched normal equations that are held at a time."""


def restored(
    gram: np.ndarray,
    cross: np.ndarray,
    weights: np.ndarray,
    count: int,
    back: float = 0.2,
    alive: np.ndarray | None = None,
) -> np.ndarray:
    """Which weights of every output stay: the largest, and those that lower its error most.

    Args:
        gram: X^T X [n, n], X the layer's inputs.
        cross: X^T Y [n, outputs], Y the outputs that it should have.
        weights: a [n, outputs].
        count: q, how many weights of every output stay.
        back: fraction of q that is chosen by its effect, in [0, 1]; the rest by magnitude.
        alive: bool [n, outputs]: False where a weight is gone already; None: all are there.

    Returns:
        Bool [n, outputs]: q of each output, or as many as are alive.

    Raises:
        ArgumentError: shapes that do not fit, or numbers out of range.

    Example:
        >>> x = np.array([[1.0, 1.0, 0.1], [2.0, 2.0, 0.0]])  # x_0 = x_1, and a_0 = -a_1
        >>> weights = np.array([[1.0], [-1.0], [0.9]])
        >>> keep = restored(x.T @ x, x.T @ x @ weights, weights, 1, back=1.0)
        >>> keep[:, 0].tolist()
        [False, False, True]
    """
    alive = np.ones(weights.shape, bool) if alive is None else np.asarray(alive, bool)
    _check(gram, cross, weights, alive)
    if not (1 <= count <= len(weights) and 0 <= back <= 1):
        raise errors.ArgumentError(
            f"restored(count={count}, back={back}) of {len(weights)} weights; write a count from 1 "
            f"to {len(weights)}, and back in [0, 1]."
        )
    outputs = np.arange(weights.shape[1])
    first = count - round(back * count)
    order = np.argsort(np.where(alive, -np.abs(weights), np.inf), axis=0, kind="stable")
    keep = np.zeros(weights.shape, bool)
    keep[order[:first], outputs] = True
    keep &= alive
    # X^T r with r = y - X a_S, for every output
    missing = cross - gram @ (weights * keep)
    size = np.diagonal(gram)[:, None]
    for _ in range(count - first):
        # ||r||^2 - ||r - a_j x_j||^2 = 2 a_j x_j . r - a_j^2 ||x_j||^2
        gain = 2 * weights * missing - weights**2 * size
        gain = np.where(keep | ~alive, -np.inf, gain)
        best = gain.argmax(axis=0)
        there = gain[best, outputs] > -np.inf
        keep[best[there], outputs[there]] = True
        missing -= gram[:, best] * np.where(there, weights[best, outputs], 0.0)
    return keep


def refit(
    gram: np.ndarray,
    cross: np.ndarray,
    keep: np.ndarray,
    weights: np.ndarray,
    ridge: float = 1e-6,
) -> np.ndarray:
    """Least squares of every output on its own weights, all outputs in batches.

    Args:
        gram: X^T X [n, n].
        cross: X^T Y [n, outputs].
        keep: bool [n, outputs]; every output may keep others.
        weights: [n, outputs]: the old ones, to which the ridge pulls.
        ridge: over the mean of the diagonal of X^T X; 0 is least squares, and the smallest solution
            where there are several.

    Returns:
        [n, outputs]; 0 where a weight is not kept.

    Raises:
        ArgumentError: shapes that do not fit, or a negative ridge.

    Example:
        >>> x = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
        >>> keep = np.array([[True], [False]])
        >>> refit(x.T @ x, x.T @ x @ np.ones((2, 1)), keep, np.ones((2, 1)), 0.0).ravel().tolist()
        [3.0, 0.0]
    """
    _check(gram, cross, weights, keep)
    if not ridge >= 0:
        raise errors.ArgumentError(f"refit(ridge={ridge}); write 0 or more.")
    size, outputs = weights.shape
    most, pull = int(keep.sum(axis=0).max(initial=0)), ridge * float(np.diagonal(gram).mean())
    result = np.zeros((size, outputs))
    if not most:
        return result
    # Places of the kept weights of every output, padded to the same number.
    places = np.argsort(~keep, axis=0, kind="stable")[:most].T  # [outputs, most]
    step = max(1, CHUNK // most**2)
    for start in range(0, outputs, step):
        own = slice(start, start + step)
        index, number = places[own], np.arange(outputs)[own, None]
        there = keep[index, number]
        # (M G M + (I - M)) a = M b, and ridge on both sides
        both = there[:, :, None] & there[:, None, :]
        matrix = np.where(both, gram[index[:, :, None], index[:, None, :]], 0.0)
        matrix += np.eye(most) * np.where(there, pull, 1.0)[:, None, :]
        right = there * (cross[index, number] + pull * weights[index, number])
        if ridge == 0:
            solved = np.einsum("opq,oq->op", np.linalg.pinv(matrix, hermitian=True), right)
        else:
            solved = np.linalg.solve(matrix, right[..., None])[..., 0]
        result[index, number] = np.where(there, solved, 0.0)
    return result


def _check(gram: np.ndarray, cross: np.ndarray, weights: np.ndarray, keep: np.ndarray) -> None:
    size = len(weights)
    shapes = [np.shape(array) for array in (gram, cross, weights, keep)]
    if shapes != [(size, size), *[(size, weights.shape[1])] * 3]:
        raise errors.ArgumentError(
            f"arrays of shapes {shapes} came; expected are X^T X [n, n], and X^T Y, weights and "
            "masks [n, outputs]."
        )

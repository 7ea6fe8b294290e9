"""Least squares into the consumer: its weights refitted to the units that stay."""

import numpy as np
import scipy.linalg

from jprune import errors
from jprune.base import Problem
from jprune.reconstruct.moments import CHUNK, Moments, moments

RIDGE = 1e-6
SHORT = 1e-2


def least_squares(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Weights W, and a bias b, that minimise ||Y - X W - b||^2 over the kept units.

    Where the rows do not determine the weights, those nearest to the old ones are taken: the ridge
    pulls towards the old weights, not towards zero:

        minimise ||Y - X W - b||^2 + ridge * mean(diag(X^T X)) * ||W - W_old||^2

    Solved in float64 on the host from second moments. Factors of single errors stand inside the
    square, and every output is then solved by itself; an output whose factors are all 0 keeps its
    weights.

    Args:
        problem: `ridge` None means 1e-6, or 1e-2 where there are fewer than two rows for every
            unknown of an output (dead units and short calibration sets); 0 means the
            pseudo-inverse. With `bias`, `b` is fitted too. Rows of weight 0 are ignored.

    Returns:
        `(weight [units, window, outputs], bias [outputs])`: zeros where units are not kept, and
        for a bias that was not asked for.

    Raises:
        ArgumentError: shapes that do not fit, no row, or a negative ridge.

    References:
        He, Zhang, Sun, Channel pruning for accelerating very deep neural networks, 2017, arXiv
        1707.06168 [19], eq. 2 (W'), in their code with an intercept. The ridge is ours.

    Example:
        >>> x = np.array([[[1.0], [2.0]], [[2.0], [4.0]], [[3.0], [6.0]]])  # x_1 = 2 x_0
        >>> weight = np.ones((2, 1, 1))
        >>> problem = Problem(x, x.sum(axis=1), weight, np.array([True, False]), ridge=0.0)
        >>> least_squares(problem)[0].ravel().round(6).tolist()
        [3.0, 0.0]
    """
    check(problem)
    if problem.errors is not None:
        return _by_output(problem)
    sums = moments(problem)
    # With an intercept, W minimises ||(Y - mean) - (X - mean) W||^2 and b follows from the means.
    used = sums.centred() if problem.bias else sums
    units, window, outputs = problem.weight.shape
    keep = np.asarray(problem.keep, bool)
    # [units] or [units, outputs] -> [units * window, outputs], one row per row of W.
    keep = np.repeat(keep if keep.ndim == 2 else keep[:, None], window, axis=0)
    keep = np.broadcast_to(keep, (units * window, outputs))
    weight = np.asarray(problem.weight, np.float64).reshape(units * window, outputs) * keep
    # Outputs that read the same units share one factorisation; mostly that is all of them.
    patterns, which = np.unique(keep, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        columns = np.flatnonzero(which.ravel() == number)
        if pattern.any():
            weight[np.ix_(pattern, columns)] += _change(
                used, weight[:, columns], pattern, columns, problem
            )
    bias = np.zeros(outputs)
    if problem.bias:
        # b = mean Y - mean X W
        bias = (sums.targets - sums.inputs @ weight) / sums.rows
    return weight.reshape(units, window, outputs), bias


def _by_output(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The solution where rows weigh differently in every output."""
    outputs = problem.targets.shape[1]
    keep = np.asarray(problem.keep, bool)
    keep = np.broadcast_to(keep if keep.ndim == 2 else keep[:, None], (len(keep), outputs))
    weight, bias = np.array(problem.weight, np.float64) * keep[:, None], np.zeros(outputs)
    rows = 1.0 if problem.rows is None else np.asarray(problem.rows, np.float64)
    for number in range(outputs):
        # sum_n e_n^2 (y_n - x_n w)^2, the weights scaled to a mean of 1: rows count as rows.
        square = np.asarray(problem.errors[:, number], np.float64) ** 2 * rows
        units = keep[:, number]
        if square.sum() <= 0 or not units.any():
            continue
        one = Problem(
            inputs=problem.inputs[:, units],
            targets=problem.targets[:, number : number + 1],
            weight=problem.weight[units][:, :, number : number + 1],
            keep=np.ones(int(units.sum()), bool),
            rows=square / square.mean(),
            ridge=problem.ridge,
            bias=problem.bias,
        )
        solved, offset = least_squares(one)
        weight[units, :, number], bias[number] = solved[:, :, 0], offset[0]
    return weight, bias


def _change(
    sums: Moments, weight: np.ndarray, pattern: np.ndarray, columns: np.ndarray, problem: Problem
) -> np.ndarray:
    """[weights in the pattern, columns]: what is added to the weights that stay."""
    # Solved for D = W - W_old: (X^T X + ridge I) D = X^T (Y - X W_old). The ridge shrinks D, not W.
    gram = sums.gram[np.ix_(pattern, pattern)]
    missing = (sums.cross[:, columns] - sums.gram @ weight)[pattern]
    few = sums.rows < 2 * (pattern.sum() + problem.bias)
    ridge = problem.ridge if problem.ridge is not None else SHORT if few else RIDGE
    # mean(diag(X^T X)) makes the ridge independent of the scale of the inputs; 0: all are dead.
    size = float(np.diagonal(gram).mean())
    if size <= 0:
        return np.zeros_like(missing)
    if ridge == 0:
        return np.linalg.lstsq(gram, missing, rcond=len(gram) * np.finfo(float).eps)[0]
    damped = gram + ridge * size * np.eye(len(gram))
    return scipy.linalg.solve(damped, missing, assume_a="pos")


def relative_error(problem: Problem, weight: np.ndarray, bias: np.ndarray | None = None) -> float:
    """||Y - X W - b||^2 / ||Y||^2; 0 where Y is zero.

    Example:
        >>> x = np.array([[[1.0], [1.0]]])
        >>> problem = Problem(x, np.array([[2.0]]), np.ones((2, 1, 1)), np.ones(2, bool))
        >>> relative_error(problem, np.array([1.0, 0.0]).reshape(2, 1, 1))
        0.25
    """
    flat = np.asarray(weight, np.float64).reshape(-1, problem.targets.shape[1])
    offset = 0.0 if bias is None else bias
    error, size = 0.0, 0.0
    for start in range(0, len(problem.inputs), CHUNK):
        rows = slice(start, start + CHUNK)
        y = np.asarray(problem.targets[rows], np.float64)
        x = np.asarray(problem.inputs[rows], np.float64).reshape(len(y), -1)
        error += float(((y - x @ flat - offset) ** 2).sum())
        size += float((y**2).sum())
    return error / size if size else 0.0


def check(problem: Problem) -> None:
    """Refuses a problem whose arrays do not fit together, or with a negative ridge.

    Raises:
        ArgumentError: shapes that do not fit, no row, or a negative ridge.
    """
    shapes = {
        "inputs": np.shape(problem.inputs),
        "targets": np.shape(problem.targets),
        "weight": np.shape(problem.weight),
        "keep": np.shape(problem.keep),
    }
    if len(shapes["inputs"]) != 3 or len(shapes["targets"]) != 2:
        fits = False
    else:
        (rows, units, window), (count, outputs) = shapes["inputs"], shapes["targets"]
        fits = (
            rows == count > 0
            and shapes["weight"] == (units, window, outputs)
            and shapes["keep"] in ((units,), (units, outputs))
            and (problem.rows is None or np.shape(problem.rows) == (rows,))
            and (problem.errors is None or np.shape(problem.errors) == (rows, outputs))
        )
    if not fits:
        raise errors.ArgumentError(
            f"a reconstruction came with shapes {shapes}; expected are inputs [n, units, window], "
            "targets [n, outputs], weight [units, window, outputs], keep [units] or "
            "[units, outputs], errors [n, outputs] or None, and one row or more."
        )
    if problem.ridge is not None and not problem.ridge >= 0:
        raise errors.ArgumentError(
            f"a reconstruction with ridge={problem.ridge}; write 0 or more, or None for the rule."
        )

"""Second moments of a reconstruction problem: all that selection and refit read of its rows."""

from typing import NamedTuple

import numpy as np

from jprune import errors
from jprune.base import Problem

CHUNK = 8192
"""Rows that are converted to float64 at a time; all at once would double their memory."""


class Moments(NamedTuple):
    """Sums over rows, each times its row's weight; p is units times window.

    Attributes:
        gram: [p, p]: X^T X.
        cross: [p, outputs]: X^T Y.
        square: ||Y||^2.
        rows: sum of the rows' weights.
        inputs: [p]: sum of X.
        targets: [outputs]: sum of Y.
    """

    gram: np.ndarray
    cross: np.ndarray
    square: float
    rows: float
    inputs: np.ndarray
    targets: np.ndarray

    def centred(self) -> "Moments":
        """Around the means: the moments of a fit with an intercept."""
        x, y = self.inputs, self.targets
        # sum (x - mean x)(y - mean y)^T = sum x y^T - (sum x)(sum y)^T / n
        return self._replace(
            gram=self.gram - np.outer(x, x) / self.rows,
            cross=self.cross - np.outer(x, y) / self.rows,
            square=self.square - float(y @ y) / self.rows,
        )


def moments(problem: Problem) -> Moments:
    """The moments of a problem's rows, in float64."""
    count, units, window = problem.inputs.shape
    size, outputs = units * window, problem.targets.shape[1]
    weight = np.ones(count) if problem.rows is None else np.asarray(problem.rows, np.float64)
    gram, cross = np.zeros((size, size)), np.zeros((size, outputs))
    square, inputs, targets = 0.0, np.zeros(size), np.zeros(outputs)
    for start in range(0, count, CHUNK):
        rows = slice(start, start + CHUNK)
        x = np.asarray(problem.inputs[rows], np.float64).reshape(-1, size)
        y, w = np.asarray(problem.targets[rows], np.float64), weight[rows]
        # X^T diag(w) X and X^T diag(w) Y, added chunk by chunk.
        gram += (x.T * w) @ x
        cross += (x.T * w) @ y
        square += float(w @ (y**2).sum(axis=1))
        inputs += w @ x
        targets += w @ y
    return Moments(gram, cross, square, float(weight.sum()), inputs, targets)


def contributions(problem: Problem, sums: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of the units' contributions to the outputs, at the present weights.

    Unit i contributes Z_i = X_i W_i [rows, outputs]. <Z_i, Z_j> is the sum over block i, j of
    (X^T X) o (W W^T), and <Z_i, Y> the sum over block i of (X^T Y) o W, so that no array of all
    rows and outputs is needed.

    Returns:
        `([units, units] <Z_i, Z_j>, [units] <Z_i, Y>)`, zero for units that are not kept.
    """
    units, window, outputs = problem.weight.shape
    weight = np.asarray(problem.weight, np.float64).reshape(-1, outputs)
    # <Z_i, Z_j> = tr(W_i^T X_i^T X_j W_j) = sum over taps s, t of (X^T X)_is,jt (W W^T)_is,jt
    blocks = (sums.gram * (weight @ weight.T)).reshape(units, window, units, window)
    cross = (sums.cross * weight).reshape(units, -1).sum(axis=1)
    alive = np.asarray(problem.keep, float)
    return blocks.sum(axis=(1, 3)) * np.outer(alive, alive), cross * alive


def weighted_contributions(problem: Problem) -> tuple[np.ndarray, np.ndarray, float]:
    """Inner products of the units' contributions, every error times a factor of its own.

    Returns:
        `([units, units] <E o Z_i, E o Z_j>, [units] <E o Z_i, E o Y>, ||E o Y||^2)`, E being the
        factors of errors times those of outputs; zero for units that are not kept.
    """
    count, units, _ = problem.inputs.shape
    outputs = problem.targets.shape[1]
    weight = np.asarray(problem.weight, np.float64)
    of_outputs = 1.0 if problem.of_outputs is None else np.asarray(problem.of_outputs, np.float64)
    rows = np.ones(count) if problem.rows is None else np.asarray(problem.rows, np.float64)
    gram, cross, square = np.zeros((units, units)), np.zeros(units), 0.0
    # The factors differ between outputs: Z_i itself is needed, [units, rows, outputs] at a time.
    step = max(1, min(CHUNK, 2**24 // max(1, units * outputs)))
    for start in range(0, count, step):
        part = slice(start, start + step)
        x = np.asarray(problem.inputs[part], np.float64)
        factors = np.broadcast_to(of_outputs, (len(x), outputs)) * np.sqrt(rows[part, None])
        if problem.errors is not None:
            factors = factors * np.asarray(problem.errors[part], np.float64)
        # Z_i = X_i W_i
        z = (x.transpose(1, 0, 2) @ weight * factors).reshape(units, -1)
        y = (np.asarray(problem.targets[part], np.float64) * factors).ravel()
        gram, cross, square = gram + z @ z.T, cross + z @ y, square + float(y @ y)
    alive = np.asarray(problem.keep, float)
    return gram * np.outer(alive, alive), cross * alive, square


def best(scores: np.ndarray, keep: np.ndarray, width: int) -> np.ndarray:
    """Bool [units]: the `width` highest among those that are kept, ties by lowest index."""
    # A stable sort of the negated scores: among equal ones the lowest index comes first.
    order = np.argsort(np.where(keep, -scores, np.inf), kind="stable")
    mask = np.zeros(len(scores), bool)
    mask[order[:width]] = True
    return mask & keep


def checked(
    hessian: np.ndarray, weights: np.ndarray, count: int, alive: np.ndarray | None, damping: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hessian, weights and what is alive, in float64 and as masks; weights that are gone are 0.

    Raises:
        ArgumentError: shapes that do not fit, a damping below 0, or more weights to keep than there
            are.
    """
    h, w = np.asarray(hessian, np.float64), np.asarray(weights, np.float64)
    there = np.ones(w.shape, bool) if alive is None else np.asarray(alive, bool)
    matrix = (len(w), w.size // max(len(w), 1))
    if h.shape != (len(w), len(w)) or there.shape != w.shape or w.shape != matrix:
        raise errors.ArgumentError(
            f"a layer came with a Hessian {h.shape}, weights {w.shape}, alive {there.shape}; "
            "expected are [n, n], [n, outputs] and [n, outputs]."
        )
    if not 0 <= count <= there.sum() or damping < 0:
        raise errors.ArgumentError(
            f"count={count} of {there.sum()} weights, damping={damping}; keep from 0 to all of "
            "them, and write a damping of 0 or more."
        )
    return h, w * there, there

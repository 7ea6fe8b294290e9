"""Second moments of a reconstruction: all that selection and refit need of its rows."""

from typing import NamedTuple

import numpy as np

from jprune.base import Problem

CHUNK = 8192
"""Rows that are held in float64 at a time."""


class Moments(NamedTuple):
    """Sums over rows, p being units times window."""

    gram: np.ndarray
    """[p, p]: X^T X."""
    cross: np.ndarray
    """[p, outputs]: X^T Y."""
    square: float
    """||Y||^2."""
    rows: float
    """Sum of the rows' weights."""
    inputs: np.ndarray
    """[p]: sum of X."""
    targets: np.ndarray
    """[outputs]: sum of Y."""

    def centred(self) -> "Moments":
        """Around the means: the moments of a fit with an intercept."""
        x, y = self.inputs, self.targets
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
        gram += (x.T * w) @ x
        cross += (x.T * w) @ y
        square += float(w @ (y**2).sum(axis=1))
        inputs += w @ x
        targets += w @ y
    return Moments(gram, cross, square, float(weight.sum()), inputs, targets)


def contributions(problem: Problem, sums: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Moments of what each unit adds to the outputs with the weights as they are.

    With Z_i = X_i W_i [rows, outputs] the part of unit i, <Z_i, Z_j> is the sum over a block of
    (X^T X) o (W W^T), and <Z_i, Y> that of (X^T Y) o W: no vector of all rows and outputs is made.

    Returns:
        `([units, units] <Z_i, Z_j>, [units] <Z_i, Y>)`, zero for units that are not kept.
    """
    units, window, outputs = problem.weight.shape
    weight = np.asarray(problem.weight, np.float64).reshape(-1, outputs)
    blocks = (sums.gram * (weight @ weight.T)).reshape(units, window, units, window)
    cross = (sums.cross * weight).reshape(units, -1).sum(axis=1)
    alive = np.asarray(problem.keep, float)
    return blocks.sum(axis=(1, 3)) * np.outer(alive, alive), cross * alive


def best(scores: np.ndarray, keep: np.ndarray, width: int) -> np.ndarray:
    """Bool [units]: the `width` highest among those that are kept, ties by lowest index."""
    order = np.argsort(np.where(keep, -scores, np.inf), kind="stable")
    mask = np.zeros(len(scores), bool)
    mask[order[:width]] = True
    return mask & keep

"""Channels chosen by LASSO: one coefficient per unit, the penalty raised until few are not 0.

References:
    He, Zhang, Sun, Channel pruning for accelerating very deep neural networks, 2017, arXiv
    1707.06168 [19], eq. 2 (beta) with W fixed.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from jprune import errors
from jprune.base import Problem
from jprune.reconstruct.moments import best, contributions, moments, weighted_contributions

TURNS = 60
"""Bisection steps, at most: the number of units is not monotone in the penalty."""
TINY = 1e-9
"""The smallest penalty, as a fraction of the one at which all coefficients are 0."""


class Path:
    """LASSO coefficients beta of one regression at one penalty after another.

    minimise ||y - Z beta||^2 / (2 N) + penalty ||beta||_1

    Not the N rows but a system with the same second moments and at most as many rows as units is
    given to scikit-learn, so that its cost does not depend on N. Each fit starts from the last one.

    Args:
        gram: [units, units], Z^T Z.
        cross: [units], Z^T y.
        rows: N.

    Example:
        >>> path = Path(np.diag([4.0, 1.0, 9.0]), np.array([4.0, 1.0, 9.0]), rows=4)
        >>> path.largest, path.at(0.3).round(4).tolist()
        (2.25, [0.7, 0.0, 0.8667])
    """

    def __init__(self, gram: np.ndarray, cross: np.ndarray, rows: float):
        from sklearn.linear_model import Lasso

        # Z^T Z = V diag(l) V^T. With z = diag(sqrt(l)) V^T and y = diag(1 / sqrt(l)) V^T (Z^T y):
        # z^T z = Z^T Z and z^T y = Z^T y, so ||y - z beta||^2 differs from the original by a
        # constant. Directions with l = 0 add nothing to any output and are left out.
        values, vectors = np.linalg.eigh(gram)
        size = np.sqrt(np.maximum(values, 0))
        nonzero = size > 1e-8 * size.max(initial=0)
        if not nonzero.any():
            raise errors.ArgumentError(
                "LASSO got units that add nothing to any output: their inputs or their weights are "
                "all 0. Check the calibration images, or leave the layer whole."
            )
        self._z = vectors[:, nonzero].T * size[nonzero, None]
        self._y = (vectors[:, nonzero].T @ cross) / size[nonzero]
        # scikit-learn divides by its own number of rows, the objective above by N.
        self._per_row = rows / len(self._y)
        self._model = Lasso(fit_intercept=False, warm_start=True, tol=1e-8, max_iter=10_000)
        # The smallest penalty at which beta = 0: there |Z_i^T y| / N <= penalty for every i.
        self.largest = float(np.abs(cross).max()) / rows

    def at(self, penalty: float) -> np.ndarray:
        """[units] coefficients."""
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            # A beta that has not converged to the last digit still has the right zeros.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.set_params(alpha=penalty * self._per_row).fit(self._z, self._y)
        return np.array(self._model.coef_)


def search(path: Path, width: int, start: float = 1e-3, tolerance: float = 0.1) -> np.ndarray:
    """Coefficients of which `width`, or up to a tenth more, are not 0.

    The penalty is doubled until fewer than `width` coefficients are not 0, then bisected.

    Args:
        path: of the regression.
        width: units to be kept, 1 or more.
        start: first penalty, as a fraction of the one at which all coefficients are 0.
        tolerance: how many more than `width` may be non-zero, as a fraction of `width`.

    Returns:
        [units]. If no penalty gives a count in that range, the nearest larger count; with dead
        units fewer than `width` may be non-zero.

    Raises:
        ArgumentError: a width below 1, or a start or tolerance that is not above or at 0.
    """
    if width < 1 or not start > 0 or not tolerance >= 0:
        raise errors.ArgumentError(
            f"LASSO with width={width}, start={start}, tolerance={tolerance}; a layer keeps 1 unit "
            "or more, the first penalty is above 0, the tolerance 0 or more."
        )
    enough = lambda beta: np.count_nonzero(beta) <= (1 + tolerance) * width
    # First `high` is doubled until it leaves fewer than `width` coefficients. Then the bisection
    # keeps `low` on the side of at least `width`; `nearest` holds the coefficients at `low`.
    low, high = 0.0, start * path.largest
    chosen, nearest = path.at(high), path.at(TINY * path.largest)
    while np.count_nonzero(chosen) >= width:
        if enough(chosen):
            return chosen
        low, nearest, high = high, chosen, 2 * high
        chosen = path.at(high)
    for _ in range(TURNS):
        middle = (low + high) / 2
        chosen = path.at(middle)
        if np.count_nonzero(chosen) < width:
            high = middle
        elif enough(chosen):
            return chosen
        else:
            low, nearest = middle, chosen
    return nearest


def lasso(
    problems: Sequence[Problem], width: int, start: float = 1e-3, tolerance: float = 0.1
) -> np.ndarray:
    """Bool [units]: the `width` units of largest |beta|, at a penalty that keeps about as many.

    Kernels are not normalised, so that beta = 1 reproduces the layer, and there is no intercept
    (the paper's objective; its code fits one over all outputs, on 400 rows of the sample). Of the
    non-zero coefficients exactly `width` are kept, where the paper's code keeps all. With several
    consumers each is divided by its ||Y||^2, so that all have the same weight. Factors of errors
    and of outputs (`Problem`) stand inside the squares.

    Args:
        problems: one per consumer, of the same units; `keep` [units] says which exist.
        width: units to keep.
        start: see `search`.
        tolerance: see `search`.

    Raises:
        ArgumentError: nothing reaches any output, or a number out of range.

    Example:
        >>> x = np.array([[[1.0], [0.0], [0.1]], [[0.0], [1.0], [0.1]]])
        >>> problem = Problem(x, x.sum(axis=1), np.ones((3, 1, 1)), np.ones(3, bool))
        >>> lasso([problem], 2).tolist()
        [True, True, False]
    """
    gram, cross, rows = summed(problems)
    keep = np.asarray(problems[0].keep, bool)
    # min over beta of ||Y - sum_i beta_i X_i W_i^T||^2 / (2 N) + lambda ||beta||_1  (eq. 2)
    beta = search(Path(gram, cross, rows), min(width, int(keep.sum())), start, tolerance)
    return best(np.abs(beta), keep, width)


def summed(problems: Sequence[Problem]) -> tuple[np.ndarray, np.ndarray, float]:
    """`(Z^T Z, Z^T y, rows)` of all consumers; several are divided by their ||Y||^2."""
    units = problems[0].inputs.shape[1]
    gram, cross, rows = np.zeros((units, units)), np.zeros(units), 0.0
    for problem in problems:
        if problem.errors is None and problem.of_outputs is None:
            sums = moments(problem)
            z, y = contributions(problem, sums)
            square, count = sums.square, sums.rows
        else:
            z, y, square = weighted_contributions(problem)
            count = len(problem.inputs) if problem.rows is None else float(np.sum(problem.rows))
        share = 1 / square if len(problems) > 1 and square > 0 else 1.0
        gram, cross, rows = gram + share * z, cross + share * y, rows + count
    return gram, cross, rows

"""A polynomial in a few dimensions as a sum of products, its fit, its optimum under a budget.

    F(x) = sum over q of H(x_1; s_q) H(x_2; u_q) H(x_3; v_q),    H(x; s) = sum over i of s_i x^i

has 3 * rank * (degree + 1) coefficients where a full polynomial has (degree + 1)^3.

References:
    Wang, Chen, Dong, Wang, Zhang, Accelerate CNNs from three dimensions: a comprehensive pruning
    framework, 2021, arXiv 2010.04879 [52].
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jprune import errors

SWEEPS = 2000
"""Sweeps of alternating least squares, at most."""
STARTS = 12
"""Number of grid points, the best ones, from which the optimum is searched."""


class Polynomial(NamedTuple):
    """A sum of products of univariate polynomials.

    Attributes:
        factors: for each dimension [rank, degree + 1] coefficients, lowest power first.
    """

    factors: tuple[np.ndarray, ...]

    def parts(self, points: np.ndarray) -> list[np.ndarray]:
        """For each dimension H(x_d; s_q), [n, rank], at points [n, dimensions]."""
        points = np.asarray(points, float)
        return [
            _powers(points[:, place], factor.shape[1]) @ factor.T
            for place, factor in enumerate(self.factors)
        ]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """[n] values at points [n, dimensions]."""
        # F(x) = sum over q of the product over dimensions of H
        return np.prod(self.parts(points), axis=0).sum(axis=1)

    def gradient(self, points: np.ndarray) -> np.ndarray:
        """[n, dimensions] derivatives at points [n, dimensions]."""
        points, parts = np.asarray(points, float), self.parts(points)
        columns = []
        for place, factor in enumerate(self.factors):
            # dF/dx_d = sum over q of H'(x_d) times the other H, with H'(x) = sum of i s_i x^(i-1)
            slopes = factor[:, 1:] * np.arange(1, factor.shape[1])
            inner = _powers(points[:, place], slopes.shape[1]) @ slopes.T
            others = np.prod([p for i, p in enumerate(parts) if i != place], axis=0)
            columns.append((inner * others).sum(axis=1))
        return np.stack(columns, axis=1)


def _powers(values: np.ndarray, count: int) -> np.ndarray:
    """[n, count]: 1, x, x^2, ..."""
    return values[:, None] ** np.arange(count)


def fit(points: np.ndarray, values: np.ndarray, degree: int = 3, rank: int = 1) -> Polynomial:
    """Alternating least squares: one dimension's coefficients at a time, the others held.

    A dimension with n different values, fewer than degree + 1, gets degree n - 1.

    Args:
        points: [n, dimensions].
        values: [n].
        degree: of every univariate polynomial.
        rank: number of products that are summed.

    Returns:
        The polynomial. The sweeps start from x^q in every variable for the q-th product.

    Raises:
        ArgumentError: a degree or rank below 1, not a value a point, or numbers that are not
            finite.

    Example:
        >>> points = np.array([(x, y) for x in (0.4, 0.7, 1.0) for y in (0.5, 0.6, 1.0)])
        >>> fitted = fit(points, (1 - points[:, 0] ** 2) * (1 + points[:, 1]), degree=2)
        >>> fitted(np.array([[0.5, 0.8]])).round(6)
        array([1.35])
    """
    points, values = np.asarray(points, float), np.asarray(values, float)
    if degree < 1 or rank < 1 or points.ndim != 2 or values.shape != points.shape[:1]:
        raise errors.ArgumentError(
            f"fit(degree={degree}, rank={rank}) came with points {points.shape} and values "
            f"{values.shape}; both numbers are at least 1, points are [n, dimensions], values [n]."
        )
    if not (np.isfinite(points).all() and np.isfinite(values).all()):
        raise errors.ArgumentError("fit came with points or values that are not finite.")
    counts = [min(degree + 1, len(np.unique(column))) for column in points.T]
    factors = [np.eye(count)[np.arange(rank) % count] for count in counts]
    last, least = np.inf, 1e-15 * float((values**2).sum())
    for _ in range(SWEEPS):
        for place, count in enumerate(counts):
            parts = Polynomial(tuple(factors)).parts(points)
            # F is linear in this dimension's s_q: F_n = sum over q, i of (others_nq x_n^i) s_qi.
            others = np.prod([p for i, p in enumerate(parts) if i != place], axis=0)
            design = others[:, :, None] * _powers(points[:, place], count)[:, None]
            coefficients = np.linalg.lstsq(design.reshape(len(points), -1), values, rcond=None)[0]
            factors[place] = coefficients.reshape(rank, count)
        # A factor times c and another over c are the same F: their norms are set to the geometric
        # mean, or one would grow and another vanish over the sweeps.
        sizes = np.array([np.linalg.norm(factor, axis=1) for factor in factors])
        even = np.exp(np.log(np.maximum(sizes, 1e-300)).mean(axis=0))
        factors = [
            factor * (even / np.maximum(size, 1e-300))[:, None]
            for factor, size in zip(factors, sizes)
        ]
        error = float(((Polynomial(tuple(factors))(points) - values) ** 2).sum())
        if last < np.inf and last - error <= least:
            break
        last = error
    return Polynomial(tuple(factors))


def optimum(
    polynomial: Polynomial, powers: Sequence[float], budget: float, low: Sequence[float]
) -> np.ndarray:
    """The maximum of a polynomial in a box and under a budget: max F(x), prod x_i^p_i <= T.

    Solved in u = log x, where the budget is the half-space p . u <= log T, from the best points of
    a grid, since a stationary point alone may be a minimum. Inside the box the solution satisfies
    x_i F_i / p_i = mu, the same for all i, and the budget is used up unless F has its maximum
    below it.

    Args:
        polynomial: F; values outside the fitted region mean nothing.
        powers: exponents p of the cost C = prod x_i^p_i; (1, 2, 2) for depth, width, resolution.
        budget: T, a fraction of the whole.
        low: the lower corner of the box, above 0; the upper one is 1.

    Returns:
        [dimensions].

    Raises:
        ArgumentError: a corner outside (0, 1].
        BudgetError: the lower corner costs more than the budget.

    Example:
        >>> straight = Polynomial((np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]])))
        >>> optimum(straight, (1, 2), 0.25, (0.1, 0.1)).round(4)
        array([1. , 0.5])
    """
    from scipy.optimize import minimize  # half a second, and few need it

    exponents, corner = np.asarray(powers, float), np.asarray(low, float)
    if not ((corner > 0) & (corner <= 1)).all():
        raise errors.ArgumentError(f"optimum(low={tuple(low)}); every bound is in (0, 1].")
    least = float(np.prod(corner**exponents))
    if least > budget * (1 + 1e-9):
        raise errors.BudgetError(
            f"no point of the box from {np.round(corner, 4).tolist()} to 1 is under the budget "
            f"{budget:g}: its lowest corner costs {least:.4f}. Ask for more, or sample lower."
        )
    goal, bottom = np.log(budget), np.log(corner)
    scale = max(1e-12, float(np.abs(polynomial(np.ones((1, len(corner)))))[0]))
    # Minimised: -F(exp u) / |F(1)|, so that SLSQP's tolerances fit any scale. dF/du_i = F_i x_i.
    value = lambda u: -float(polynomial(np.exp(u)[None])[0]) / scale
    slope = lambda u: -polynomial.gradient(np.exp(u)[None])[0] * np.exp(u) / scale
    inside = {
        "type": "ineq",
        "fun": lambda u: goal - exponents @ u,
        "jac": lambda u: -exponents,
    }
    feasible = []
    for start in _starts(polynomial, exponents, goal, bottom):
        done = minimize(
            value, start, jac=slope, method="SLSQP", constraints=[inside],
            bounds=[(b, 0.0) for b in bottom], options={"ftol": 1e-16, "maxiter": 500},
        )  # fmt: skip
        point = np.clip(done.x, bottom, 0.0)
        # The start counts too: SLSQP may end at a worse point, or outside by rounding.
        for u in (point, start):
            if exponents @ u <= goal + 1e-9:
                feasible.append((value(u), u))
    return np.exp(min(feasible, key=lambda pair: pair[0])[1])


def _starts(
    polynomial: Polynomial, exponents: np.ndarray, goal: float, bottom: np.ndarray
) -> list[np.ndarray]:
    """The best points of a grid in u; points above the budget are first moved onto it.

    A point u moves along the line to the lower corner b, to b + t (u - b) with cost log T:
    t = (log T - p . b) / (p . u - p . b).
    """
    axes = [np.linspace(b, 0.0, 7) for b in bottom]
    starts = []
    for u in map(np.array, itertools.product(*axes)):
        spent, least = exponents @ u, exponents @ bottom
        share = 1.0 if spent <= goal else (goal - least) / (spent - least)
        starts.append(bottom + share * (u - bottom))
    values = polynomial(np.exp(np.stack(starts)))
    return [starts[place] for place in np.argsort(-values, kind="stable")[:STARTS]]

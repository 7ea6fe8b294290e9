"""The inverse of a damped Fisher information of few gradients, without a matrix of that size.

With m rows r_i = g_i / sqrt(m), the gradients of m examples, F = damping I + sum_i r_i r_i^T. Its
inverse is known by an m x m matrix (Woodbury), and so are the best values of weights when others
are removed. On the host, in float64.

References:
    Singh, Alistarh, WoodFisher: efficient second-order approximation for neural network
    compression, 2020, arXiv 2004.14340. Frantar, Kurtic, Alistarh, M-FAC: efficient matrix-free
    approximations of second-order information, 2021, arXiv 2107.03356.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
import scipy.linalg

from jprune import errors
from jprune.base import Batch, Variables
from jprune.curvature.products import Function, weights_of
from jprune.curvature.rows import gradient_rows

CHUNK = 4096
"""Columns that are converted to float64 at a time; all at once would triple their memory."""


def fisher_rows(
    fn: Function, loss: Function, variables: Variables, batches: Sequence[Batch], average: int = 1
) -> np.ndarray:
    """Rows whose outer products sum to the empirical Fisher information.

    Args:
        fn: `fn(variables, batch["image"])`, in inference mode.
        loss: `loss(out, batch) -> [batch]`.
        variables: of the net.
        batches: examples.
        average: so many examples, one behind the other, make a row of their mean gradient; what is
            left over at the end of a batch makes one too.

    Returns:
        float32 [rows, parameters], the parameters side by side as in `parameters_of`; g / sqrt(m)
        of m rows.

    Raises:
        ArgumentError: no batch, an average below 1, or gradients that are not finite.

    Example:
        >>> fn, loss = lambda v, x: x @ v["w"], lambda out, batch: out[:, 0]
        >>> batch = {"image": np.array([[1.0, 0.0], [1.0, 1.0]])}
        >>> rows = fisher_rows(fn, loss, {"w": np.ones((2, 1))}, [batch])
        >>> (rows.T @ rows).round(6).tolist()
        [[1.0, 0.5], [0.5, 0.5]]
    """
    if not batches or average < 1:
        raise errors.ArgumentError(
            f"fisher_rows got {len(batches)} batches and average={average}: write a list of one "
            'batch or more, for example [{"image": x, "label": y}], and an average of 1 or more.'
        )
    make, parts = _compiled(fn, loss), []
    counts = [float(weights_of(batch).sum()) for batch in batches]
    for number, (batch, count) in enumerate(zip(batches, counts)):
        rows = np.asarray(make(variables, batch))
        if not np.isfinite(rows).all():
            raise errors.ArgumentError(
                f"the gradients of batch {number} are not finite. Check the net and its data "
                "before pruning."
            )
        # sqrt(w) g each: a mean of a of them, times sqrt(a w), is their sum over sqrt(a).
        starts = np.arange(0, len(rows), average)
        sizes = np.diff(starts, append=len(rows))
        summed = np.add.reduceat(rows, starts, axis=0) / np.sqrt(sizes)[:, None]
        parts.append((summed * np.sqrt(count / sum(counts))).astype(np.float32))
    return np.concatenate(parts)


@lru_cache(maxsize=4)  # rounds share what was compiled
def _compiled(fn: Function, loss: Function) -> Any:
    return jax.jit(partial(gradient_rows, fn, loss, how="fisher"))


def inverse_diagonal(rows: np.ndarray, damping: float) -> np.ndarray:
    """[n]: the diagonal of (damping I + R^T R)^-1, for rows R [m, n].

    Takes m^2 n operations where m is smaller than n, and no more memory than the rows.

    Raises:
        ArgumentError: the damping is not above 0.

    Example:
        >>> rows = np.array([[1.0, 0.0], [1.0, 1.0]]) / 2**0.5
        >>> inverse_diagonal(rows, 1.0).round(6).tolist()
        [0.545455, 0.727273]
    """
    m, n = _checked(rows, damping)
    if n <= m:
        return np.linalg.inv(_small(rows, damping)).diagonal()
    half = np.linalg.inv(np.linalg.cholesky(_gram(rows, damping)))
    # F^-1 = (I - K^T K) / damping, K = C^-1 R, C C^T = damping I + R R^T  (Woodbury)
    diagonal = np.empty(n)
    for columns in _chunks(n):
        k = half @ np.asarray(rows[:, columns], float)
        diagonal[columns] = (1 - (k**2).sum(axis=0)) / damping
    # In exact numbers it lies in (0, 1 / damping].
    return np.maximum(diagonal, np.finfo(float).eps / damping)


def inverse_product(rows: np.ndarray, damping: float, vector: np.ndarray) -> np.ndarray:
    """[n]: (damping I + R^T R)^-1 times a vector, for rows R [m, n].

    Raises:
        ArgumentError: the damping is not above 0.

    Example:
        >>> rows = np.array([[1.0, 0.0], [1.0, 1.0]]) / 2**0.5
        >>> inverse_product(rows, 1.0, np.array([0.0, 1.0])).round(6).tolist()
        [-0.181818, 0.727273]
    """
    m, n = _checked(rows, damping)
    if n <= m:
        return scipy.linalg.solve(_small(rows, damping), vector, assume_a="pos")
    # F^-1 v = (v - R^T (damping I + R R^T)^-1 R v) / damping
    inner = scipy.linalg.solve(_gram(rows, damping), _times(rows, vector), assume_a="pos")
    return (vector - _back(rows, inner)) / damping


def removal(
    weights: np.ndarray, rows: np.ndarray, damping: float, gone: np.ndarray, how: str = "joint"
) -> tuple[np.ndarray, float]:
    """How weights change when some of them are removed, and what that costs.

    Args:
        weights: [n] float64.
        rows: R [m, n].
        damping: of F = damping I + R^T R.
        gone: bool [n]: removed together.
        how: "joint": the others go to the minimum of 1/2 d^T F d under the removal; "summed": the
            changes of all single removals are added up, which is the same for one.

    Returns:
        d [n], -w where a weight is removed, and 1/2 d^T F d.

    Raises:
        ArgumentError: another `how`, or a damping that is not above 0.

    Example:
        >>> rows = np.array([[1.0, 0.0], [1.0, 1.0]]) / 2**0.5
        >>> change, rise = removal(np.ones(2), rows, 1.0, np.array([False, True]))
        >>> change.round(6).tolist(), round(rise, 6)
        ([0.25, -1.0], 0.6875)
    """
    if how not in ("joint", "summed"):
        raise errors.ArgumentError(f"update={how!r}; write 'joint' or 'summed'.")
    m, _ = _checked(rows, damping)
    change = np.where(gone, -weights, 0.0)
    if gone.any() and not gone.all():
        if how == "summed":
            # d = -sum_q w_q F^-1 e_q / [F^-1]_qq
            scaled = np.where(gone, weights / inverse_diagonal(rows, damping), 0)
            moved = -inverse_product(rows, damping, scaled)[~gone]
        else:
            # The minimum over d_R with d_Q = -w_Q: (damping I + R_R^T R_R) d_R = R_R^T (R_Q w_Q)
            left, pull = rows[:, ~gone], _times(rows, np.where(gone, weights, 0.0))
            if left.shape[1] <= m:
                right = left.T.astype(float) @ pull
                moved = scipy.linalg.solve(_small(left, damping), right, assume_a="pos")
            else:
                # The same by an m x m matrix: R_R^T (damping I + R_R R_R^T)^-1 R_Q w_Q
                inner = scipy.linalg.solve(_gram(left, damping), pull, assume_a="pos")
                moved = _back(left, inner)
        change[~gone] = moved
    rise = 0.5 * (damping * change @ change + np.sum(_times(rows, change) ** 2))
    return change, float(rise)


def _checked(rows: np.ndarray, damping: float) -> tuple[int, int]:
    if not damping > 0:
        raise errors.ArgumentError(
            f"damping={damping} must be above 0: few gradients make no matrix that has an inverse. "
            "The papers take 1e-5."
        )
    return rows.shape


def _chunks(size: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]


def _small(rows: np.ndarray, damping: float) -> np.ndarray:
    wide = np.asarray(rows, float)
    return wide.T @ wide + damping * np.eye(rows.shape[1])


def _gram(rows: np.ndarray, damping: float) -> np.ndarray:
    gram = damping * np.eye(len(rows))
    for columns in _chunks(rows.shape[1]):
        part = np.asarray(rows[:, columns], float)
        gram += part @ part.T
    return gram


def _times(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    chunks = _chunks(rows.shape[1])
    return sum((rows[:, c].astype(float) @ vector[c] for c in chunks), np.zeros(len(rows)))


def _back(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return np.concatenate([rows[:, c].T.astype(float) @ vector for c in _chunks(rows.shape[1])])

"""Similar units merged instead of removed, by their weights alone.

References:
    Srinivas, Babu, Data-free parameter pruning for deep neural networks, 2015, arXiv 1507.06149
    [5]. Scales (`normalize`), dropping (`drop`), convolutions, norms and residual streams are ours.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jprune import errors


class Merge(NamedTuple):
    """One step: a unit is removed and its outgoing weights are added to those of another.

    Attributes:
        into: the unit that stays; equal to `gone` where the unit is dropped.
        gone: the unit that is removed.
        factor: multiplies the removed unit's outgoing weights before they are added; 0: dropped.
        saliency: s_ij of this pair.
    """

    into: int
    gone: int
    factor: float
    saliency: float


def distances(weights: np.ndarray, normalize: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of weight sets, and the factors that go with them.

    Args:
        weights: [units, fan], biases included.
        normalize: measure ||c W_i - W_j||^2 with c = ||W_j|| / ||W_i|| instead of c = 1; for
            functions with h(c x) = c h(x) for c >= 0. A unit of zeros is at distance 0 of all.

    Returns:
        `(D [i, j], c [i, j])`. Equal sets have a distance of exactly 0.

    Example:
        >>> distances(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]))[0].round(2).tolist()
        [[0.0, 0.01, 2.0], [0.01, 0.0, 1.81], [2.0, 1.81, 0.0]]
    """
    weights = np.asarray(weights, np.float64)
    square = (weights**2).sum(axis=1)
    factors = np.ones((len(weights), len(weights)))
    if normalize:
        norm = np.sqrt(square)
        # c_ij = ||W_j|| / ||W_i||: 0 for a unit of zeros, which is a multiple of every other; 1
        # where W_i is 0, of which nothing is a multiple.
        factors = np.where(norm[:, None] > 0, norm[None] / np.where(norm > 0, norm, 1)[:, None], 1)
    sizes = factors**2 * square[:, None] + square[None]
    # ||c W_i - W_j||^2 = c^2 ||W_i||^2 + ||W_j||^2 - 2 c W_i . W_j: no [units, units, fan] array,
    # but near-equal sets cancel. Those few are computed again from their difference.
    squared = np.maximum(sizes - 2 * factors * (weights @ weights.T), 0)
    for i, j in np.argwhere(squared <= 1e-6 * sizes):
        squared[i, j] = ((factors[i, j] * weights[i] - weights[j]) ** 2).sum()
    return squared, factors


def merges(
    weights: np.ndarray,
    outgoing: np.ndarray,
    normalize: bool = False,
    alive: np.ndarray | None = None,
    drop: bool = False,
) -> Iterator[Merge]:
    """Merges of a layer's units, each the one of smallest saliency, until one unit is left.

    The saliency of removing j and keeping i is s_ij = <a_j^2> ||W_i - W_j||^2, where a_j are the
    outgoing weights of j. A merge changes those of i, A_i += A_j, and with them the saliencies of
    removing i.

    Args:
        weights: [units, fan]: incoming weights with biases and norms folded in.
        outgoing: [units, consumers' weights].
        normalize: see `distances`.
        alive: bool [units]: units that exist; None: all.
        drop: a unit may also be dropped, as if merged with a unit of output 0:
            s_jj = <a_j^2> ||W_j||^2; for functions with h(0) = 0. Where no two units are alike,
            that costs half as much as merging.

    Raises:
        ArgumentError: weights that are not finite.

    Example:
        >>> weights = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> steps = merges(weights, np.array([[1.0], [2.0], [0.5]]))
        >>> [(step.gone, step.into, round(step.saliency, 4)) for step in steps]
        [(0, 1, 0.01), (2, 1, 0.4525)]
    """
    if not (np.isfinite(weights).all() and np.isfinite(outgoing).all()):
        raise errors.ArgumentError(
            "merging met weights that are not finite. Check the net before pruning."
        )
    distance, factors = distances(weights, normalize)
    # The diagonal stands for dropping: ||0 - W_j||^2, and nothing is added to any unit.
    np.fill_diagonal(distance, (np.asarray(weights, np.float64) ** 2).sum(axis=1))
    np.fill_diagonal(factors, 0)
    outgoing = np.array(outgoing, np.float64)
    # s_ij = <a_j^2> ||W_i - W_j||^2: rows are the units kept, columns those removed.
    saliency = distance * (outgoing**2).mean(axis=1)[None]
    if not drop:
        np.fill_diagonal(saliency, np.inf)
    if alive is not None:
        saliency[~alive], saliency[:, ~alive] = np.inf, np.inf
    for _ in range((len(weights) if alive is None else int(alive.sum())) - 1):
        into, gone = (int(n) for n in np.unravel_index(saliency.argmin(), saliency.shape))
        factor = float(factors[into, gone])
        yield Merge(into, gone, factor, float(saliency[into, gone]))
        # A_i <- A_i + c A_j. Of the matrix only column i depends on A_i; W_i does not change.
        outgoing[into] += factor * outgoing[gone]
        saliency[gone], saliency[:, gone] = np.inf, np.inf
        remaining = np.isfinite(saliency[:, into])
        saliency[remaining, into] = distance[remaining, into] * (outgoing[into] ** 2).mean()


def cutoff(saliencies: np.ndarray) -> float:
    """The saliency at which a layer's merging stops: the mode of the pairs' saliencies.

    Redundant pairs cluster at low saliencies, and successive merges are cheap while they stay below
    the mode of that cluster. The mode is the highest bin of a smoothed histogram of the logarithms;
    pairs at 0 cost nothing and are not counted. That the cut-off comes from the distribution of the
    saliencies is the paper's; the histogram is ours (bins: Freedman and Diaconis).

    Args:
        saliencies: of all pairs, before any merge; infinite ones are left out.

    Returns:
        The threshold; 0 where no pair has a saliency above 0.

    Example:
        >>> round(cutoff(np.array([0.0, 1.0, 10.0, 11.0, 10.5, 10.2, 100.0, np.inf])), 1)
        10.4
    """
    values = saliencies[np.isfinite(saliencies) & (saliencies > 0)]
    if not values.size:
        return 0.0
    logs = np.log(values)
    quarter, three_quarters = np.percentile(logs, [25, 75])
    # Freedman and Diaconis: bins as wide as 2 IQR n^(-1/3).
    wanted = 2 * (three_quarters - quarter) * len(logs) ** (-1 / 3)
    # Their number follows the whole range, so only bins that hold something are stored: one value
    # far off a narrow crowd makes millions of empty ones.
    bins = min(np.ceil(np.ptp(logs) / wanted), 2.0**40) if wanted > 0 and np.ptp(logs) > 0 else 1.0
    width = np.ptp(logs) / bins
    number = np.minimum(np.floor((logs - logs.min()) / (width or 1.0)), bins - 1)
    numbers, counts = np.unique(number, return_counts=True)
    count_of = dict(zip(numbers.tolist(), counts.tolist()))
    # Neighbouring bins are averaged (1/4, 1/2, 1/4), so that one crowded bin is no mode by chance;
    # the first and the last stand for the neighbour that they lack.
    beside = lambda at: count_of.get(min(max(at, 0.0), bins - 1), 0)
    smooth = [0.25 * beside(at - 1) + 0.5 * beside(at) + 0.25 * beside(at + 1) for at in count_of]
    return float(np.exp(logs.min() + (numbers[int(np.argmax(smooth))] + 0.5) * width))


def matrix(units: int, steps: Iterable[Merge]) -> np.ndarray:
    """[units, units]: the outgoing weights after these merges are M times those before.

    Example:
        >>> matrix(2, [Merge(1, 0, 1.0, 0.0)]).tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """
    result = np.eye(units)
    for step in steps:
        result[step.into] += step.factor * result[step.gone]
        result[step.gone] = 0
    return result

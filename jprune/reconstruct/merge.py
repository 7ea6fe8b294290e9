"""Units merged instead of dropped: similar ones, by weights alone.

References:
    Srinivas, Babu, Data-free parameter pruning for deep neural networks, 2015, arXiv 1507.06149
    [5]. Scales (`normalize`), dropping (`drop`), convolutions, norms and residual streams are ours.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jprune import errors


class Merge(NamedTuple):
    """One step: a unit goes into another one, or into none (`into` is the unit itself then)."""

    into: int
    gone: int
    factor: float
    """What the gone unit's outgoing weights are multiplied by before they are added; 0: dropped."""
    saliency: float


def distances(weights: np.ndarray, normalize: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of weight sets, and the factors that go with them.

    Args:
        weights: [units, fan], biases included.
        normalize: measure ||c W_i - W_j||^2 with c = ||W_j|| / ||W_i|| instead of c = 1; for
            functions with h(c x) = c h(x) for c > 0.

    Returns:
        `(D [i, j], c [i, j])`. The Gram matrix gives D up to cancellation; small ones are computed
        from the difference itself, so that equal sets are at 0 exactly.

    Example:
        >>> distances(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]))[0].round(2).tolist()
        [[0.0, 0.01, 2.0], [0.01, 0.0, 1.81], [2.0, 1.81, 0.0]]
    """
    weights = np.asarray(weights, np.float64)
    square = (weights**2).sum(axis=1)
    factors = np.ones((len(weights), len(weights)))
    if normalize:
        norm = np.sqrt(square)
        alive = (norm[:, None] > 0) & (norm[None] > 0)
        factors = np.where(alive, norm[None] / np.where(norm > 0, norm, 1)[:, None], 1.0)
    sizes = factors**2 * square[:, None] + square[None]
    found = np.maximum(sizes - 2 * factors * (weights @ weights.T), 0)
    for i, j in np.argwhere(found <= 1e-6 * sizes):
        found[i, j] = ((factors[i, j] * weights[i] - weights[j]) ** 2).sum()
    return found, factors


def merges(
    weights: np.ndarray,
    outgoing: np.ndarray,
    normalize: bool = False,
    alive: np.ndarray | None = None,
    drop: bool = False,
) -> Iterator[Merge]:
    """The merges of a layer one after another, the least salient first, until one unit is left.

    The saliency of removing j and keeping i is s_ij = <a_j^2> ||W_i - W_j||^2, a_j being the
    outgoing weights. They change with every merge, A_i += A_j, and so do the saliencies of i.

    Args:
        weights: [units, fan]: incoming weights with biases and norms folded in.
        outgoing: [units, consumers' weights].
        normalize: see `distances`.
        alive: bool [units]: those that are there; None: all.
        drop: a unit may also go into one that says nothing, s_jj = <a_j^2> ||W_j||^2; for functions
            with h(0) = 0. Where no two units are alike, that costs half of what merging does.

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
    np.fill_diagonal(distance, (np.asarray(weights, np.float64) ** 2).sum(axis=1))
    np.fill_diagonal(factors, 0)
    outgoing = np.array(outgoing, np.float64)
    saliency = distance * (outgoing**2).mean(axis=1)[None]
    if not drop:
        np.fill_diagonal(saliency, np.inf)
    if alive is not None:
        saliency[~alive], saliency[:, ~alive] = np.inf, np.inf
    for _ in range((len(weights) if alive is None else int(alive.sum())) - 1):
        into, gone = (int(n) for n in np.unravel_index(saliency.argmin(), saliency.shape))
        factor = float(factors[into, gone])
        yield Merge(into, gone, factor, float(saliency[into, gone]))
        outgoing[into] += factor * outgoing[gone]
        saliency[gone], saliency[:, gone] = np.inf, np.inf
        there = np.isfinite(saliency[:, into])
        saliency[there, into] = distance[there, into] * (outgoing[into] ** 2).mean()


def cutoff(saliencies: np.ndarray) -> float:
    """The saliency at which a layer's merging stops: the low mode of the pairs' saliencies.

    Redundant pairs crowd at low saliencies, and successive merges are cheap as long as they stay
    below the crowd's peak. It is looked for in a smoothed histogram over logarithms; pairs at 0 are
    free and not looked at. The paper takes the cut-off from the distribution of the saliencies; how
    its mode is found is ours (bins: Freedman and Diaconis).

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
    counts, edges = np.histogram(np.log(values), bins="fd")
    smooth = np.convolve(np.pad(counts, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    peak = int(smooth.argmax())
    return float(np.exp((edges[peak] + edges[peak + 1]) / 2))


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

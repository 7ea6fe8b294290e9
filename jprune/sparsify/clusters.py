"""Units put into clusters, by k-means or by their numbers."""

from collections.abc import Callable

import jax
import numpy as np

from jprune import errors


def _kmeans(points: np.ndarray, count: int, key: jax.Array) -> np.ndarray:
    from sklearn.cluster import KMeans

    # scikit-learn takes seeds below 2^32 - 1; 2^31 is safe for every version.
    seed = int(jax.random.bits(key)) % 2**31
    # k-means cannot make more clusters than there are different points.
    distinct = len(np.unique(points, axis=0))
    means = KMeans(min(count, distinct), random_state=seed).set_params(n_init=10)
    return _split(np.asarray(means.fit_predict(points), int), count)


def _split(labels: np.ndarray, count: int) -> np.ndarray:
    """As many clusters as asked for: the last members of the largest ones are put apart."""
    labels = np.unique(labels, return_inverse=True)[1]
    for new in range(labels.max() + 1, count):
        largest = int(np.bincount(labels).argmax())
        # The last member and not the first: the first speaks for the cluster when it is merged.
        labels[np.flatnonzero(labels == largest)[-1]] = new
    return labels


def _even(points: np.ndarray, count: int, key: jax.Array) -> np.ndarray:
    del key
    # floor(i r / n): neighbours, in r clusters whose sizes differ by at most 1
    return np.arange(len(points)) * count // len(points)


def _imbalanced(points: np.ndarray, count: int, key: jax.Array) -> np.ndarray:
    del key
    # min(i, r - 1): r - 1 units alone, all others together
    return np.minimum(np.arange(len(points)), count - 1)


CLUSTERINGS: dict[str, Callable[[np.ndarray, int, jax.Array], np.ndarray]] = {
    "kmeans": _kmeans,
    "even": _even,
    "imbalanced": _imbalanced,
}


def cluster(points: np.ndarray, count: int, key: jax.Array, how: str = "kmeans") -> np.ndarray:
    """Puts units into `count` clusters, none of them empty.

    Args:
        points: [units, fan], finite.
        count: number of clusters, from 1 to the number of units.
        key: of k-means' beginnings.
        how: "kmeans": near ones together, the best of ten beginnings (Lloyd's algorithm from
            k-means++); "even": neighbours by index, in clusters of one size; "imbalanced": the
            first count - 1 units alone and all others together.

    Returns:
        Int [units]: clusters 0 to count - 1, numbered by their first units.

    Raises:
        ArgumentError: another `how`, a count out of range, or points that are not finite.

    References:
        Arthur, Vassilvitskii, k-means++: the advantages of careful seeding, 2007.

    Example:
        >>> cluster(np.array([[0.0], [5.0], [0.1], [5.2]]), 2, jax.random.key(0)).tolist()
        [0, 1, 0, 1]
    """
    if how not in CLUSTERINGS:
        raise errors.ArgumentError(f"cluster(how={how!r}); write one of {', '.join(CLUSTERINGS)}.")
    points = np.asarray(points, np.float64)
    if not 1 <= count <= len(points):
        raise errors.ArgumentError(
            f"cluster(count={count}) of {len(points)} units; write a number from 1 to "
            f"{len(points)}."
        )
    if not np.isfinite(points).all():
        raise errors.ArgumentError(
            "the weights to be clustered hold NaN or infinity: training has diverged. Write a "
            "smaller --learning-rate."
        )
    labels = CLUSTERINGS[how](points, count, key)
    # Labels of k-means are in any order; numbered by their
    # first units they are the same on every machine.
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels.tolist()])

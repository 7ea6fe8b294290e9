"""Fixed, stratified parts of a data set."""

import numpy as np

from jprune import errors
from jprune.data.batches import Split

SEED = 0
"""Seed of the fixed splits. Changing it changes every published number."""


def pick(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws examples, from each class in proportion to its size.

    Args:
        labels: int [n].
        count: how many to draw.
        seed: of the draw; the same on every machine and with every version of NumPy.

    Returns:
        bool [n], True at `count` places. A class of m examples gets count m / n of them, rounded so
        that the sum is right (largest remainders first, lower class first).

    Raises:
        ArgumentError: `count` is not in 0..n.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 1, 1])
        >>> chosen = pick(labels, 3, seed=0)
        >>> np.bincount(labels[chosen]).tolist()
        [2, 1]
    """
    if not 0 <= count <= len(labels):
        raise errors.ArgumentError(
            f"Asked for {count} of {len(labels)} examples; write a number from 0 to {len(labels)}."
        )
    # Largest remainders: each class gets the floor of its share, and those cut off most get one
    # more. 2 of classes of 4 and 2: shares 1.33 and 0.67, floors 1 and 0, one more for the second.
    sizes = np.bincount(labels)
    shares = count * sizes / max(len(labels), 1)
    wanted = np.floor(shares).astype(int)
    order = np.argsort(wanted - shares, kind="stable")
    wanted[order[: count - wanted.sum()]] += 1
    # RandomState, because NumPy guarantees its stream for ever; that of Generator may change.
    random = np.random.RandomState(seed)
    chosen = np.zeros(len(labels), bool)
    for label, number in enumerate(wanted):
        members = np.flatnonzero(labels == label)
        chosen[random.permutation(members)[:number]] = True
    return chosen


def scattered(split: Split, count: int, seed: int = SEED) -> tuple[Split, Split]:
    """As `divide`, for labels that are no classes: any examples may be drawn."""
    chosen = pick(np.zeros(len(split.labels), int), count, seed)
    return _apart(split, chosen)


def divide(split: Split, count: int, seed: int = SEED) -> tuple[Split, Split]:
    """Takes a stratified part out of a split.

    Args:
        split: the whole.
        count: examples in the part.
        seed: of the draw.

    Returns:
        (rest, part), both in the order of the whole.
    """
    return _apart(split, pick(split.labels, count, seed))


def _apart(split: Split, chosen: np.ndarray) -> tuple[Split, Split]:
    """The examples that are not chosen, and those that are."""
    return (
        Split(split.images[~chosen], split.labels[~chosen]),
        Split(split.images[chosen], split.labels[chosen]),
    )

"""Greedy forward selection: a set grows from nothing, by the unit after which the loss is least.

Units are averaged and not summed: with n of D units chosen, every one of them stands for D / n, so
that their sum has the size of the sum of all. That factor is what makes the first choices
meaningful, and it has to be folded into what reads the units (`jprune.expand` of the gates with
`roles=("in",)` is what it is multiplied by).

References:
    Ye, Gong, Nie, Zhou, Klivans, Liu, Good subnetworks provably exist: pruning via greedy forward
    selection, 2020, arXiv 2003.01794 [8].
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jprune import errors


class Selection(NamedTuple):
    """Units chosen one after the other.

    Attributes:
        counts: int [units]: how often each was chosen.
        gates: [units]: by what every unit is multiplied, D a with a = counts / n; 0 if it goes.
        order: int [n]: the units in the order of their choice.
        losses: [n]: after each choice.
    """

    counts: np.ndarray
    gates: np.ndarray
    order: np.ndarray
    losses: np.ndarray


def forward(
    losses: Callable[[np.ndarray, int], Any],
    units: int | np.ndarray,
    count: int,
    *,
    repeat: bool = False,
    candidates: int | None = None,
    seed: int | Sequence[int] = 0,
    enough: Callable[[np.ndarray], bool] | None = None,
) -> Selection:
    """Chooses units one after the other.

    Args:
        losses: `losses(gates [candidates, units], n) -> [candidates]` at the n-th choice, from 0:
            every row is a set with one more unit. It always gets as many rows: where there are
            fewer candidates, the first is repeated.
        units: how many there are, or bool [units], those that may be chosen; D is their number.
        count: how many choices are made; a unit that is chosen twice counts twice.
        repeat: whether a unit can be chosen again, as in the theorem; the authors' code does not.
        candidates: so many are drawn for every choice, without repetition; None: all are tried.
        seed: of these draws.
        enough: asked with the gates [units] after every choice; the selection ends where it says
            True.

    Returns:
        The selection; ties go to the lowest unit.

    Raises:
        ArgumentError: more choices than units, or none; a loss that is not finite for any
            candidate.

    Example:
        >>> outputs = np.array([[2.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [3.0, 1.0]])
        >>> wanted = outputs.mean(axis=0)
        >>> distance = lambda gates, n: ((gates @ outputs / 4 - wanted) ** 2).sum(axis=1)
        >>> chosen = forward(distance, 4, 2)
        >>> chosen.order.tolist(), chosen.losses.tolist(), chosen.gates.tolist()
        ([0, 1], [1.25, 0.25], [2.0, 2.0, 0.0, 0.0])
    """
    allowed = np.ones(units, bool) if isinstance(units, int) else np.asarray(units, bool)
    size = int(allowed.sum())
    if not (count >= 1 and (repeat or count <= size) and size):
        raise errors.ArgumentError(
            f"forward(count={count}) of {size} units; it is 1 or more, and at most the number of "
            "units unless repeat=True."
        )
    if candidates is not None and candidates < 1:
        raise errors.ArgumentError(f"forward(candidates={candidates}); it is 1 or more.")
    rng, most = np.random.default_rng(seed), min(candidates or size, size)
    counts, order, found = np.zeros(len(allowed), int), [], []
    for number in range(count):
        free = np.flatnonzero(allowed if repeat else allowed & (counts == 0))
        tried = free if len(free) <= most else np.sort(rng.choice(free, most, replace=False))
        # As many rows at every choice: a compiled loss serves all of them.
        padded = np.concatenate([tried, np.full(most - len(tried), tried[0])])
        # a <- (1 - 1/n) a + (1/n) e_i, in counts: (counts + e_i) / (n + 1)
        sets = counts + np.eye(len(allowed), dtype=int)[padded]
        values = np.asarray(losses(_gates(sets, size), number), float)[: len(tried)]
        if not np.isfinite(values).any():
            raise errors.ArgumentError(
                f"no candidate of choice {number + 1} has a finite loss: the net has diverged, or "
                "its outputs are NaN."
            )
        best = int(np.nanargmin(np.where(np.isfinite(values), values, np.nan)))
        counts[tried[best]] += 1
        order.append(int(tried[best]))
        found.append(float(values[best]))
        if enough is not None and enough(_gates(counts, size)):
            break
    return Selection(counts, _gates(counts, size), np.array(order, int), np.array(found))


def _gates(counts: np.ndarray, size: int) -> np.ndarray:
    """D a of D = size units, with a = counts / n along the last axis."""
    return size * counts / counts.sum(axis=-1, keepdims=True)

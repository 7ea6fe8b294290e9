"""The norm of all that belongs to a unit: what makes it, and what reads it.

References:
    Fang, Ma, Song, Mi, Wang, DepGraph: towards any structural pruning, 2023, arXiv 2301.12900;
    as in the authors' code (Torch-Pruning).
"""

from typing import Any

import numpy as np

from jprune import errors
from jprune.base import Criterion, Groups
from jprune.blocks import coupled
from jprune.blocks.members import leaves_of, total

NORMALIZERS = ("mean", "max", "none")


def coupled_norm(
    groups: Groups, order: int = 2, normalize: str = "mean", shifts: bool = False
) -> Criterion:
    """|w|^order summed over each slice of a unit, and its mean over the slices.

    A slice is the part of a unit in one leaf: its filter in every producer, its scale in every
    norm, its inputs in every consumer.

    Args:
        groups: from `trace`.
        order: 1, or 2 for squared norms.
        normalize: what a group's scores are divided by: their "mean" or "max" over the units that
            are not 0, which makes two different rankings over all groups; "none".
        shifts: whether biases and shifts are slices.

    Returns:
        A criterion that scores units and needs no data.

    Raises:
        ArgumentError: another order or normalizer.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> v = {"a": jnp.array([[3.0, 1.0]]), "b": jnp.array([[1.0], [1.0]])}
        >>> groups = jprune.trace(lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"], v, jnp.ones(1))
        >>> jprune.run_criterion(coupled_norm(groups, normalize="none"), v, ())["a"].tolist()
        [5.0, 1.0]
    """
    if order not in (1, 2) or normalize not in NORMALIZERS:
        raise errors.ArgumentError(
            f"coupled_norm(order={order}, normalize={normalize!r}); write 1 or 2, and one of "
            f"{', '.join(NORMALIZERS)}."
        )
    units = coupled(groups, shifts=shifts)
    slices = {name: _slices(block) for name, block in units.items()}

    def score(state: Any, variables: Any) -> dict[str, np.ndarray]:
        del state
        leaves = leaves_of(units, variables)
        scores = {}
        for name, block in units.items():
            # I_k = mean over the slices of unit k of ||slice||_p^p
            sums = total(block, leaves, lambda leaf: abs(leaf) ** order)
            scores[name] = np.asarray(sums, float) / slices[name]
            alive = scores[name][scores[name] > 0]
            if normalize != "none" and alive.size:
                # I_k / mean_j I_j, or / max_j I_j; units of zeros are gone, and do not count
                scores[name] = scores[name] / getattr(alive, normalize)()
        return scores

    return Criterion(lambda variables: (), lambda state, variables, batch: state, score, False)


def _slices(block: Any) -> np.ndarray:
    """[units]: in how many leaves a unit stands."""
    counts = np.zeros(block.size)
    for member in block.members:
        # Behind a flatten a unit stands at many positions, which are one slice.
        places = np.arange(block.size) if member.units is None else member.units
        counts[np.unique(places[places >= 0])] += 1
    return np.maximum(counts, 1)

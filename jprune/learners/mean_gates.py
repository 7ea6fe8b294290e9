"""Gates between 0 and 1 whose mean is pulled to a ratio: the loss alone says which ones stay.

References:
    Wang, Zhang, Xie, Zhou, Su, Zhang, Hu, Pruning from scratch, 2020, arXiv 1909.12579 [51].
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jprune import errors
from jprune.learners.norm_gates import Gates
from jprune.learners.unit_gates import Gating


def mean_penalty(gates: Mapping[str, Any], ratio: float, strength: float) -> Any:
    """Strength * (mean |gate| - ratio)^2, over the gates of all groups.

    Its slope is the same at every positive gate.

    Example:
        >>> gates = {"a": jnp.array([1.0, 0.5]), "b": jnp.array([0.0, 0.5])}
        >>> float(mean_penalty(gates, 0.25, 2.0))
        0.125
    """
    sizes = jnp.concatenate([jnp.abs(gate) for gate in gates.values()])
    # eta (mean_j |lambda_j| - r)^2
    return strength * (jnp.mean(sizes) - ratio) ** 2


def mean_gates(sizes: Mapping[str, int], ratio: float = 0.2, strength: float = 0.5) -> Gating:
    """Gates that begin at 1, beside frozen weights, with `mean_penalty`.

    The optimizer keeps them in [0, 1] (`jprune.sparsify.box`).

    Args:
        sizes: {group: units}; these groups have gates.
        ratio: that their mean is pulled to.
        strength: of the pull.

    Raises:
        ArgumentError: a ratio outside [0, 1), or a negative strength.
    """
    if not 0 <= ratio < 1 or not strength >= 0:
        raise errors.ArgumentError(
            f"gates with ratio={ratio}, strength={strength}; their mean begins at 1 and is pulled "
            "to the ratio, in [0, 1), by a strength of 0 or more."
        )

    def watched(trained: Gates, carried: Any, gates: Gates) -> dict[str, Any]:
        together = jnp.concatenate([*gates.values()])
        return {"open": jnp.mean(together > 0), "mean_gate": jnp.mean(together)}

    return Gating(
        init=lambda key: {name: jnp.ones(size) for name, size in sizes.items()},
        start={},
        values=lambda trained, carried, key: trained,
        penalty=lambda trained, carried, gates: mean_penalty(gates, ratio, strength),
        settled=lambda trained, carried: trained,
        scores=lambda trained, carried: trained,
        after=lambda trained, carried, gates: (trained, carried),
        watched=watched,
        frozen=True,
    )

"""What E4 and E7 share: sizes of weights at which layers keep what a paper keeps of them."""

from collections.abc import Mapping

import numpy as np

from jprune.base import Variables


def thresholds(variables: Variables, kept: Mapping[str, float], budget: float) -> dict[str, float]:
    """The size of weight, layer by layer, above which so many are as a paper keeps of the layer.

    Args:
        variables: of the net.
        kept: {layer: fraction}; all are scaled by one factor, none beyond 1, to meet the budget.
        budget: the fraction of the weights of these layers.
    """
    sizes = {name: np.abs(variables["params"][name]["kernel"]).ravel() for name in kept}
    counts = np.array([size.size for size in sizes.values()])
    fractions = np.array(list(kept.values()))
    for _ in range(100):
        fractions = np.minimum(1, fractions * budget * counts.sum() / (fractions @ counts))
    return {
        name: float(np.quantile(size, 1 - fraction))
        for (name, size), fraction in zip(sizes.items(), fractions)
    }

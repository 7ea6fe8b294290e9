"""Statistics of |w| by layer, and the thresholds that they make."""

from typing import Any

import jax
import jax.numpy as jnp

from jprune.base import Masks, Params, PyTree, is_none


def layers_of(masks: Masks) -> list[list[int]]:
    """Numbers of the masked leaves (None ones counted) of every layer: those of one parent."""
    layers: dict[Any, list[int]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(masks, is_leaf=is_none)
    for number, (path, mask) in enumerate(leaves):
        if mask is not None:
            layers.setdefault(path[:-1], []).append(number)
    return list(layers.values())


def moments_of(params: Params, masks: Masks) -> tuple[PyTree, PyTree]:
    """Mu and sd of |w| over the weights of a layer that are alive and not 0, at each of its leaves.

    Example:
        >>> w = jnp.array([0.2, -0.4, 0.6, -0.8, 1, -1.2, 1.4, -2.4])
        >>> mean, std = moments_of({"w": w}, {"w": jnp.ones(8, bool)})
        >>> print(round(float(mean["w"]), 3), round(float(std["w"]), 3))
        1.0 0.648
    """
    structure = jax.tree.structure(masks, is_leaf=is_none)
    flat_masks = structure.flatten_up_to(masks)
    sizes = [
        None if mask is None else jnp.where(mask, jnp.abs(leaf), 0)
        for mask, leaf in zip(flat_masks, structure.flatten_up_to(params))
    ]
    means: list[Any] = [None] * len(sizes)
    stds: list[Any] = [None] * len(sizes)
    for layer in layers_of(masks):
        parts: list[Any] = [sizes[number] for number in layer]
        count = jnp.maximum(sum(jnp.sum(part > 0) for part in parts), 1)
        # mu = mean |w|;  sd^2 = mean |w|^2 - mu^2
        mean = sum(jnp.sum(part) for part in parts) / count
        square = sum(jnp.sum(part**2) for part in parts) / count
        for number in layer:
            means[number] = mean
            stds[number] = jnp.sqrt(jnp.maximum(square - mean**2, 0))
    return structure.unflatten(means), structure.unflatten(stds)


def thresholds_of(params: Params, masks: Masks, c_rate: PyTree) -> PyTree:
    """The thresholds t = max(mu + c sd, 0) of all masked leaves; None elsewhere."""
    mean, std = moments_of(params, masks)
    same = isinstance(c_rate, (int, float))
    rates = jax.tree.map(lambda leaf: c_rate, mean) if same else c_rate
    # t = max(mu + c sd, 0)
    return jax.tree.map(
        lambda m, s, c: None if m is None else jnp.maximum(m + c * s, 0),
        mean, std, rates, is_leaf=is_none,
    )  # fmt: skip

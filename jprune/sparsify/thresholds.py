"""Mean and standard deviation of |w| by layer, and the thresholds made of them."""

from typing import Any

import jax
import jax.numpy as jnp

from jprune.base import Groups, Masks, Params, PyTree, is_none


def layer_numbers(groups: Groups) -> PyTree:
    """The number of its layer at every leaf, as a tree like the variables.

    A kernel, its parts and its bias are one layer; every other leaf is one by itself.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["w"] + v["b"], 0) @ v["out"]
        >>> variables = {"w": jnp.ones((3, 5)), "b": jnp.ones(5), "out": jnp.ones((5, 2))}
        >>> layer_numbers(jprune.trace(fn, variables, jnp.ones((1, 3))))
        {'b': 0, 'out': 1, 'w': 0}
    """
    owner: dict[str, str] = {}
    for path, layer in groups.layers.items():
        biases = () if layer.bias is None else (layer.bias,)
        for leaf in (path, *layer.parts, *biases):
            # A leaf that two layers share belongs to the first one.
            owner.setdefault(leaf, path)
    numbers: dict[str, int] = {}
    owners = [owner.get(path, path) for path in groups.leaves]
    return groups.treedef.unflatten([numbers.setdefault(own, len(numbers)) for own in owners])


def leaves_by_layer(masks: Masks, layers: PyTree = None) -> list[list[int]]:
    """Numbers of the masked leaves (None ones counted) of every layer.

    Args:
        masks: a tree, None where nothing is prunable.
        layers: a tree like the masks, the number of its layer at every leaf; None: every leaf is a
            layer by itself.
    """
    leaves, structure = jax.tree.flatten(masks, is_leaf=is_none)
    names = range(len(leaves)) if layers is None else structure.flatten_up_to(layers)
    by_layer: dict[Any, list[int]] = {}
    for number, (name, mask) in enumerate(zip(names, leaves)):
        if mask is not None:
            by_layer.setdefault(name, []).append(number)
    return list(by_layer.values())


def moments_of(params: Params, masks: Masks, layers: PyTree = None) -> tuple[PyTree, PyTree]:
    """Mu and sd of |w| over the weights of a layer that are alive and not 0, at each of its leaves.

    Args:
        params: the weights.
        masks: a tree like them; None leaves do not count.
        layers: as in `leaves_by_layer`.

    Example:
        >>> w = jnp.array([0.2, -0.4, 0.6, -0.8, 1, -1.2, 1.4, -2.4])
        >>> mean, std = moments_of({"w": w}, {"w": jnp.ones(8, bool)})
        >>> print(round(float(mean["w"]), 3), round(float(std["w"]), 3))
        1.0 0.648
    """
    structure = jax.tree.structure(masks, is_leaf=is_none)
    flat_masks = structure.flatten_up_to(masks)
    sizes = [
        # Masked weights become 0, and zeros do not count below.
        None if mask is None else jnp.where(mask, jnp.abs(leaf), 0)
        for mask, leaf in zip(flat_masks, structure.flatten_up_to(params))
    ]
    means: list[Any] = [None] * len(sizes)
    stds: list[Any] = [None] * len(sizes)
    for layer in leaves_by_layer(masks, layers):
        parts: list[Any] = [sizes[number] for number in layer]
        count = jnp.maximum(sum(jnp.sum(part > 0) for part in parts), 1)
        # mu = mean |w|;  sd^2 = mean |w|^2 - mu^2
        mean = sum(jnp.sum(part) for part in parts) / count
        square = sum(jnp.sum(part**2) for part in parts) / count
        for number in layer:
            means[number] = mean
            stds[number] = jnp.sqrt(jnp.maximum(square - mean**2, 0))
    return structure.unflatten(means), structure.unflatten(stds)


def thresholds_of(params: Params, masks: Masks, c_rate: PyTree, layers: PyTree = None) -> PyTree:
    """The thresholds t = max(mu + c sd, 0) of all masked leaves; None elsewhere."""
    mean, std = moments_of(params, masks, layers)
    same = isinstance(c_rate, (int, float))
    rates = jax.tree.map(lambda leaf: c_rate, mean) if same else c_rate
    # t = max(mu + c sd, 0)
    return jax.tree.map(
        lambda m, s, c: None if m is None else jnp.maximum(m + c * s, 0),
        mean, std, rates, is_leaf=is_none,
    )  # fmt: skip

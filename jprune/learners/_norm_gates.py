"""Gates on batch norms: one number a unit, for the scales of all norms that write it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Variables
from jprune.graph import Site, intercept
from jprune.units import check_units, leaves_by_path, places_of

Gates = dict[str, jax.Array]
"""{group: [units]}."""


def sample_gates(key: jax.Array, mu: Gates, log_var: Gates) -> Gates:
    """Gamma = mu + sigma epsilon, epsilon ~ N(0, 1), once for every unit.

    Example:
        >>> sample_gates(jax.random.key(0), {"a": jnp.ones(3)}, {"a": jnp.full(3, -jnp.inf)})["a"]
        Array([1., 1., 1.], dtype=float32)
    """
    names = sorted(mu)
    ends = np.cumsum([mu[name].size for name in names])
    drawn = jnp.split(jax.random.normal(key, (int(ends[-1]),)), ends[:-1].tolist())
    return {
        name: mu[name] + jnp.exp(0.5 * log_var[name]) * noise for name, noise in zip(names, drawn)
    }


def fold_gates(groups: Groups, variables: Variables, gamma: Mapping[str, Any]) -> Variables:
    """Writes gates into norms: the scale becomes gamma, the shift gamma times what it was.

    Args:
        groups: from `trace`.
        variables: of the net; shifts stand inside the product.
        gamma: {group: [units]}; groups that are not named keep their norms.

    Raises:
        StructureError: an unknown group, or a wrong length.
        FrozenError: a gate on something frozen.
    """
    check_units(groups, gamma)
    leaves = leaves_by_path(groups, variables)
    for name, place in places_of(groups, ("scale", "shift"), tuple(gamma)):
        old = leaves[place.leaf]
        shape = [-1 if axis == place.axis else 1 for axis in range(old.ndim)]
        along = jnp.asarray(gamma[name])[np.maximum(place.units, 0)].reshape(shape)
        new = along if "scale" in place.roles else along * old
        inside = (place.units >= 0).reshape(shape)
        leaves[place.leaf] = jnp.where(inside, new, old).astype(old.dtype)
    return groups.treedef.unflatten(list(leaves.values()))


def gateable(fn: Callable[..., Any], groups: Groups, shapes: Variables, example: Any) -> list[str]:
    """Groups that gates remove: whatever makes a unit ends in gamma (x + beta).

    Every producer is asked what stands behind it, for gates of 1 and of 2: both its slope and its
    shift must double.

    Args:
        fn: the function that was traced.
        groups: from `trace`.
        shapes: of the variables.
        example: shape and type of the input.

    Raises:
        ArgumentError: there is none: a net without batch norms.

    Example:
        >>> import jprune
        >>> def fn(v, x):
        ...     x = (x @ v["w"]) * v["scale"] + v["bias"]
        ...     return jnp.maximum(jnp.maximum(x, 0) @ v["plain"], 0) @ v["out"]
        >>> variables = {"w": jnp.ones((2, 3)), "scale": jnp.ones(3), "bias": jnp.ones(3),
        ...              "plain": jnp.ones((3, 4)), "out": jnp.ones((4, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 2)))
        >>> gateable(fn, groups, variables, jnp.ones((1, 2)))
        ['w']
    """
    names = [
        name
        for name in groups.names
        if any("scale" in place.roles for place in groups.places[name])
    ]
    behind = jax.jit(_behind(fn, groups, names, example))
    filled = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1.5, leaf.dtype), shapes)
    once, twice = (jax.tree.map(np.asarray, behind(filled, gate)) for gate in (1.0, 2.0))
    found = []
    for name in names:
        slopes = [
            (once[site][:, place.units >= 0], twice[site][:, place.units >= 0])
            for _, place in places_of(groups, ("kernel",), (name,))
            for site in once
            if site.partition("@")[0] == place.leaf and once[site].shape[1] == len(place.units)
        ]
        doubles = (np.allclose(2 * a, b) and np.all(a[1] != a[0]) for a, b in slopes)
        if slopes and all(doubles):
            found.append(name)
    if not found:
        raise errors.ArgumentError(
            "the net has no unit whose producers all end in a batch norm of their own, so there "
            "are no scales to gate. Take a net with batch norms, or another method such as taylor."
        )
    return found


def _behind(
    fn: Callable[..., Any], groups: Groups, names: Sequence[str], example: Any
) -> Callable[..., dict[str, Any]]:
    """`(variables, gate) -> {layer: [2, outputs]}`: what stands behind outputs of 0 and of 1."""

    def handler(site: Site, value: Any, seen: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if site.kind == "out":
            probe = jnp.arange(2, dtype=value.dtype).reshape(2, *[1] * (value.ndim - 1))
            value = jnp.broadcast_to(probe, value.shape)
        rows = jnp.moveaxis(value, site.axis, -1).reshape(2, -1, value.shape[site.axis])[:, 0]
        return value, {**seen, site.layer: rows}

    run = intercept(fn, groups, handler, ("out", "norm"))
    x = jnp.zeros((2, *example.shape[1:]), example.dtype)

    def behind(variables: Variables, gate: Any) -> dict[str, Any]:
        gates = {name: jnp.full(groups.sizes[name], gate) for name in names}
        return run(fold_gates(groups, variables, gates), {}, x)[1]

    return behind

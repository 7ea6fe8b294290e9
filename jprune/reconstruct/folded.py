"""The incoming weights of units with biases and norms folded in, read off the net without data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune.base import Groups, Place, Variables
from jprune.graph.look.affine import affine_leaves, affine_of
from jprune.units import leaves_by_path, places_of

AFFINE_ROLES = ("scale", "shift", "mean", "var")


class Affine(NamedTuple):
    """Bias and norm between a layer and its nonlinearity, as one function: scale * x + shift.

    Attributes:
        scale: [outputs].
        shift: [outputs].
    """

    scale: Any
    shift: Any


def affines(
    fn: Callable[..., Any], groups: Groups, variables: Variables, example: Any
) -> tuple[dict[str, Affine], frozenset[str]]:
    """Scale and shift that follow every layer, and the leaves that they are computed from.

    They are read off the traced net, whatever the name, layout or epsilon of a norm, and without
    data: see `jprune.graph.look.affine`.

    Args:
        fn: the function that was traced.
        groups: from `trace`.
        variables: of the net.
        example: shape and type of its input.

    Returns:
        `({site: Affine}, paths of the leaves)`.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(3 * (x @ v["w"]) + v["b"], 0) @ v["out"]
        >>> variables = {"w": jnp.ones((3, 2)), "b": jnp.array([4.0, 5.0]), "out": jnp.ones((2, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 3)))
        >>> by_site, leaves = affines(fn, groups, variables, jnp.ones((1, 3)))
        >>> by_site["w"].scale.tolist(), by_site["w"].shift.tolist(), sorted(leaves)
        ([3.0, 3.0], [4.0, 5.0], ['b'])
    """
    # Scale and shift do not depend on the data: zeros of one example will do.
    x = jnp.zeros((1, *example.shape[1:]), example.dtype)
    by_site = jax.jit(affine_of(fn, groups))(variables, x)
    made_of = affine_leaves(fn, groups, variables, x)
    return (
        {site: Affine(*map(np.asarray, parts)) for site, parts in by_site.items()},
        frozenset(path for paths in made_of.values() for path in paths),
    )


def weight_sets(
    groups: Groups,
    variables: Variables,
    by_site: Mapping[str, Affine],
    made_of: frozenset[str],
    names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """{group: [units, fan]}: all parameters that determine a unit's output, float64.

    For every producer these are its kernel times the scale that follows it, and the shift; and,
    unchanged, parameters of norms elsewhere (on a stream, before an activation). Two units with
    equal rows compute the same function. Groups with a kernel to which no layer's outputs belong
    are left out.

    Args:
        groups: from `trace`.
        variables: of the net.
        by_site: first result of `affines` for these variables.
        made_of: its second result.
        names: of groups; None: all.
    """
    leaves = leaves_by_path(groups, variables)
    sets: dict[str, np.ndarray] = {}
    for name in groups.names if names is None else names:
        size = groups.sizes[name]
        parts: list[np.ndarray] | None = []
        for _, place in places_of(groups, ("kernel",), (name,)):
            folded = _producer(groups, leaves, place, by_site, size)
            parts = None if parts is None or folded is None else [*parts, *folded]
        # Norms that are folded into a kernel already (made_of) must not count twice.
        for _, place in places_of(groups, AFFINE_ROLES, (name,)):
            if parts is not None and place.leaf not in made_of:
                parts.append(_by_unit(np.asarray(leaves[place.leaf]), place, size))
        if parts:
            sets[name] = np.concatenate([part.reshape(size, -1) for part in parts], axis=1)
    return sets


def _producer(
    groups: Groups,
    leaves: Mapping[str, Any],
    place: Place,
    by_site: Mapping[str, Affine],
    size: int,
) -> list[np.ndarray] | None:
    """Folded kernel and shift of every use of a kernel; None where they do not fit together."""
    layer = groups.layers.get(place.leaf)
    uses = [] if layer is None else [by_site[site] for site in layer.sites if site in by_site]
    if not uses or any(len(affine.scale) != len(place.units) for affine in uses):
        return None
    kernel = np.moveaxis(np.asarray(leaves[place.leaf], np.float64), place.axis, 0)
    parts = []
    for affine in uses:
        # scale (W x) + shift = (scale W) x + shift: the folded kernel and the folded bias.
        scale = np.asarray(affine.scale, np.float64).reshape(-1, *[1] * (kernel.ndim - 1))
        parts.append(_by_unit(kernel * scale, place._replace(axis=0), size))
        parts.append(_by_unit(np.asarray(affine.shift, np.float64), place._replace(axis=0), size))
    return parts


def _by_unit(values: np.ndarray, place: Place, size: int) -> np.ndarray:
    """[units, rest] of an array that has the units on the place's axis."""
    along = np.moveaxis(np.asarray(values, np.float64), place.axis, 0)
    taken = np.flatnonzero(place.units >= 0)
    # Positions sorted by unit; a unit's several positions end up in one row.
    order = taken[np.argsort(place.units[taken], kind="stable")]
    return along[order].reshape(size, -1)

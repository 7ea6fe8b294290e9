"""Where activations are read, and which functions make them exactly 0."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Variables
from jprune.graph.look.intercept import Site, intercept

KINDS = ("act", "in", "norm", "out", "join")
LEVELS = (-3.3, -0.3)
"""Results of layers that `rectified` tries: hard-swish is 0 at one, a shrinkage at the other."""
SHIFT = -0.3


def places_read(
    groups: Groups, at: str = "act", only: Sequence[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """{group: names of the places where its activation is read}, of groups that have one.

    A name is the layer and the kind of a site: "conv1/kernel act".

    Args:
        groups: from `trace`.
        at: kind of the places: "act", "in", "norm", "out" or "join"; a group that has none of the
            kind is read at "in", as its consumers see it.
        only: names of groups; None: all.

    Raises:
        ArgumentError: another kind, a group that there is not, or none that has a place.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"] @ v["c"]
        >>> v = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 4)), "c": jnp.ones((4, 2))}
        >>> places_read(jprune.trace(fn, v, jnp.ones((1, 2))))
        {'a': ('a act',), 'b': ('c in',)}
    """
    if at not in KINDS:
        raise errors.ArgumentError(f"at={at!r}; write one of {', '.join(KINDS)}.")
    names = groups.names if only is None else tuple(only)
    if unknown := [name for name in names if name not in groups.sizes]:
        raise errors.ArgumentError(
            f"only names {', '.join(unknown)}; the groups are {', '.join(groups.names) or 'none'}."
        )

    def of(kind: str, name: str) -> tuple[str, ...]:
        sites = (site for site in groups.sites if site.kind == kind and name in site.groups)
        return tuple(f"{site.layer} {kind}" for site in sites)

    places = {name: of(at, name) or of("in", name) for name in names}
    places = {name: of_group for name, of_group in places.items() if of_group}
    if not places:
        raise errors.ArgumentError(
            f"no group of this net has a place {at!r} where its activation can be read: it has no "
            "group, or all of them run inside loops. Take a criterion of weights, such as l1."
        )
    return places


def rectified(
    fn: Callable[..., Any], groups: Groups, variables: Variables, *args: Any, at: str = "act"
) -> tuple[str, ...]:
    """Names of the groups whose activation can be exactly 0 on an interval, as behind a ReLU.

    The functions of the net are tried out: every layer gives the same number, and where a group is
    read it is seen whether that makes all of it 0. A GELU, tanh or leaky ReLU is 0 at 0 alone.

    Args:
        fn: the function that was traced.
        groups: from `trace`.
        variables: or their shapes; values are not looked at.
        *args: inputs, or their shapes.
        at: kind of the places, as of `places_read`.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.tanh(jnp.maximum(x @ v["a"], 0) @ v["b"]) @ v["c"]
        >>> v = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 4)), "c": jnp.ones((4, 2))}
        >>> rectified(fn, jprune.trace(fn, v, jnp.ones((1, 2))), v, jnp.ones((1, 2)))
        ('a',)
    """
    places = places_read(groups, at)
    # Scales of 1 and means of 0 pass a number on. A shift is not 0: behind a norm over positions
    # all numbers are 0, and tanh(0) is 0 as well.
    role = {place.leaf: place.roles[0] for of in groups.places.values() for place in of}
    worth = {"shift": SHIFT, "mean": 0.0}

    def filled(path: str, leaf: jax.ShapeDtypeStruct) -> Any:
        return np.full(leaf.shape, worth.get(role.get(path, ""), 1.0)).astype(leaf.dtype)

    leaves = [filled(path, leaf) for path, leaf in groups.leaves.items()]
    filled_in = jax.tree.unflatten(jax.tree.structure(variables), leaves)
    inputs = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), args)

    def handler(site: Site, value: Any, carry: Any) -> tuple[Any, Any]:
        level, silent = carry
        for name, units in site.units.items():
            if f"{site.layer} {site.kind}" in places.get(name, ()):
                of_group = jnp.take(value, np.flatnonzero(units >= 0), axis=site.axis)
                zero = (of_group == 0).all()
                silent = {**silent, name: silent[name] & zero if name in silent else zero}
        return (jnp.full_like(value, level) if site.kind == "out" else value), (level, silent)

    kinds = {place.rpartition(" ")[2] for of_group in places.values() for place in of_group}
    run = intercept(fn, groups, handler, tuple({"out", *kinds}))
    tried = jax.jit(lambda level: run(filled_in, (level, {}), *inputs)[1][1])
    answers = [jax.device_get(tried(level)) for level in LEVELS]
    return tuple(name for name in places if any(answer.get(name, False) for answer in answers))

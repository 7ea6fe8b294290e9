"""How much the next layer's output changes without some units, for all layers in one pass.

A net runs on twice the batch. Wherever a layer reads units, its second half gets what the first
half has there, without the units that are closed; so every layer's second half is what this one
layer says without them, and nothing of an earlier layer's damage goes on.

References:
    Ding, Ding, Guo, Han, Yan, Approximated oracle filter pruning for destructive CNN width
    optimization, 2019, arXiv 1905.04748 [23]. Theirs runs every next layer a second time, on
    statistics of its own; here both halves have the running ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Variables
from jprune.graph import Site, intercept

Damages = Callable[[Variables, Mapping[str, Any], Any], dict[str, jax.Array]]


def readers(groups: Groups) -> dict[str, tuple[str, ...]]:
    """{group: call sites of the layers that read it}, groups without one left out.

    A layer that also makes the units that it reads (a depthwise convolution) is none: its outputs
    go with its inputs.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}
        >>> readers(jprune.trace(fn, variables, jnp.ones((1, 3))))
        {'first': ('second',)}
    """
    sites = [site for site in groups.sites if site.kind == "in"]
    found = {
        name: tuple(
            site.layer
            for site in sites
            if name in site.groups and name not in groups.layers[site.kernel].writes
        )
        for name in groups.names
    }
    return {name: layers for name, layers in found.items() if layers}


def isolated_damages(fn: Callable[..., Any], groups: Groups, names: tuple[str, ...]) -> Damages:
    """A function that says what closing some units of every group does to the layers that read it.

    t = ||y - y'||^2 / ||y||^2 over the whole batch, y being what the layer says behind its norm and
    nonlinearity, y' the same without the closed units; of several readers, sums over all.

    Args:
        fn: the network, in inference mode, that was traced; examples do not see each other there.
        groups: from `trace`.
        names: of groups, each read by some layer.

    Returns:
        `damages(variables, open, x) -> {group: t}`, jittable; `open` is {group: bool [units]},
        False where a unit is closed.

    Raises:
        ArgumentError: a group that no layer reads.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> v = {"first": jnp.eye(2), "second": jnp.array([[3.0, 0.0], [0.0, 4.0]])}
        >>> x = jnp.ones((1, 2))
        >>> damages = isolated_damages(fn, jprune.trace(fn, v, x), ("first",))
        >>> round(float(damages(v, {"first": jnp.array([False, True])}, x)["first"]), 4)
        0.36
    """
    by_group = readers(groups)
    if unread := [name for name in names if name not in by_group]:
        raise errors.ArgumentError(
            f"no layer reads {unread[0]} where it can be looked at (it may be inside a loop). "
            "Leave it out."
        )
    of_site = {
        layer: [n for n in names if layer in by_group[n]] for n in names for layer in by_group[n]
    }
    order = {(site.layer, site.kind): number for number, site in enumerate(groups.sites)}

    def end_of(layer: str) -> str:
        """Behind the nonlinearity, or behind the norm where a sum comes before it."""
        # What is added is another layer's, and has that one's damage in it.
        act, joined = (order.get((layer, kind), len(order)) for kind in ("act", "join"))
        return "act" if act < joined else "norm"

    end = {layer: end_of(layer) for layer in of_site}

    def handler(site: Site, value: Any, carry: Any) -> tuple[Any, Any]:
        open_units, sums = carry
        base, side = jnp.split(value, 2, axis=site.examples)
        if site.kind == "in":
            side = base
            for name in of_site.get(site.layer, ()):
                units = site.units[name]
                # 1 at positions of other groups: unit -1 would read the last one's.
                gate = jnp.where(units < 0, True, open_units[name][np.maximum(units, 0)])
                side = side * site.along(gate, value.ndim).astype(value.dtype)
            return jnp.concatenate([base, side], axis=site.examples), carry
        if end.get(site.layer) == site.kind:
            square = lambda x: jnp.square(x.astype(jnp.float32)).sum()
            for name in of_site[site.layer]:
                # t = ||base_{i+1} - side_{i+1}||^2 / ||base_{i+1}||^2
                change, whole = sums[name]
                sums = {**sums, name: (change + square(base - side), whole + square(base))}
        return value, (open_units, sums)

    run = intercept(fn, groups, handler, ("in", "norm", "act"))

    def damages(
        variables: Variables, open_units: Mapping[str, Any], x: Any
    ) -> dict[str, jax.Array]:
        zeros = {name: (jnp.zeros(()), jnp.zeros(())) for name in names}
        opened = {name: jnp.asarray(open_units[name], bool) for name in names}
        twice = jnp.concatenate([x, x])
        _, (_, sums) = run(jax.lax.stop_gradient(variables), (opened, zeros), twice)
        # A layer that says nothing cannot be damaged.
        return {n: change / jnp.maximum(whole, 1e-30) for n, (change, whole) in sums.items()}

    return damages

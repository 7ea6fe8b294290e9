"""The factor and offset per channel between a contraction and its nonlinearity."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jprune.base import Groups
from jprune.graph.couple.coupling import couple
from jprune.graph.look.branches import dependencies
from jprune.graph.look.intercept import Site, intercept
from jprune.graph.look.sites import find_spots


def affine_leaves(
    fn: Callable[..., Any], groups: Groups, variables: Any, *args: Any
) -> dict[str, tuple[str, ...]]:
    """{call site: leaves between the contraction's result and the site `norm`}.

    Args:
        fn: the network, in inference mode.
        groups: from `trace`.
        variables: or their shapes.
        *args: inputs.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"] + v["b"], 0) @ v["c"]
        >>> v = {"a": jnp.ones((3, 5)), "b": jnp.ones(5), "c": jnp.ones((5, 2))}
        >>> affine_leaves(fn, jprune.trace(fn, v, jnp.ones((1, 3))), v, jnp.ones((1, 3)))["a"]
        ('b',)
    """
    coupling = couple(fn, variables, *args, inline_remat=True, groups=groups)
    program, paths = coupling.program, coupling.paths
    bits = dependencies(program, len(paths))
    spots = {(s.layer, s.kind): s.value for s in find_spots(program, coupling.uses, paths)}
    result = {}
    for layer, kind in spots:
        if kind == "norm" and (layer, "out") in spots:
            # Leaves that the value at `norm` depends on and the contraction's result does not.
            between = bits[spots[layer, kind]] & ~bits[spots[layer, "out"]]
            result[layer] = tuple(p for number, p in enumerate(paths) if between >> number & 1)
    return result


def affine_of(fn: Callable[..., Any], groups: Groups) -> Callable[..., dict[str, tuple[Any, Any]]]:
    """`affine(variables, *args) -> {call site: (factor [channels], offset [channels])}`.

    Read off the net itself: with every contraction's result replaced by 0s, and by 1s.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(2 * (x @ v["a"]) + v["b"], 0) @ v["c"]
        >>> v = {"a": jnp.ones((3, 5)), "b": jnp.full(5, 7.0), "c": jnp.ones((5, 2))}
        >>> groups, x = jprune.trace(fn, v, jnp.ones((1, 3))), jnp.ones((1, 3))
        >>> factor, offset = affine_of(fn, groups)(v, x)["a"]
        >>> float(factor[0]), float(offset[0])
        (2.0, 7.0)
    """

    def seen(probe: float) -> Callable[..., Any]:
        def handler(site: Site, value: Any, carry: dict[str, Any]) -> tuple[Any, Any]:
            if site.kind == "out":
                # norm = factor out + offset: out = 0 gives the offset, out = 1 factor + offset.
                return jnp.full_like(value, probe), carry
            # [..., channels, ...] -> [channels]: all positions have the same value, so one is
            # taken.
            channels = jnp.moveaxis(value, site.axis, -1)
            return value, {**carry, site.layer: channels.reshape(-1, channels.shape[-1])[0]}

        return intercept(fn, groups, handler, ("out", "norm"))

    def affine(variables: Any, *args: Any) -> dict[str, tuple[Any, Any]]:
        low, high = (seen(probe)(variables, {}, *args)[1] for probe in (0.0, 1.0))
        # factor = f(1) - f(0), offset = f(0)
        return {layer: (high[layer] - low[layer], low[layer]) for layer in low}

    return affine

"""What consumers read and say, at sampled positions of calibration images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Variables
from jprune.graph import Site, intercept

Look = Callable[[Variables, Any, jax.Array], dict[str, "Windows"]]


class Windows(NamedTuple):
    """One call site of a layer, at sampled positions: rows are examples times positions."""

    inputs: Any
    """[rows, channels, window], or None where nobody asked."""
    outputs: Any
    """[rows, outputs], before the bias."""
    norm: Any = None
    """[rows, outputs]: behind bias and norm."""
    join: Any = None
    """[rows, outputs]: the sum that `norm` goes into at once; None where there is none."""


def sites_of(groups: Groups, kernels: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """{kernel: names of its call sites}, in execution order.

    Kernels whose contraction has no site (those inside loops) have no names.
    """
    layers = groups.layers
    return {path: layers[path].sites if path in layers else () for path in kernels}


def look(
    fn: Callable[..., Any], groups: Groups, sites: Sequence[str], points: int, inputs: bool = True
) -> Look:
    """A jitted function that sees what layers read and say.

    Args:
        fn: the function that was traced.
        groups: from `trace`.
        sites: names of call sites of plain kernels, [window..., inputs, outputs].
        points: positions an example, drawn without repetition; all where there are fewer.
        inputs: whether what is read is wanted.

    Returns:
        `(variables, image, key) -> {site: Windows}`. The same key draws the same positions
        whatever the variables, so two nets can be compared row by row.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 3)))
        >>> see = look(fn, groups, ["second"], points=1)
        >>> see(variables, jnp.ones((7, 3)), jax.random.key(0))["second"].inputs.shape
        (7, 5, 1)
    """
    wanted = set(sites)
    number = {
        site: place for place, site in enumerate(dict.fromkeys(s.layer for s in groups.sites))
    }
    kinds = ("in", "out", "norm", "act", "join")

    def handler(site: Site, value: Any, carry: Any) -> tuple[Any, Any]:
        key, seen = carry
        if site.layer not in wanted or (site.kind == "in" and not inputs):
            return value, carry
        mine = jax.random.fold_in(key, number[site.layer])
        if site.kind == "in":
            dense = not groups.layers[site.kernel].window
            here = _dense_windows(site, value) if dense else _windows(site, value)
            seen = {**seen, (site.layer, "in"): here(mine, points)}
        elif site.kind != "join" or (site.layer, "act") not in seen:
            seen = {**seen, (site.layer, site.kind): _at_points(value, site.axis, mine, points)}
        return value, (key, seen)

    run = intercept(fn, groups, handler, kinds)

    @jax.jit
    def see(variables: Variables, image: Any, key: jax.Array) -> dict[str, Windows]:
        _, (_, seen) = run(variables, (key, {}), image)
        return {site: _gathered(seen, site) for site in sites}

    return see


def _gathered(seen: Mapping[tuple[str, str], Any], site: str) -> Windows:
    found = {kind: seen.get((site, kind)) for kind in ("in", "out", "norm", "join")}
    join, norm = found["join"], found["norm"]
    if join is None or norm is None or join.shape != norm.shape:
        join = None
    return Windows(found["in"], found["out"], norm, join)


def _drawn(key: jax.Array, examples: int, positions: int, points: int) -> jax.Array:
    """[examples, points] numbers of positions."""
    if points >= positions:
        return jnp.broadcast_to(jnp.arange(positions), (examples, positions))
    return jax.lax.top_k(jax.random.uniform(key, (examples, positions)), points)[1]


def _at_points(value: Any, axis: int, key: jax.Array, points: int) -> jax.Array:
    """[rows, channels] of a site's value."""
    last = jnp.moveaxis(value, axis, -1)
    flat = last.reshape(last.shape[0], -1, last.shape[-1])
    drawn = _drawn(key, flat.shape[0], flat.shape[1], points)
    return jnp.take_along_axis(flat, drawn[..., None], axis=1).reshape(-1, flat.shape[-1])


def _dense_windows(site: Site, value: Any) -> Callable[[jax.Array, int], jax.Array]:
    def here(key: jax.Array, points: int) -> jax.Array:
        return _at_points(value, site.axis, key, points)[..., None]

    return here


def _windows(site: Site, value: Any) -> Callable[[jax.Array, int], jax.Array]:
    """Windows of a convolution, gathered where they are drawn: all of them cost 15 convolutions."""

    def here(key: jax.Array, points: int) -> jax.Array:
        last = jnp.moveaxis(value, site.axis, -1)
        examples, *places, channels = last.shape
        pixels = int(np.prod(places))
        # The windows of the pixels' own numbers, counted from 1, say where each tap reads; 0 is the
        # padding. float32 counts to 16 million.
        numbers = jnp.arange(1, pixels + 1, dtype=jnp.float32).reshape(1, *places, 1)
        taps = site.patches(jnp.moveaxis(numbers, -1, site.axis)).astype(int)
        taps = taps.reshape(-1, taps.shape[-1])
        drawn = taps[_drawn(key, examples, taps.shape[0], points)]
        flat = jnp.pad(last.reshape(examples, pixels, channels), ((0, 0), (1, 0), (0, 0)))
        read = flat[jnp.arange(examples)[:, None, None], drawn]
        return jnp.swapaxes(read, 2, 3).reshape(-1, channels, taps.shape[-1])

    return here


def collect(
    see: Look, variables: Variables, images: Sequence[Any], key: jax.Array
) -> dict[str, Windows]:
    """What a net's layers read and say over all calibration images, on the host.

    Args:
        see: from `look`.
        variables: of the net.
        images: batches of inputs.
        key: of the positions.

    Raises:
        ArgumentError: no batch, or values that are not finite.
    """
    if not images:
        raise errors.ArgumentError(
            "reconstruction got no calibration batch. Ask for one batch or more: batches=1."
        )
    parts = [
        jax.tree.map(np.asarray, see(variables, jnp.asarray(image), jax.random.fold_in(key, n)))
        for n, image in enumerate(images)
    ]
    found = jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)
    for site, windows in found.items():
        if not np.isfinite(windows.outputs).all():
            raise errors.ArgumentError(
                f"the outputs of {site} on calibration images are not finite. Check the net and "
                "its data before pruning."
            )
    return found


def aimed(now: Windows, dense: Windows) -> np.ndarray:
    """What a layer should say, so that what follows is what it was in the dense net.

    That is the dense net's output, but for a layer whose norm goes into a sum at once: there it is
    Y1 - Y1' + Y2 (Y2 the branch, Y1 and Y1' the shortcut before and after earlier pruning), taken
    back through the norm. The norm is a scale a and a shift per channel, so that is what the layer
    says now, plus the error of the sum over a. Channels with a = 0 say nothing; they keep the dense
    target.

    Returns:
        [rows, outputs], float64.
    """
    if now.join is None or dense.join is None:
        return np.asarray(dense.outputs, np.float64)
    outputs, norm = np.asarray(now.outputs, np.float64), np.asarray(now.norm, np.float64)
    centred = outputs - outputs.mean(axis=0)
    spread = (centred**2).sum(axis=0)
    scale = (centred * norm).sum(axis=0) / np.where(spread > 0, spread, 1)
    error = np.asarray(dense.join, np.float64) - now.join
    open_channels = np.abs(scale) > 1e-6 * np.abs(scale).max(initial=0)
    through = np.where(open_channels, scale, 1)
    return np.where(open_channels, outputs + error / through, dense.outputs)

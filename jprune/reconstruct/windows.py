"""Inputs and outputs of layers, at sampled positions of calibration images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Batch, Groups, Variables
from jprune.curvature.products import losses_of
from jprune.graph import Site, intercept, perturbed, taps

Look = Callable[[Variables, Any, jax.Array], dict[str, "Windows"]]


class Windows(NamedTuple):
    """One call site of a layer, at sampled positions: rows are examples times positions.

    Attributes:
        inputs: [rows, channels, window], or None where they were not wanted.
        outputs: [rows, outputs], before the bias.
        norm: [rows, outputs]: after bias and norm.
        join: [rows, outputs]: the sum that `norm` is added to directly; None where there is none.
    """

    inputs: Any
    outputs: Any
    norm: Any = None
    join: Any = None


def look(
    fn: Callable[..., Any], groups: Groups, sites: Sequence[str], points: int, inputs: bool = True
) -> Look:
    """A jitted function that returns inputs and outputs of layers at sampled positions.

    Args:
        fn: the function that was traced.
        groups: from `trace`.
        sites: names of call sites of plain layers, their kernels in any layout.
        points: positions per example, drawn without repetition; all where there are fewer.
        inputs: whether the layers' inputs are wanted.

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
    number = _numbers(groups)
    kinds = ("in", "out", "norm", "act", "join")

    def handler(site: Site, value: Any, carry: Any) -> tuple[Any, Any]:
        # One key per site: its input and its outputs are drawn at the same positions.
        key, samples = carry
        if site.layer not in wanted or (site.kind == "in" and not inputs):
            return value, carry
        site_key = jax.random.fold_in(key, number[site.layer])
        if site.kind == "in":
            dense = not groups.layers[site.kernel].window
            window_sampler = _dense_windows(site, value) if dense else _windows(site, value)
            samples = {**samples, (site.layer, "in"): window_sampler(site_key, points)}
        # A sum behind a nonlinearity is not one that the norm goes into directly.
        elif site.kind != "join" or (site.layer, "act") not in samples:
            samples = {
                **samples,
                (site.layer, site.kind): _at_points(value, site.axis, site_key, points),
            }
        return value, (key, samples)

    run = intercept(fn, groups, handler, kinds)

    @jax.jit
    def see(variables: Variables, image: Any, key: jax.Array) -> dict[str, Windows]:
        _, (_, samples) = run(variables, (key, {}), image)
        return {site: _gathered(samples, site) for site in sites}

    return see


def look_at_slopes(
    fn: Callable[..., Any],
    loss: Callable[..., Any],
    groups: Groups,
    sites: Sequence[str],
    points: int,
) -> Callable[[Variables, Batch, jax.Array], dict[str, Any]]:
    """A jitted function that returns the slopes of the loss by layers' outputs, at the same points.

    Args:
        fn: the function that was traced.
        loss: `loss(out, batch) -> [batch]`.
        groups: from `trace`.
        sites: names of call sites.
        points: as of `look`.

    Returns:
        `(variables, batch, key) -> {site: [rows, outputs]}`: dC_n/dY of every example's own loss,
        at the positions that `look` draws with the same key.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 3)))
        >>> see = look_at_slopes(fn, lambda out, batch: out[:, 0] ** 2, groups, ["second"], 1)
        >>> see(variables, {"image": jnp.ones((2, 3))}, jax.random.key(0))["second"].tolist()
        [[30.0, 0.0], [30.0, 0.0]]
    """
    number, axes = _numbers(groups), {s.layer: s.axis for s in groups.sites if s.kind == "out"}
    run, seen = perturbed(fn, groups, ("out",)), taps(fn, groups, ("out",))

    @jax.jit
    def see(variables: Variables, batch: Batch, key: jax.Array) -> dict[str, Any]:
        shapes = jax.eval_shape(seen, variables, batch["image"])[1]
        of = lambda site: shapes[site, "out"]
        nothing = {(s, "out"): jnp.zeros(of(s).shape, of(s).dtype) for s in sites}
        # The sum of all losses: an example's slope does not depend on how many there are.
        total = lambda d: losses_of(loss, run(variables, d, batch["image"]), batch).sum()
        slopes = jax.grad(total)(nothing)
        key_of = lambda site: jax.random.fold_in(key, number[site])
        return {s: _at_points(slopes[s, "out"], axes[s], key_of(s), points) for s in sites}

    return see


def _numbers(groups: Groups) -> dict[str, int]:
    """{call site: its number}, of which the key of its positions is made."""
    return {site: place for place, site in enumerate(dict.fromkeys(s.layer for s in groups.sites))}


def _gathered(samples: Mapping[tuple[str, str], Any], site: str) -> Windows:
    by_kind = {kind: samples.get((site, kind)) for kind in ("in", "out", "norm", "join")}
    join, norm = by_kind["join"], by_kind["norm"]
    if join is None or norm is None or join.shape != norm.shape:
        join = None
    return Windows(by_kind["in"], by_kind["out"], norm, join)


def _drawn(key: jax.Array, examples: int, positions: int, points: int) -> jax.Array:
    """[examples, points]: numbers of the positions drawn for every example."""
    if points >= positions:
        return jnp.broadcast_to(jnp.arange(positions), (examples, positions))
    # The places of the largest of uniform numbers: draws without repetition, in one call.
    return jax.lax.top_k(jax.random.uniform(key, (examples, positions)), points)[1]


def _at_points(value: Any, axis: int, key: jax.Array, points: int) -> jax.Array:
    """[rows, channels]: a site's values at the drawn positions."""
    last = jnp.moveaxis(value, axis, -1)
    flat = last.reshape(last.shape[0], -1, last.shape[-1])
    drawn = _drawn(key, flat.shape[0], flat.shape[1], points)
    return jnp.take_along_axis(flat, drawn[..., None], axis=1).reshape(-1, flat.shape[-1])


def _dense_windows(site: Site, value: Any) -> Callable[[jax.Array, int], jax.Array]:
    def sample(key: jax.Array, points: int) -> jax.Array:
        return _at_points(value, site.axis, key, points)[..., None]

    return sample


def _windows(site: Site, value: Any) -> Callable[[jax.Array, int], jax.Array]:
    """A sampler of a convolution's windows: [rows, channels, window] at the drawn positions.

    Only those are gathered, since all windows of a layer would cost as much as 15 convolutions.
    """

    def sample(key: jax.Array, points: int) -> jax.Array:
        last = jnp.moveaxis(value, site.axis, -1)
        examples, *places, channels = last.shape
        pixels = int(np.prod(places))
        # Which pixel does each tap read? The layer's own patches of an image whose pixels are their
        # numbers 1, 2, ... tell, whatever stride and dilation; 0 is padding. float32 is exact up to
        # 16 million.
        numbers = jnp.arange(1, pixels + 1, dtype=jnp.float32).reshape(1, *places, 1)
        taps = site.patches(jnp.moveaxis(numbers, -1, site.axis)).astype(int)
        taps = taps.reshape(-1, taps.shape[-1])  # [positions, window]
        drawn = taps[_drawn(key, examples, taps.shape[0], points)]
        flat = jnp.pad(last.reshape(examples, pixels, channels), ((0, 0), (1, 0), (0, 0)))
        # [examples, points, window, channels] -> [examples * points, channels, window]
        read = flat[jnp.arange(examples)[:, None, None], drawn]
        return jnp.swapaxes(read, 2, 3).reshape(-1, channels, taps.shape[-1])

    return sample


def collect(
    see: Look, variables: Variables, images: Sequence[Any], key: jax.Array
) -> dict[str, Windows]:
    """Inputs and outputs of a net's layers over all calibration images, on the host.

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
    collected = jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)
    for site, windows in collected.items():
        if not np.isfinite(windows.outputs).all():
            raise errors.ArgumentError(
                f"the outputs of {site} on calibration images are not finite. Check the net and "
                "its data before pruning."
            )
    return collected


def aimed(now: Windows, dense: Windows) -> np.ndarray:
    """Target outputs of a layer: those that make the following layers read what they did before.

    That is the dense net's output, except for a layer whose norm is added to a sum directly. There
    the target after the norm is Y1 - Y1' + Y2 (Y2 the branch, Y1 and Y1' the shortcut before and
    after earlier pruning), and the norm is inverted: it is a scale a and a shift per channel, so
    the target is the present output plus the error of the sum divided by a. Channels with a = 0
    cannot change the sum; they keep the dense target.

    Returns:
        [rows, outputs], float64.
    """
    if now.join is None or dense.join is None:
        return np.asarray(dense.outputs, np.float64)
    outputs, norm = np.asarray(now.outputs, np.float64), np.asarray(now.norm, np.float64)
    # norm = a outputs + b holds exactly; a is its regression slope, cov(outputs, norm) / var.
    centred = outputs - outputs.mean(axis=0)
    spread = (centred**2).sum(axis=0)
    scale = (centred * norm).sum(axis=0) / np.where(spread > 0, spread, 1)
    # (Y1 + Y2) - (Y1' + Y2'), Y2' the branch as it is now.
    error = np.asarray(dense.join, np.float64) - now.join
    open_channels = np.abs(scale) > 1e-6 * np.abs(scale).max(initial=0)
    through = np.where(open_channels, scale, 1)
    return np.where(open_channels, outputs + error / through, dense.outputs)

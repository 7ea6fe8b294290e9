"""Kronecker factors of the Fisher information: one block per layer, F = S (x) A.

With a the patches that a layer reads (input channels times window, one per output position) and g
the gradients at its outputs, per example and position,

    A = E[a a^T], the mean over examples and positions
    S = E[sum over positions of g g^T], the mean over examples

so that a change D [outputs, patch] of the layer's kernel costs tr(S D A D^T) / 2. Pairs of
positions that differ are taken to add nothing, as in the papers; only the product of both scales
matters, and it is that of the mean loss in every layer alike. It is exact for one example without
positions, and where patches and gradients are independent.

References:
    Martens, Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, 2015,
    arXiv 1503.05671. Convolutions: Grosse, Martens, A Kronecker-factored approximate Fisher matrix
    for convolution layers, 2016, arXiv 1602.01407.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.base import Batch, Criterion, Groups, Variables
from jprune.curvature.blocks import Factors
from jprune.curvature.products import Function, weights_of
from jprune.curvature.rows import check_labels, with_drawn_labels
from jprune.forms.slide import plain_kernels
from jprune.graph import Site, intercept, taps

INPUTS = ("patches", "channels")


class Layer(NamedTuple):
    """A layer whose kernel is [window..., inputs, outputs], without feature groups."""

    shape: tuple[int, ...]
    """Of the kernel."""
    sites: tuple[str, ...]
    """Names of its call sites; several where the kernel is used again."""
    read: int
    """Positions of what it reads, for one example."""
    written: int
    """Positions of what it writes."""

    @property
    def window(self) -> int:
        """Positions of the window; 1 for a dense layer."""
        return math.prod(self.shape[:-2])

    @property
    def inputs(self) -> int:
        """Input channels."""
        return self.shape[-2]

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.shape[-1]


class Sums(NamedTuple):
    """Factors so far."""

    key: jax.Array | None
    """Of drawn labels."""
    batches: jax.Array
    weight: jax.Array
    """Of all examples so far."""
    factors: dict[str, Factors]
    """{layer: sums of both factors}."""


def layers_of(
    fn: Callable[..., Any], groups: Groups, variables: Variables, *args: Any
) -> dict[str, Layer]:
    """The layers that have Kronecker factors, in execution order.

    Left out are kernels in another layout, grouped and depthwise ones, and those that anything but
    a contraction reads.

    Args:
        fn: the function that was traced.
        groups: from `trace`.
        variables: arrays or shapes.
        *args: inputs, arrays or shapes.

    Raises:
        ArgumentError: there is no such layer.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}
        >>> groups, x = jprune.trace(fn, variables, jnp.ones((1, 3))), jnp.ones((1, 3))
        >>> {name: layer.shape for name, layer in layers_of(fn, groups, variables, x).items()}
        {'first': (3, 5), 'second': (5, 2)}
    """
    plain = plain_kernels(fn, variables, *args)
    values = jax.eval_shape(taps(fn, groups, ("in", "out")), variables, *args)[1]
    examples = jax.tree.leaves(args)[0].shape[0]
    found: dict[str, Layer] = {}
    for site in groups.sites:
        path = site.kernel
        if site.kind != "in" or path not in plain:
            continue
        shape = groups.leaves[path].shape
        read, written = (math.prod(values[site.layer, kind].shape) for kind in ("in", "out"))
        before = found.get(path, Layer(shape, (), 0, 0))
        found[path] = Layer(
            shape,
            (*before.sites, site.layer),
            before.read + read // (shape[-2] * examples),
            before.written + written // (shape[-1] * examples),
        )
    if not found:
        raise errors.ArgumentError(
            "no layer has Kronecker factors: none contracts data with a kernel [window..., inputs, "
            "outputs] in the type that it is stored in, without feature groups. Take another "
            "method, or float32 for a net in bfloat16."
        )
    return found


def kfac(
    fn: Function,
    loss: Function,
    groups: Groups,
    layers: Mapping[str, Layer],
    *,
    labels: str = "model",
    key: jax.Array | None = None,
    inputs: str = "patches",
    bias: bool = False,
) -> Criterion:
    """Kronecker factors of all layers, in one pass over the data.

    A kernel that is used several times has the mean A and the sum S of its uses.

    Args:
        fn: `fn(variables, batch["image"])`, in inference mode.
        loss: `loss(out, batch) -> [batch]`.
        groups: from `trace`.
        layers: from `layers_of`, or some of them.
        labels: "model": drawn from the softmax of the outputs (the true Fisher information);
            "data" (the empirical one, which vanishes with the gradients).
        key: of the labels.
        inputs: "patches", or "channels": the covariance of the channels alone, averaged over the
            places of the window.
        bias: A has one more row and column for an input that is always 1, the layer's bias; only
            of patches.

    Returns:
        A criterion whose scores are {layer: Factors}. A batch takes one forward and one backward
        pass; a layer's patches live no longer than it takes to multiply them.

    Raises:
        ArgumentError: an unknown name, drawn labels without a key or a key without them, no
            layers, a bias column of channels.

    Example:
        >>> import jprune
        >>> fn, loss = lambda v, x: x @ v["w"], lambda out, batch: 0.5 * out[:, 0] ** 2
        >>> batch, variables = {"image": jnp.array([[2.0, 1.0]])}, {"w": jnp.ones((2, 1))}
        >>> groups = jprune.trace(fn, variables, batch["image"])
        >>> layers = layers_of(fn, groups, variables, batch["image"])
        >>> factors = jprune.run_criterion(
        ...     kfac(fn, loss, groups, layers, labels="data"), variables, [batch])["w"]
        >>> factors.inputs.tolist(), factors.outputs.tolist()
        ([[4.0, 2.0], [2.0, 1.0]], [[9.0]])
    """
    _check(layers, labels, key, inputs, bias)
    asked = _Asked(fn, loss, _Same(groups), tuple(layers.items()), inputs, bias)

    def init(variables: Variables) -> Sums:
        del variables
        number = {"patches": lambda n: n.window * n.inputs, "channels": lambda n: n.inputs}[inputs]
        zeros = lambda size: jnp.zeros((size, size))
        factors = {
            path: Factors(zeros(number(layer) + bias), zeros(layer.outputs))
            for path, layer in layers.items()
        }
        return Sums(key, jnp.zeros((), jnp.int32), jnp.zeros(()), factors)

    return Criterion(init, _updated(asked), lambda state, variables: mean_factors(state))


class _Same:
    """Groups as a key of a cache: equal to themselves alone."""

    def __init__(self, groups: Groups):
        self.groups = groups

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.groups is other.groups

    def __hash__(self) -> int:
        return id(self.groups)


class _Asked(NamedTuple):
    """All that a pass depends on."""

    fn: Function
    loss: Function
    held: _Same
    layers: tuple[tuple[str, Layer], ...]
    inputs: str
    bias: bool


@functools.lru_cache(maxsize=8)  # rounds of pruning share what was compiled
def _updated(asked: _Asked) -> Callable[..., Sums]:
    groups = asked.held.groups
    path_of = {site: path for path, layer in asked.layers for site in layer.sites}
    axes = {site.layer: site.axis for site in groups.sites if site.kind == "out"}

    def handler(site: Site, value: Any, carry: Any) -> tuple[Any, Any]:
        weights, deltas, seen = carry
        path = path_of.get(site.layer)
        if path is None:
            return value, carry
        if site.kind == "out":
            return value + deltas[site.layer], carry
        here = _input_sums(site.patches(value), weights, asked.inputs, asked.bias)
        seen = {**seen, path: seen[path] + here if path in seen else here}
        return value, (weights, deltas, seen)

    run = intercept(asked.fn, groups, handler, ("in", "out"))
    tapped = taps(asked.fn, groups, ("out",))

    @jax.jit
    def update(state: Sums, variables: Variables, batch: Batch) -> Sums:
        weights, image = weights_of(batch).astype(float), batch["image"]
        values = jax.eval_shape(tapped, variables, image)[1]
        zeros = {site: jnp.zeros_like(values[site, "out"]) for site in path_of}

        def total(deltas: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
            out, (_, _, seen) = run(variables, (weights, deltas, {}), image)
            given = batch
            if state.key is not None:
                drawing = jax.random.fold_in(state.key, state.batches)
                given = with_drawn_labels(jax.lax.stop_gradient(out), batch, drawing)
            return asked.loss(out, given).sum(), seen

        gradients, seen = jax.grad(total, has_aux=True)(zeros)
        factors = dict(state.factors)
        for path, layer in asked.layers:
            before = factors[path]
            parts = [_output_sums(gradients[site], axes[site], weights) for site in layer.sites]
            inputs = before.inputs + seen[path].astype(before.inputs.dtype) / layer.written
            outputs = before.outputs + functools.reduce(jnp.add, parts).astype(before.outputs.dtype)
            factors[path] = Factors(inputs, outputs)
        return Sums(state.key, state.batches + 1, state.weight + weights.sum(), factors)

    return update


def mean_factors(state: Sums) -> dict[str, Factors]:
    """{layer: Factors} of the batches so far: the state of `kfac`."""
    return jax.tree.map(lambda total: total / state.weight, state.factors)


def _check(
    layers: Mapping[str, Layer], labels: str, key: jax.Array | None, inputs: str, bias: bool
) -> None:
    check_labels(labels)
    if not layers:
        raise errors.ArgumentError(
            "kfac got no layer. Pass layers_of(fn, groups, variables, x), or some of them."
        )
    if (labels == "model") != (key is not None):
        raise errors.ArgumentError(
            f"kfac(labels={labels!r}, key={'None' if key is None else '...'}): labels of the model "
            "are drawn and need a key, those of the data need none."
        )
    if inputs not in INPUTS or (bias and inputs == "channels"):
        raise errors.ArgumentError(
            f"kfac(inputs={inputs!r}, bias={bias}); inputs is 'patches' or 'channels', and only "
            "patches have a bias column: at padded borders fewer places of the window see it."
        )


def _input_sums(patches: Any, weights: jax.Array, inputs: str, bias: bool) -> jax.Array:
    """Weighted sum of a a^T over examples and positions, of [batch, positions..., c, window]."""
    wide = patches.astype(jnp.promote_types(patches.dtype, jnp.float32))
    if inputs == "channels":
        # The window's places are more positions: the mean over them, as over positions.
        rows = jnp.moveaxis(wide, -1, 1).reshape(len(weights), -1, wide.shape[-2])
        return _weighted(rows, weights) / wide.shape[-1]
    rows = wide.reshape(len(weights), -1, wide.shape[-2] * wide.shape[-1])
    if bias:
        rows = jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)
    return _weighted(rows, weights)


def _output_sums(gradients: jax.Array, axis: int, weights: jax.Array) -> jax.Array:
    wide = gradients.astype(jnp.promote_types(gradients.dtype, jnp.float32))
    last = jnp.moveaxis(wide, axis, -1)
    return _weighted(last.reshape(len(weights), -1, last.shape[-1]), weights)


def _weighted(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_b w_b sum_t r_bt r_bt^T of [batch, positions, n]."""
    scaled = rows * weights[:, None, None].astype(rows.dtype)
    flat = lambda part: part.reshape(-1, part.shape[-1])
    return flat(scaled).T @ flat(rows)

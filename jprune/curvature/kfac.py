"""Kronecker factors of the Fisher information: one block per layer, F = S (x) A.

For every example and output position, a is the patch that a layer reads (input channels times
window) and g the gradient at the layer's output:

    A = E[a a^T], the mean over examples and positions
    S = E[sum over positions of g g^T], the mean over examples

A change D [outputs, patch] of the layer's kernel then costs tr(S D A D^T) / 2. As in the papers,
products between different positions are left out. A scale may move from A to S: only their product
matters, and it is that of the mean loss in every layer, so that layers can be compared. The block
is exact for one example with one position, and where patches and gradients are independent.

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
from jprune.curvature.products import Function, losses_of, weights_of
from jprune.curvature.rows import check_labels, with_drawn_labels
from jprune.graph import Site, intercept, taps
from jprune.graph.shrink.concrete import full, on_host

INPUTS = ("patches", "channels")


class KroneckerLayer(NamedTuple):
    """What the factors of a plain layer (`jprune.base.Layer.plain`) are made from.

    Attributes:
        inputs: input channels.
        window: positions of the window; 1 for a dense layer.
        outputs: output channels.
        sites: names of its call sites; several where the kernel is used again.
        read: positions of its input, for one example.
        written: positions of its output, for one example.
    """

    inputs: int
    window: int
    outputs: int
    sites: tuple[str, ...]
    read: int
    written: int


class Sums(NamedTuple):
    """The state of `kfac`: sums over the batches so far.

    Attributes:
        key: of drawn labels.
        batches: their number.
        weight: sum of the examples' weights.
        factors: {layer: sums of both factors}.
    """

    key: jax.Array | None
    batches: jax.Array
    weight: jax.Array
    factors: dict[str, Factors]


def layers_of(
    fn: Callable[..., Any], groups: Groups, variables: Variables, *args: Any
) -> dict[str, KroneckerLayer]:
    """The layers that have Kronecker factors, in execution order.

    They are the plain ones, their kernels in any layout. Left out are grouped and depthwise
    convolutions, kernels that are used inside loops, and those that another operation than a
    contraction reads.

    Args:
        fn: the function that was traced.
        groups: from `trace`.
        variables: arrays or shapes.
        *args: inputs, arrays or shapes.

    Raises:
        ArgumentError: there is no such layer.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"].T
        >>> variables = {"first": jnp.ones((3, 5)), "second": jnp.ones((2, 5))}
        >>> groups, x = jprune.trace(fn, variables, jnp.ones((1, 3))), jnp.ones((1, 3))
        >>> layers = layers_of(fn, groups, variables, x)
        >>> {name: (layer.inputs, layer.outputs) for name, layer in layers.items()}
        {'first': (3, 5), 'second': (5, 2)}
    """
    values = jax.eval_shape(taps(fn, groups, ("in", "out")), variables, *args)[1]
    examples = jax.tree.leaves(args)[0].shape[0]
    layers: dict[str, KroneckerLayer] = {}
    for path, layer in groups.layers.items():
        if not (layer.plain and layer.sites):
            continue
        # A kernel used again adds the positions of every use: A is the mean over all of them.
        read, written = (
            sum(math.prod(values[site, kind].shape) for site in layer.sites)
            for kind in ("in", "out")
        )
        (inputs,), (outputs,) = (
            [layer.shape[a] for a in part] for part in (layer.inputs, layer.outputs)
        )
        layers[path] = KroneckerLayer(
            inputs,
            layer.fan_in // inputs,
            outputs,
            layer.sites,
            read // (inputs * examples),
            written // (outputs * examples),
        )
    if not layers:
        raise errors.ArgumentError(
            "no layer has Kronecker factors: none is a plain convolution or dense layer (without "
            "feature groups, outside of loops, its kernel read by nothing else). Take another "
            "method, such as obd."
        )
    return layers


def kfac(
    fn: Function,
    loss: Function,
    groups: Groups,
    layers: Mapping[str, KroneckerLayer],
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
        bias: whether A has one more row and column for the layer's bias, an input that is always 1;
            for patches only.

    Returns:
        A criterion whose scores are {layer: Factors}. A batch takes one forward and one backward
        pass; the patches of a layer are needed only until they are multiplied.

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
        # Sides of A: a patch has window * inputs numbers, one more with the bias's constant 1.
        number = {"patches": lambda n: n.window * n.inputs, "channels": lambda n: n.inputs}[inputs]
        zeros = lambda size: full((size, size), 0.0)
        factors = {
            path: Factors(zeros(number(layer) + bias), zeros(layer.outputs))
            for path, layer in layers.items()
        }
        return Sums(key, jnp.zeros((), jnp.int32), jnp.zeros(()), factors)

    return Criterion(init, _updated(asked), lambda state, variables: mean_factors(state))


class _Same:
    """Groups as the key of a cache, compared by identity: they hold arrays and have no hash."""

    def __init__(self, groups: Groups):
        self.groups = groups

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.groups is other.groups

    def __hash__(self) -> int:
        return id(self.groups)


class _Asked(NamedTuple):
    """All that a pass over a batch depends on: the key of the cache of compiled passes."""

    fn: Function
    loss: Function
    held: _Same
    layers: tuple[tuple[str, KroneckerLayer], ...]
    inputs: str
    bias: bool


@functools.lru_cache(maxsize=8)  # rounds of pruning share what was compiled
def _updated(asked: _Asked) -> Callable[..., Sums]:
    groups = asked.held.groups
    # In the forward pass A is summed at each layer's input, in the backward pass S from the
    # gradients at its output: one pass of each kind per batch, for all layers.
    path_of = {site: path for path, layer in asked.layers for site in layer.sites}
    axes = {site.layer: site.axis for site in groups.sites if site.kind == "out"}

    def handler(site: Site, value: Any, carry: Any) -> tuple[Any, Any]:
        weights, deltas, input_sums = carry
        path = path_of.get(site.layer)
        if path is None:
            return value, carry
        # A delta of 0 is added to every output: its gradient is g, without a rule per layer type.
        if site.kind == "out":
            return value + deltas[site.layer], carry
        products = _input_sums(site.patches(value), weights, asked.inputs, asked.bias)
        input_sums = {
            **input_sums,
            path: input_sums[path] + products if path in input_sums else products,
        }
        return value, (weights, deltas, input_sums)

    run = intercept(asked.fn, groups, handler, ("in", "out"))
    tapped = taps(asked.fn, groups, ("out",))

    @jax.jit
    def update(state: Sums, variables: Variables, batch: Batch) -> Sums:
        weights, image = weights_of(batch).astype(float), batch["image"]
        values = jax.eval_shape(tapped, variables, image)[1]
        zeros = {site: jnp.zeros_like(values[site, "out"]) for site in path_of}

        def total(deltas: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
            out, (_, _, input_sums) = run(variables, (weights, deltas, {}), image)
            # The true Fisher information draws y ~ p(y | x); the draw itself has no gradient.
            labelled = batch
            if state.key is not None:
                drawing = jax.random.fold_in(state.key, state.batches)
                labelled = with_drawn_labels(jax.lax.stop_gradient(out), batch, drawing)
            # The sum, not the mean: g of an example must not depend on the size of its batch.
            return losses_of(asked.loss, out, labelled).sum(), input_sums

        gradients, input_sums = jax.grad(total, has_aux=True)(zeros)
        factors = dict(state.factors)
        for path, layer in asked.layers:
            before = factors[path]
            parts = [_output_sums(gradients[site], axes[site], weights) for site in layer.sites]
            # A: sum over examples of the mean over T positions of a a^T;  S: of the sum of g g^T.
            inputs = before.inputs + input_sums[path].astype(before.inputs.dtype) / layer.written
            outputs = before.outputs + functools.reduce(jnp.add, parts).astype(before.outputs.dtype)
            factors[path] = Factors(inputs, outputs)
        return Sums(state.key, state.batches + 1, state.weight + weights.sum(), factors)

    return update


def mean_factors(state: Sums) -> dict[str, Factors]:
    """{layer: Factors}, means over the batches so far, from the state of `kfac`."""
    mean = on_host(lambda xnp, total, weight: total / weight)
    return jax.tree.map(lambda total: mean(total, state.weight), state.factors)


def _check(
    layers: Mapping[str, KroneckerLayer],
    labels: str,
    key: jax.Array | None,
    inputs: str,
    bias: bool,
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
    """Weighted sum of a a^T over examples and positions; patches are [batch, ..., c, window]."""
    # Sums over many positions lose digits in bfloat16 and float16: at least float32.
    wide = patches.astype(jnp.promote_types(patches.dtype, jnp.float32))
    if inputs == "channels":
        # The places of the window count as positions, and the mean over them is taken:
        # [batch, positions * window, c].
        rows = jnp.moveaxis(wide, -1, 1).reshape(len(weights), -1, wide.shape[-2])
        return _weighted(rows, weights) / wide.shape[-1]
    rows = wide.reshape(len(weights), -1, wide.shape[-2] * wide.shape[-1])
    if bias:
        rows = jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)
    return _weighted(rows, weights)


def _output_sums(gradients: jax.Array, axis: int, weights: jax.Array) -> jax.Array:
    # Sum over examples and positions of w_n g g^T, of [batch, positions, outputs].
    wide = gradients.astype(jnp.promote_types(gradients.dtype, jnp.float32))
    last = jnp.moveaxis(wide, axis, -1)
    return _weighted(last.reshape(len(weights), -1, last.shape[-1]), weights)


def _weighted(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """[n, n]: sum_b w_b sum_t r_bt r_bt^T, of rows r [batch, positions, n]."""
    # One side carries the weight, so that one matrix product sums over examples and positions.
    scaled = rows * weights[:, None, None].astype(rows.dtype)
    flat = lambda part: part.reshape(-1, part.shape[-1])
    return flat(scaled).T @ flat(rows)

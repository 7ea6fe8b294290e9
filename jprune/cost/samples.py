"""The cost of nets that choose their channels for every example, counted example by example.

For one example a contraction costs

    positions * window * (input channels present) * (output channels present)

and a gated one also what says its gates (a predictor: inputs * outputs) and one multiplication per
output value. An input channel is absent if every gated layer that contributes to it was suppressed;
a channel that merely happens to be 0 after a ReLU counts as present.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jprune.base import Groups, Variables
from jprune.forms.gated import GatedKernel
from jprune.forms.leaf_type import is_dynamic
from jprune.forms.opened import dense_of
from jprune.graph.couple.coupling import leaf_paths
from jprune.graph.look.intercept import Site, intercept


def dynamic_leaves(variables: Variables) -> dict[str, GatedKernel]:
    """{path: leaf} of the kernels whose outputs are chosen for every example."""
    return {path: leaf for path, leaf in leaf_paths(variables).items() if is_dynamic(leaf)}


def gate_macs_of(variables: Variables) -> dict[str, int]:
    """{path: MACs of an example's gates} of the kernels that have gates."""
    return {path: leaf.gate_macs for path, leaf in dynamic_leaves(variables).items()}


def gates_of(fn: Callable[..., Any], groups: Groups) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """`run(variables, x) -> (out, {layer: [batch, outputs]})` of a net with gated kernels.

    It runs the dense kernels and applies the gates to their outputs.

    Args:
        fn: the network that was traced, in inference mode.
        groups: from `trace`.
    """

    def run(variables: Variables, x: jax.Array) -> tuple[Any, dict[str, Any]]:
        leaves = dynamic_leaves(variables)

        def handler(site: Site, value: Any, carry: dict[str, Any]) -> tuple[Any, Any]:
            leaf = leaves.get(site.kernel)
            if leaf is None:
                return value, carry
            if site.kind == "in":
                return value, {**carry, site.layer: leaf.gates(value, site.axis)}
            return leaf.boosted(value, carry[site.layer], site.axis), carry

        return intercept(fn, groups, handler, ("in", "out"))(dense_of(variables), {}, x)

    return run


def sample_macs(
    fn: Callable[..., Any], groups: Groups, whole_joins: bool = False
) -> Callable[..., jax.Array]:
    """`macs(variables, supports, x) -> [batch]`: MACs of every example.

    Args:
        fn: the network that was traced, in inference mode.
        groups: from `trace`.
        whole_joins: count all channels of a sum of two activations as present: the highest cost
            that supports of these sizes can have.

    Returns:
        A function of the dense variables, of supports {layer: [batch, outputs], above 0 where an
        output is present} of the gated layers, of inputs and, where gates are not said by a
        predictor [inputs, outputs], of {layer: MACs of an example's gates}. The variables' values
        matter where a norm reads suppressed channels (after a concatenation): a channel that the
        norm shifts away from 0 is present. Contractions inside loops are not counted.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}
        >>> x = jnp.ones((2, 3))
        >>> groups = jprune.trace(fn, variables, x)
        >>> there = jnp.array([[1.0, 1, 1, 1, 1], [1, 0, 0, 0, 1]])
        >>> predictor, multiplications = 3 * 5, there.sum(axis=1)
        >>> macs = sample_macs(fn, groups)(variables, {"first": there}, x)
        >>> (macs - predictor - multiplications).tolist()
        [25.0, 10.0]
    """
    kinds = ("in", "out", "norm", *(("join",) if whole_joins else ()))

    # Presence flows through the net itself: it runs on ones, every norm's output is replaced by 1
    # where its channel is present and 0 elsewhere, and a channel that is 0 at all positions of a
    # layer's input is absent there.
    def macs(
        variables: Variables,
        supports: Mapping[str, jax.Array],
        x: jax.Array,
        gate_macs: Mapping[str, int] = MappingProxyType({}),
    ) -> jax.Array:
        def handler(site: Site, value: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            total, inputs = carry
            if site.kind == "join":
                return jnp.ones_like(value), carry
            support = supports.get(site.layer)
            if site.kind == "in":
                return value, (total, {**inputs, site.layer: _there(value, site.axis)})
            if site.kind == "norm":
                if support is None:
                    return jnp.ones_like(value), carry
                alive = site.along(support > 0, value.ndim)
                return jnp.broadcast_to(alive, value.shape).astype(value.dtype), carry
            # What is left is site.kind == "out": k_h k_w H' W' nnz_in nnz_out for this contraction.
            read, size = inputs[site.layer], value.shape[site.axis]
            layer = groups.layers[site.kernel]
            inputs_of_part = math.prod(layer.shape[axis] for axis in layer.inputs)
            positions = math.prod(value.shape) // (len(x) * size)
            alive = jnp.ones((len(x), size)) if support is None else (support > 0).astype(float)
            parts = read.shape[1] // inputs_of_part  # of a grouped convolution
            per_part = lambda there: there.reshape(len(x), parts, -1).sum(axis=-1)
            both = (per_part(read) * per_part(alive)).sum(axis=-1)
            total = total + positions * (layer.fan_in // inputs_of_part) * both
            # The predictor costs C_in C_out; multiplying by the gates costs one per present value.
            if support is not None:
                total = total + gate_macs.get(site.layer, read.shape[1] * size)
                total = total + positions * alive.sum(axis=-1)
            return value, (total, inputs)

        start = (jnp.zeros(len(x)), {})
        return intercept(fn, groups, handler, kinds)(variables, start, jnp.ones_like(x))[1][0]

    return macs


def _there(value: jax.Array, axis: int) -> jax.Array:
    """[batch, channels]: 1 where a channel is not 0 at some position."""
    last = jnp.moveaxis(value, axis, -1)
    return (last != 0).any(axis=tuple(range(1, last.ndim - 1))).astype(jnp.float32)

"""What one unit costs: the operations that make it, or all that go with it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jprune.base import CostModel, Groups


def own_flops(groups: Groups) -> dict[str, float]:
    """FLOPs of the layers that make a group, for one of its units; readers are not counted.

    A multiply-accumulate is two FLOPs. A convolution's bias is counted as one more input, whether
    it has one or not; a dense layer's is not.

    Args:
        groups: from `trace`.

    Returns:
        {group: FLOPs for one example}. A group whose units are made by no contraction costs 0.

    References:
        Molchanov, Tyree, Karras, Aila, Kautz, Pruning convolutional neural networks for resource
        efficient inference, 2017, arXiv 1611.06440.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.zeros((3, 5)), "second": jnp.zeros((5, 2))}
        >>> own_flops(jprune.trace(fn, variables, jnp.zeros((1, 3))))
        {'first': 5.0}
    """
    flops = dict.fromkeys(groups.sizes, 0.0)
    for layer in groups.layers.values():
        # 2 H W (C_in K^2 + 1) of a convolution's map, (2 I - 1) of a dense layer's output
        inputs = 2 * layer.fan_in + (2 if layer.window else -1)
        for name in layer.writes:
            flops[name] += layer.positions * inputs
    return flops


def marginal_macs(model: CostModel, gates: Mapping[str, Any]) -> dict[str, Any]:
    """MACs that go with each unit, its readers' included, in a net of these units.

    Args:
        model: from `cost_model`.
        gates: {group: [units]}: masks or real gates.

    Returns:
        {group: [units]}; jittable.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.zeros((3, 5)), "second": jnp.zeros((5, 2))}
        >>> x = jnp.zeros((1, 3))
        >>> model = jprune.cost_model(fn, variables, x, groups=jprune.trace(fn, variables, x))
        >>> marginal_macs(model, {"first": jnp.ones(5)})["first"].tolist()
        [5.0, 5.0, 5.0, 5.0, 5.0]
    """
    real = {name: jnp.asarray(gate, float) for name, gate in gates.items()}
    return jax.grad(lambda by_name: jnp.asarray(model(by_name).macs, float))(real)

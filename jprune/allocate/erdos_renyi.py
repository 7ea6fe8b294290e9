"""Erdos-Renyi: large kernels keep a smaller fraction of their weights than small ones.

References:
    Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta, Scalable training of artificial neural networks
    with adaptive sparse connectivity, 2018, arXiv 1707.04780. With windows: Evci, Gale, Menick,
    Castro, Elsen, Rigging the lottery, 2020, arXiv 1911.11134.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jprune import errors
from jprune.allocate.budgets import allocated, floor_of, kept_count
from jprune.base import Allocator, Budget, CostModel, Groups, Layer, Masks, Scores, is_none
from jprune.blocks.members import paths_among
from jprune.masks import keep_best
from jprune.units import are_units


def erdos_renyi(groups: Groups, *, window: bool = True) -> Allocator:
    """An allocator of weights at the densities of `erdos_renyi_densities`.

    A density is met to one weight a layer; other budgets by the largest density that fits. Kernels
    compete alone: other leaves of the scores (biases, norms) get no mask.

    Args:
        groups: from `trace`; they say what the axes of a kernel do.
        window: whether the axes of windows count (ERK), or only inputs and outputs (ER).

    Returns:
        `(scores of weights, budget, cost model) -> masks`. A density may be traced (jittable). The
        best weights of every kernel are kept, ties by lowest index; -inf never, +inf always.

    Raises:
        ArgumentError: scores of units (by the allocator), NaN, or a missing cost model.
        StructureError: scores of another net (by the allocator).
        BudgetError: a budget that cannot be met (by the allocator).

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((20, 30)), "second": jnp.ones((30, 2))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 20)))
        >>> masks = erdos_renyi(groups)(variables, Budget(density=0.2))
        >>> {name: int(mask.sum()) for name, mask in masks.items()}
        {'first': 80, 'second': 52}
    """

    def allocator(scores: Scores, budget: Budget, cost_model: CostModel | None = None) -> Masks:
        if are_units(groups, scores):
            raise errors.ArgumentError(
                "erdos_renyi shares out the weights of kernels, and these are scores of units. "
                "Pass scores of weights (criteria.magnitude()), or take allocate.uniform."
            )
        scores = _of_kernels(groups, scores)
        paths = paths_among(tuple(groups.layers), scores)
        layers = [groups.layers[path] for path in paths]

        def at(of_weights: Scores, density: Any) -> Masks:
            fractions = iter(_fractions(layers, density, window))
            keep = lambda leaf: _keep(leaf, next(fractions), budget)
            return jax.tree.map(keep, of_weights)

        return allocated(at, scores, budget, cost_model)

    return allocator


def erdos_renyi_densities(
    layers: Sequence[Layer], density: Any, *, window: bool = True
) -> list[Any]:
    """Densities of kernels that are proportional to (sum of axis lengths) / (their product).

    Kernels whose density would be above 1 stay dense, and the others share the rest.

    Args:
        layers: of `groups.layers`.
        density: of all their weights together; may be traced.
        window: whether the axes of windows count (ERK), or only inputs and outputs (ER).

    Returns:
        A density for every layer.

    Raises:
        ArgumentError: a density outside (0, 1], or no layer.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((20, 30)), "second": jnp.ones((30, 2))}
        >>> layers = jprune.trace(fn, variables, jnp.zeros((1, 20))).layers.values()
        >>> [round(float(each), 4) for each in erdos_renyi_densities([*layers], 0.2)]
        [0.1341, 0.8585]
    """
    if not isinstance(density, Tracer) and not 0 < density <= 1:
        raise errors.ArgumentError(
            f"density={density} is outside (0, 1]: it is the fraction kept. To remove 90 %, write "
            "0.1."
        )
    if not layers:
        raise errors.ArgumentError("there is no kernel to share weights out to.")
    return _fractions(layers, density, window)


def _fractions(layers: Sequence[Layer], density: Any, window: bool) -> list[Any]:
    xnp: Any = jnp if isinstance(density, Tracer) else np
    sizes = np.array([math.prod(layer.shape) for layer in layers], float)
    # r = (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w)
    raw = np.array([_raw(layer, window) for layer in layers])
    # Layers that are dense first stand first. With eps = 1 / r_j, when layer j is just dense, the
    # layers before it are, too: sum_l n_l min(1, r_l / r_j) weights are kept of all.
    order = np.argsort(-raw, kind="stable")
    whole = sizes @ np.minimum(1.0, raw[:, None] / raw[None, order])
    wanted = density * sizes.sum()
    dense = (wanted > whole * (1 + 1e-12)).sum()
    # eps = (d sum_l n_l - sum over dense ones of n_l) / sum over the others of n_l r_l
    first = np.concatenate([[0.0], np.cumsum(sizes[order])])
    rest = np.concatenate([np.cumsum((sizes * raw)[order][::-1])[::-1], [1.0]])
    eps = (wanted - xnp.asarray(first)[dense]) / xnp.asarray(rest)[dense]
    # d_l = min(1, eps r_l)
    rank = np.argsort(order, kind="stable")
    fractions = xnp.where(rank < dense, 1.0, xnp.minimum(1.0, eps * raw))
    return [fractions[number] for number in range(len(layers))]


def _raw(layer: Layer, window: bool) -> float:
    # Batch axes are kernels side by side: they neither add inputs nor outputs to one of them.
    axes = (*layer.inputs, *layer.outputs, *(layer.window if window else ()))
    lengths = [layer.shape[axis] for axis in axes]
    return sum(lengths) / math.prod(lengths)


def _keep(leaf: Any, density: Any, budget: Budget) -> Any:
    size = int(np.size(leaf))
    count = kept_count(size, density)
    xnp: Any = jnp if isinstance(count, Tracer) else np
    return keep_best(leaf, xnp.maximum(count, floor_of(None, size, budget)))


def _of_kernels(groups: Groups, scores: Scores) -> Scores:
    """The scores of kernels, None for other leaves."""
    paths = iter(paths_among(tuple(groups.layers), scores))
    one = lambda leaf: None if leaf is None or next(paths) not in groups.layers else leaf
    return jax.tree.map(one, scores, is_leaf=is_none)

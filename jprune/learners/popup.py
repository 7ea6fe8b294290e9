"""Edge-popup: learns which weights of a random net are kept, and never changes a weight.

References:
    Ramanujan, Wortsman, Kembhavi, Farhadi, Rastegari, What's hidden in a randomly weighted neural
    network?, 2020, arXiv 1911.13299; details as in the authors' code. Malach, Yehudai,
    Shalev-Shwartz, Shamir, Proving the lottery ticket hypothesis, 2020, arXiv 2002.00585 [10].
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jprune import errors
from jprune.base import Layer, Masks, PyTree, Scores, Task, Variables, is_none
from jprune.graph.couple.coupling import leaf_paths
from jprune.masks import keep_best, ste


def kept_of(size: int, k: float) -> int:
    """How many of a layer's weights are kept: n - int((1 - k) n), truncated and not rounded.

    In floating point as the authors' code has it; at least one.

    Example:
        >>> kept_of(10, 0.3), kept_of(7, 0.5), kept_of(100, 0.29)
        (3, 4, 29)
    """
    # j = int((1 - k) n) of the smallest |s| go
    return max(1, size - int((1 - k) * size))


def top_masks(scores: Scores, k: float) -> Masks:
    """Keeps the largest |s| of every layer, ties by lowest index.

    Args:
        scores: a tree, None where nothing is pruned.
        k: fraction kept of every layer.

    Raises:
        ArgumentError: k outside (0, 1], or a score that is NaN.

    Example:
        >>> top_masks({"w": np.array([0.3, -0.9, 0.1, 0.5])}, 0.5)["w"]
        array([False,  True, False,  True])
    """
    if not 0 < k <= 1:
        raise errors.ArgumentError(
            f"k={k} is outside (0, 1]: it is the fraction of a layer that is kept."
        )
    for leaf in jax.tree.leaves(scores):
        if not isinstance(leaf, Tracer) and np.isnan(leaf).any():
            raise errors.ArgumentError(
                "the scores hold NaN: training has diverged. Write a smaller --learning-rate."
            )
    return jax.tree.map(lambda leaf: keep_best(jnp.abs(leaf), kept_of(leaf.size, k)), scores)


def learned_masks(scores: Scores, k: float) -> PyTree:
    """The masks as floats whose gradient goes to |s|, straight through the choice."""
    # m = 1[|s| among the k n largest] forward; dL/d|s| = w
    # dL/d(w m) backward, so dL/ds = sign(s) w dL/d(w m)
    hard = top_masks(jax.lax.stop_gradient(scores), k)
    soft = jax.tree.map(jnp.abs, scores)
    return jax.tree.map(lambda mask, size: ste(mask.astype(size.dtype), size), hard, soft)


def popup_task(task: Task, k: float) -> Task:
    """The same task for variables {"scores", "fixed"}, of which the scores alone are trained.

    `fixed` are the variables of the net. Its parameters are never touched; statistics are updated.

    Args:
        task: of the net.
        k: fraction of every layer with scores that is kept.
    """

    def masked(variables: Variables) -> Variables:
        return masked_by(variables["fixed"], learned_masks(variables["scores"], k))

    return task._replace(
        fn=lambda variables, x: task.fn(masked(variables), x),
        train_fn=lambda variables, x, key: task.train_fn(masked(variables), x, key),
        split=lambda variables: (variables["scores"], variables["fixed"]),
        merge=lambda scores, fixed: {"scores": scores, "fixed": fixed},
        update=lambda variables, new: {**variables, "fixed": task.update(variables["fixed"], new)},
    )


def masked_by(variables: Variables, masks: PyTree) -> Variables:
    """Variables times their masks; leaves without a mask stay."""
    product = lambda mask, value: value if mask is None else value * mask.astype(value.dtype)
    return jax.tree.map(product, masks, variables, is_leaf=is_none)


def draw_scores(key: jax.Array, weights: PyTree, layers: Mapping[str, Layer]) -> Scores:
    """Kaiming-uniform with a = sqrt 5: even in +-1 / sqrt(fan in).

    Args:
        key: for the draw.
        weights: kernels, for their shapes; a tree like the variables, None stays None.
        layers: `groups.layers` of the net, for the fan-in.

    Raises:
        StructureError: a leaf that is no kernel of the layers.
    """
    # bound = gain sqrt(3 / fan) with gain = sqrt(2 / (1 + a^2)), a^2 = 5: 1 / sqrt(fan)
    draw = lambda key, shape, fan: jax.random.uniform(key, shape, minval=-1.0) / fan**0.5
    return _drawn(key, weights, layers, draw)


Draw = Callable[[jax.Array, tuple[int, ...], float], jax.Array]
DRAWS: dict[str, Draw] = {
    "signed_constant": lambda key, shape, std: std * jax.random.rademacher(key, shape, float),
    "kaiming_normal": lambda key, shape, std: std * jax.random.normal(key, shape),
}


def draw_weights(
    key: jax.Array,
    weights: PyTree,
    layers: Mapping[str, Layer],
    how: str,
    k: float | None = None,
) -> PyTree:
    """Random weights whose outputs have the variance of their inputs.

    Args:
        key: for the draw.
        weights: kernels, for their shapes; a tree like the variables, None stays None.
        layers: `groups.layers` of the net, for the fan-in.
        how: "signed_constant" (+-std) or "kaiming_normal", with std = sqrt(2 / fan in).
        k: fraction kept: std = sqrt(2 / (k fan in)), so that the variance is right under the masks.
            (The authors' `scale_fan` has 1 - k there, which is right at a half alone.)

    Raises:
        ArgumentError: another `how`.
        StructureError: a leaf that is no kernel of the layers.

    Example:
        >>> import jprune
        >>> like = {"w": jnp.ones((3, 8))}  # [out, in]
        >>> layers = jprune.trace(lambda v, x: x @ v["w"].T, like, jnp.ones((1, 8))).layers
        >>> drawn = draw_weights(jax.random.key(0), like, layers, "signed_constant", k=0.25)
        >>> print(abs(drawn["w"][:, 0]))
        [1. 1. 1.]
    """
    if how not in DRAWS:
        raise errors.ArgumentError(f"draw_weights(how={how!r}); write one of {', '.join(DRAWS)}.")
    density = 1.0 if k is None else k
    # std = sqrt(2 / (k fan-in)): half of a ReLU's inputs pass, a fraction k of the weights stays
    draw = lambda key, shape, fan: DRAWS[how](key, shape, math.sqrt(2 / (density * fan)))
    return _drawn(key, weights, layers, draw)


def _drawn(key: jax.Array, like: PyTree, layers: Mapping[str, Layer], draw: Draw) -> PyTree:
    """A tree of draws; `draw(key, shape, fan in)`."""
    structure, leaves = jax.tree.structure(like), leaf_paths(like)
    if others := [path for path in leaves if path not in layers]:
        raise errors.StructureError(
            f"{others[0]} has no fan-in: it is no kernel of this net. Its kernels are "
            f"{', '.join(layers) or 'none'}; None stands for leaves that are not drawn."
        )
    # A key per leaf, in the order of the tree.
    keys = jax.random.split(key, max(1, len(leaves)))
    drawn: list[Any] = [
        draw(own_key, leaf.shape, layers[path].fan_in).astype(leaf.dtype)
        for own_key, (path, leaf) in zip(keys, leaves.items())
    ]
    return structure.unflatten(drawn)

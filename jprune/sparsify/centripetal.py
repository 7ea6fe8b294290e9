"""Centripetal SGD: the units of a cluster are pulled together until they are one.

References:
    Ding, Ding, Guo, Han, Centripetal SGD for pruning very deep convolutional networks with
    complicated structure, 2019, arXiv 1904.03837 [41]; details as in the authors' code.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.base import Groups, Params, PyTree
from jprune.graph.shrink.concrete import as_array, at_once
from jprune.units import check_units, places_of

PRODUCERS = ("kernel", "shift", "scale")
"""Roles of a unit's trained places in its producers."""


class CentripetalState(NamedTuple):
    """State of `centripetal`.

    Attributes:
        members: see `memberships`: arrays, so that other clusters do not recompile.
        deviation: sum of the squared differences of weights from the means of their clusters.
    """

    members: PyTree
    deviation: jax.Array


def memberships(groups: Groups, clusters: Mapping[str, Any]) -> PyTree:
    """Which weights are pulled together, leaf by leaf.

    Args:
        groups: from `trace`.
        clusters: {group: int [units]}, the cluster of every unit. A residual stream has one
            clustering for all its producers; a group that is not named is left alone.

    Returns:
        A tree like the variables. A leaf has a tuple with an entry an axis: the cluster of every
        position, int32 [axis length], or None where no producer's units stand.

    Raises:
        StructureError: an unknown group, or a wrong length.
        FrozenError: the name of something frozen.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 2)))
        >>> memberships(groups, {"first": np.array([7, 4, 7])})
        {'first': (None, Array([0, 1, 0], dtype=int32)), 'second': (None, None)}
    """
    check_units(groups, clusters)
    names: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
    for group, place in places_of(groups, PRODUCERS, tuple(clusters)):
        axis = names.setdefault((place.leaf, place.axis), [() for _ in place.units])
        occurrences: Counter[int] = Counter()
        for position, unit in enumerate(place.units.tolist()):
            if unit >= 0:
                # The k-th position of a unit is like the k-th of another.
                axis[position] += (group, int(clusters[group][unit]), occurrences[unit])
                occurrences[unit] += 1
    members = [
        tuple(
            _numbered(names[path, axis]) if (path, axis) in names else None
            for axis in range(len(leaf.shape))
        )
        for path, leaf in groups.leaves.items()
    ]
    return groups.treedef.unflatten(members)


def _numbered(names: list[tuple[Any, ...]]) -> jax.Array:
    """Int [positions]: equal names get equal numbers, positions without a name one of their own."""
    numbers: dict[Any, int] = {}
    alone = [name or (position,) for position, name in enumerate(names)]
    return as_array([numbers.setdefault(name, len(numbers)) for name in alone], jnp.int32)


def strengths(groups: Groups, strength: float, of_vectors: float = 0.1) -> PyTree:
    """The strength of every leaf for `centripetal`, as a tree like the variables.

    Args:
        groups: from `trace`: their layers tell kernels from other leaves.
        strength: of kernels.
        of_vectors: factor of the strength for all other leaves, scales and biases.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: x @ v["w"] + v["b"]
        >>> variables = {"w": jnp.ones((3, 5)), "b": jnp.ones((1, 5))}
        >>> strengths(jprune.trace(fn, variables, jnp.ones((2, 3))), 0.5)
        {'b': 0.05, 'w': 0.5}
    """
    contracted = {leaf for layer in groups.layers.values() for leaf in (layer.kernel, *layer.parts)}
    pulls = [strength * (1.0 if path in contracted else of_vectors) for path in groups.leaves]
    return groups.treedef.unflatten(pulls)


def centripetal(members: PyTree, strength: float | PyTree) -> optax.GradientTransformation:
    """Gradients with which clusters contract; placed before weight decay and momentum.

    With H the cluster of unit j, its weights F_j get the gradient

        mean over k in H of dL/dF_k + strength (F_j - mean over k in H of F_k).

    With weight decay eta and learning rate tau behind it, that is the paper's step, in which the
    differences of a cluster shrink by 1 - tau (eta + strength) whatever the loss is, while its mean
    takes plain SGD steps. See `contraction` for momentum.

    Args:
        members: from `memberships`, of the trained parameters.
        strength: the paper's epsilon, of all leaves or of each: a tree like the parameters. The
            authors pull scales and biases by a tenth of it: see `strengths`.

    Raises:
        ArgumentError: a negative number; `update` without parameters.

    Example:
        >>> members = {"w": (jnp.array([0, 0, 1]), None)}
        >>> params = {"w": jnp.array([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])}
        >>> gradient = {"w": jnp.array([[0.2, 0.0], [0.4, 1.0], [1.0, 1.0]])}
        >>> tx = optax.chain(centripetal(members, 0.1), optax.add_decayed_weights(0.01),
        ...                  optax.sgd(0.5))
        >>> updates, _ = tx.update(gradient, tx.init(params), params)
        >>> print(optax.apply_updates(params, updates)["w"])
        [[ 0.895 -0.2  ]
         [ 2.785  1.69 ]
         [ 4.475  4.475]]
    """
    # A negative strength would push clusters apart, without bound.
    if any(number < 0 for number in jax.tree.leaves(strength)):
        raise errors.ArgumentError(f"centripetal(strength={strength}); strengths are 0 or more.")

    def init(params: Params) -> CentripetalState:
        return CentripetalState(members, at_once(deviation_of)(params, members))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "centripetal needs the parameters: call tx.update(gradients, state, params)."
            )

        def one(gradient: Any, away: Any, pull: Any, own: tuple[Any, ...]) -> jax.Array:
            # mean over k in H of dL/dF_k + epsilon (F_j - mean over k in H of F_k)
            return cluster_means(gradient, own) + pull * away

        away = jax.tree.map(_away, params, state.members)
        # One number for all leaves, or a tree of them.
        alike = jax.tree_util.all_leaves([strength])
        pulls = jax.tree.map(lambda leaf: strength, updates) if alike else strength
        moved = jax.tree.map(one, updates, away, pulls, state.members)
        return moved, CentripetalState(state.members, _squares(away))

    return optax.GradientTransformation(init, update)


def with_members(state: CentripetalState, members: PyTree) -> CentripetalState:
    """The state with other clusters; nothing recompiles."""
    return state._replace(members=members)


def cluster_means(values: jax.Array, own: tuple[Any, ...]) -> jax.Array:
    """Every position has the mean of its cluster; `own` is a leaf of `memberships`."""
    # A leaf between two groups has units on two axes: means along one axis, then the other, are
    # the means over the product of the clusters.
    for axis, ids in enumerate(own):
        if ids is not None:
            along = jnp.moveaxis(values, axis, 0)
            # 1 / |H| sum over k in H, without a matrix [units, units]; as many segments as
            # positions, so that other clusters have the same shapes.
            sums = jax.ops.segment_sum(along, ids, len(along))
            counts = jax.ops.segment_sum(jnp.ones(len(along), along.dtype), ids, len(along))
            shape = (-1, *[1] * (along.ndim - 1))
            means = sums / jnp.maximum(counts, 1).reshape(shape)
            values = jnp.moveaxis(means[ids], 0, axis)
    return values


def _away(values: jax.Array, own: tuple[Any, ...]) -> jax.Array:
    return values - cluster_means(values, own)


def _squares(tree: PyTree) -> jax.Array:
    return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), jnp.zeros(()))


def deviation_of(params: Params, members: PyTree) -> jax.Array:
    """Sum of the squared differences of weights from the means of their clusters."""
    return _squares(jax.tree.map(_away, params, members))


def contraction(rates: np.ndarray, momentum: float, pull: Any, nesterov: bool = True) -> np.ndarray:
    """A cluster's differences at the end of a training, as a fraction of the initial ones.

    Or any weight's on which nothing but a pull, such as weight decay, acts. Momentum m as in
    `optax.trace`. With Nesterov's, where tau pull is small, a step leaves
    1 - tau pull / (1 - m); from about (1 - sqrt(m))^2 on the differences swing, and a step leaves
    sqrt(m (1 - tau pull)), which hardly depends on the pull. For that swinging, the largest over
    the last tenth of the steps is taken.

    Args:
        rates: learning rates tau of all steps.
        momentum: in [0, 1).
        pull: strength + weight decay; a number or an array.
        nesterov: whether the momentum is Nesterov's.

    Returns:
        Of the shape of `pull`.

    Example:
        >>> print(contraction(np.full(100, 0.1), 0.0, 0.051).round(4))  # 0.9949^91
        0.628
    """
    pull = np.asarray(pull, float)
    rest, velocity, most = np.ones_like(pull), np.zeros_like(pull), np.zeros_like(pull)
    # Differences that swing pass through 0: the last value alone could be small by chance.
    late = len(rates) - max(1, len(rates) // 10)
    # A pull beyond stability overflows to inf or NaN, which `strength_for` reads as "not enough".
    with np.errstate(over="ignore", invalid="ignore"):
        for step, rate in enumerate(np.asarray(rates, float)):
            # v <- g + m v;  d <- d - tau (g + m v), or d - tau v for plain momentum, for a
            # difference d with the gradient g = pull d
            gradient = pull * rest
            velocity = gradient + momentum * velocity
            rest = rest - rate * (gradient + momentum * velocity if nesterov else velocity)
            if step >= late:
                most = np.fmax(most, np.abs(rest))
    return most


def strength_for(
    rates: np.ndarray, momentum: float, goal: float, of_vectors: float, nesterov: bool = True
) -> float:
    """The gentlest strength with which all differences shrink to `goal` in a training.

    Args:
        rates: learning rates of all steps.
        momentum: in [0, 1).
        goal: final differences, as a fraction of the initial ones.
        of_vectors: factor of the strength for scales and biases, which are last; 0: they are not
            pulled, and do not count here.
        nesterov: whether the momentum is Nesterov's.

    Returns:
        A strength between 1e-4 and 10; where none is enough, the one that leaves least.

    Example:
        >>> rates = np.full(2000, 0.03)
        >>> found = strength_for(rates, 0.9, 1e-6, 0.1)
        >>> bool(contraction(rates, 0.9, 0.1 * found) <= 1e-6), 0.2 < found < 0.3
        (True, True)
    """
    tried = np.geomspace(1e-4, 10, 201)
    # Both ends: scales and biases contract slowest, kernels are the first to become unstable.
    slowest = min(1.0, of_vectors) if of_vectors else 1.0
    left = lambda pulls: np.nan_to_num(contraction(rates, momentum, pulls, nesterov), nan=np.inf)
    remaining = np.maximum(left(slowest * tried), left(tried))
    enough = np.flatnonzero(remaining <= goal)
    return float(tried[enough[0] if enough.size else remaining.argmin()])

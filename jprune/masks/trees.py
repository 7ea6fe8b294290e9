"""Masks on trees: apply them, learn through them, combine, count, pack and lift them.

A mask tree is like the variables; True keeps, a None leaf is not prunable. `lift` makes masks of
units of masks of weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Masks, PyTree, Variables, is_none
from jprune.graph.shrink.concrete import as_array, at_hand, on_host, put_back
from jprune.jaxprs import is_key
from jprune.units import leaves_by_path, ones, places_of


def _map_masks(function: Callable[..., Any], masks: Masks, *trees: PyTree) -> PyTree:
    """Maps over masks, None leaves included; they mean "not prunable"."""
    return jax.tree.map(function, masks, *trees, is_leaf=is_none)


def apply_masks(variables: Variables, masks: Masks) -> Variables:
    """Variables times masks, differentiable in both.

    A None mask leaves its leaf as it is, and so does any mask of random keys.

    Raises:
        StructureError: masks of another structure, or of shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> masks = {"a": jnp.array([True, False]), "b": None}
        >>> apply_masks({"a": jnp.ones(2), "b": jnp.ones(1)}, masks)
        {'a': Array([1., 0.], dtype=float32), 'b': Array([1.], dtype=float32)}
    """

    def product(value: Any, mask: Any) -> Any:
        # NumPy where both are concrete: JAX would compile one product per shape.
        numbers, mask_numbers = at_hand(value), at_hand(mask)
        if numbers is None or mask_numbers is None:
            return value * mask.astype(value.dtype)
        with np.errstate(invalid="ignore"):
            return put_back(numbers * mask_numbers.astype(numbers.dtype), value)

    return _masked(variables, masks, product)


def _masked(variables: Variables, masks: Masks, product: Callable[..., Any]) -> Variables:
    def one(mask: Any, value: Any) -> Any:
        if mask is None or is_key(value):
            return value
        # A mask may broadcast to its leaf, but never enlarge it.
        mask = mask if isinstance(mask, np.ndarray) else as_array(mask)
        shape = jnp.shape(value)
        if mask.shape != shape and (
            mask.ndim > len(shape) or jnp.broadcast_shapes(mask.shape, shape) != shape
        ):
            raise ValueError(f"a mask of shape {mask.shape} for a leaf of shape {shape}")
        return product(value, mask)

    try:
        return _map_masks(one, masks, variables)
    except ValueError as error:
        raise errors.StructureError(
            f"the masks do not fit the variables: {error}. Masks are a tree like the variables; "
            "from unit masks, write apply_masks(variables, expand(groups, masks))."
        ) from None


@jax.custom_jvp
def _straight_product(value: jax.Array, mask: jax.Array) -> jax.Array:
    return value * mask.astype(value.dtype)


@_straight_product.defjvp
def _straight_product_jvp(primals, tangents):
    (value, mask), (value_dot, mask_dot) = primals, tangents
    # y = w m, but dy = dw + w dm instead of m dw + w dm: masked weights get the full gradient.
    tangent = value_dot
    if mask_dot.dtype != jax.dtypes.float0:
        tangent = tangent + value * mask_dot.astype(value.dtype)
    return _straight_product(value, mask), tangent


def straight_through(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Forward with masked weights, backward as if dense: pruned weights go on learning.

    Args:
        fn: `fn(variables, *args)`.

    Returns:
        `fn'(variables, masks, *args)`. With g the gradient at the masked weights, the weights get
        g, not g * mask, and float masks get w * g.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = straight_through(lambda v, x: jnp.sum(v * x))
        >>> jax.grad(loss)(jnp.ones(2), jnp.array([1.0, 0.0]), jnp.array([3.0, 4.0]))
        Array([3., 4.], dtype=float32)
    """

    def masked_fn(variables: Variables, masks: Masks, *args: Any) -> Any:
        return fn(_masked(variables, masks, _straight_product), *args)

    return masked_fn


@jax.custom_jvp
def ste(hard: jax.Array, soft: jax.Array) -> jax.Array:
    """The value of `hard`, the gradient of `soft` (Bengio et al. 2013, arXiv 1308.3432).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jax.grad(lambda s: ste(jnp.round(s), s))(0.7)
        Array(1., dtype=float32, weak_type=True)
    """
    del soft
    return hard


@ste.defjvp
def _ste_jvp(primals, tangents):
    # y = hard, dy = d soft
    return primals[0], tangents[1]


def intersect(left: Masks, right: Masks) -> Masks:
    """Masks that keep what both keep; where one is None, the other's mask.

    Example:
        >>> left = {"a": np.array([True, True]), "b": None}
        >>> right = {"a": np.array([False, True]), "b": np.array([False])}
        >>> {name: mask.tolist() for name, mask in intersect(left, right).items()}
        {'a': [False, True], 'b': [False]}
    """

    def both(one: Any, other: Any) -> Any:
        if one is None or other is None:
            return other if one is None else one
        return on_host(lambda xnp, left, right: xnp.logical_and(left, right))(one, other)

    return jax.tree.map(both, left, right, is_leaf=is_none)


def density(masks: Masks) -> float:
    """Fraction kept, over all entries of all masks; 1 where there is none.

    Example:
        >>> density({"a": np.array([True, False]), "b": None})
        0.5
    """
    leaves = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
    total = sum(mask.size for mask in leaves)
    return float(sum(np.count_nonzero(mask) for mask in leaves) / total) if total else 1.0


def pack(masks: Masks) -> PyTree:
    """Bool masks as bytes of eight entries each: `{"bits": uint8, "shape": ints}` per leaf.

    Example:
        >>> unpack(pack({"a": np.array([True, False, True])}))
        {'a': array([ True, False,  True])}
    """
    return jax.tree.map(
        lambda mask: {
            "bits": np.packbits(np.asarray(mask, bool).reshape(-1)),
            "shape": np.array(np.shape(mask), np.int64),
        },
        masks,
    )


def unpack(packed: PyTree) -> Masks:
    """Masks from `pack`."""
    is_packed = lambda node: isinstance(node, dict) and set(node) == {"bits", "shape"}

    def one(node: dict[str, np.ndarray]) -> np.ndarray:
        shape = tuple(int(length) for length in node["shape"])
        count = int(np.prod(shape))
        return np.unpackbits(node["bits"], count=count).astype(bool).reshape(shape)

    return jax.tree.map(one, packed, is_leaf=is_packed)


def lift(groups: Groups, masks: Masks) -> dict[str, np.ndarray]:
    """Masks of units from masks of weights: a unit goes once the pattern leaves it no reader.

    The rule. A unit goes if its places with the role `in` are empty in all its consumers: nothing
    reads it. An empty filter is not enough, since its shift or a nonlinearity with f(0) != 0 still
    gives an output. Units that end in a contraction of two activations have no consumer with
    weights; there the places that replace `in` (kernel, shift and mean) must all be empty. A group
    that was opened (a norm counts its units, read or not) stays whole.

    Units that only a removed unit was reading go too, and so on. If a pattern leaves no unit of a
    group a reader, one unit stays, since no layer can be left without channels.

    Args:
        groups: from `trace`.
        masks: a tree like the variables, None leaves are whole.

    Returns:
        {group: [units]} bool.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.zeros((2, 3)), "second": jnp.zeros((3, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.zeros((1, 2)))
        >>> lift(groups, {"first": None, "second": np.array([[True], [False], [True]])})
        {'first': array([ True, False,  True])}
    """
    weights = {
        path: np.ones(groups.leaves[path].shape, bool)
        if mask is None
        else np.broadcast_to(np.asarray(mask, bool), groups.leaves[path].shape).copy()
        for path, mask in leaves_by_path(groups, masks).items()
    }
    # Until nothing changes: a unit that goes leaves those that it reads without a reader.
    units = ones(groups)
    while True:
        read = _read(groups, weights, units)
        gone = [name for name in groups.names if (units[name] & ~read[name]).any()]
        if not gone:
            return units
        for name in gone:
            units[name] &= read[name]
            for place in groups.places[name]:
                dead = (place.units >= 0) & ~units[name][place.units]
                # `weights` are copies, so this writes into them and not into the masks that came.
                np.moveaxis(weights[place.leaf], place.axis, 0)[dead] = False


def _read(
    groups: Groups, weights: dict[str, np.ndarray], units: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """{group: [units]}: whether a weight that reads a unit is kept; one of `units` always is."""
    places = places_of(groups, ("in",))
    read = {name: np.zeros(size, bool) for name, size in groups.sizes.items()}
    for name, place in places:
        rows = np.moveaxis(weights[place.leaf], place.axis, 0)
        alive = rows.reshape(len(rows), -1).any(axis=1) & (place.units >= 0)
        read[name][place.units[alive]] = True
    with_readers = {name for name, _ in places}
    for name, alive in read.items():
        # Nothing to be read off weights: an output of the net, or a norm that counts its units.
        if name not in with_readers or not groups.exact[name]:
            alive[:] = True
        elif not (alive & units[name]).any():
            alive[np.flatnonzero(units[name])[0]] = True
    return read


def map_parameters(function: Callable[..., Any], variables: Variables, *others: PyTree) -> PyTree:
    """Maps over parameters; statistics become None, which allocators and masks leave alone.

    Args:
        function: `function(leaf, *others)`.
        variables: {"params": ..., and other collections}: then only `params` has parameters; a
            tree of another kind has nothing but parameters.
        *others: more trees of the variables' structure.

    Example:
        >>> map_parameters(abs, {"params": {"w": -2}, "stats": {"mean": 1}})
        {'params': {'w': 2}, 'stats': {'mean': None}}
    """
    # Flax's layout has collections by name; Haiku's and plain trees have parameters only.
    if not (isinstance(variables, Mapping) and "params" in variables):
        return jax.tree.map(function, variables, *others)

    def one(path: Any, *leaves: Any) -> Any:
        return function(*leaves) if path[0].key == "params" else None

    return jax.tree_util.tree_map_with_path(one, variables, *others)

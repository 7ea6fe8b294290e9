"""Gates on batch norms: one number a unit, for the scales of all norms that write it."""

from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Variables
from jprune.graph.couple.coupling import couple
from jprune.graph.look.affine import affine_of
from jprune.graph.look.branches import dependencies
from jprune.graph.look.sites import find_spots
from jprune.jaxprs import Equation
from jprune.units import check_units, leaves_by_path, places_of

Gates = dict[str, jax.Array]
"""{group: [units]}."""


def sample_gates(key: jax.Array, mu: Gates, log_var: Gates) -> Gates:
    """Gamma = mu + sigma epsilon, epsilon ~ N(0, 1), once for every unit.

    Example:
        >>> sample_gates(jax.random.key(0), {"a": jnp.ones(3)}, {"a": jnp.full(3, -jnp.inf)})["a"]
        Array([1., 1., 1.], dtype=float32)
    """
    # One draw for all groups, split: the order of names, and not of a dict, says who gets which.
    names = sorted(mu)
    ends = np.cumsum([mu[name].size for name in names])
    drawn = jnp.split(jax.random.normal(key, (int(ends[-1]),)), ends[:-1].tolist())
    return {
        # gamma = mu + sigma epsilon
        name: mu[name] + jnp.exp(0.5 * log_var[name]) * noise
        for name, noise in zip(names, drawn)
    }


def early_shifts(
    fn: Callable[..., Any], groups: Groups, variables: Variables, example: Any
) -> dict[str, tuple[str, ...]]:
    """{call site: shifts that are added before its first scale}, such as a bias before a norm.

    A call site is left out if something else reads its values on the way to `norm`: a change at
    `norm` would then not reach all readers.

    Args:
        fn: the network, in inference mode.
        groups: from `trace`.
        variables: or their shapes.
        example: the input, or its shape and type.

    Example:
        >>> import jprune
        >>> act = lambda v, x: jnp.maximum((x @ v["a"] + v["early"]) * v["s"] + v["late"], 0)
        >>> fn = lambda v, x: act(v, x) @ v["b"]
        >>> shapes = {"a": (3, 5), "early": 5, "s": 5, "late": 5, "b": (5, 2)}
        >>> v, x = {name: jnp.ones(shape) for name, shape in shapes.items()}, jnp.ones((1, 3))
        >>> early_shifts(fn, jprune.trace(fn, v, x), v, x)
        {'a': ('early',), 'b': ()}
    """
    coupling = couple(fn, variables, example, inline_remat=True, groups=groups)
    program, paths = coupling.program, coupling.paths
    bits = dependencies(program, len(paths))
    roles = {place.leaf: place.roles for name in groups.names for place in groups.places[name]}
    readers: dict[int, list[Equation]] = {}
    for equation in program.equations:
        for value in equation.inputs:
            readers.setdefault(value, []).append(equation)
    spots = {(s.layer, s.kind): s.value for s in find_spots(program, coupling.uses, paths)}
    shifts_of = {}
    for layer in (layer for layer, kind in spots if kind == "out"):
        value, early, scaled = spots[layer, "out"], list[str](), False
        while value != spots[layer, "norm"]:
            if len(readers[value]) > 1 or value in program.outputs:
                break
            (after,) = readers[value][0].outputs
            # Leaves that come in with this equation: on which
            # its result depends, and its input did not.
            met = [p for n, p in enumerate(paths) if (bits[after] & ~bits[value]) >> n & 1]
            scaled |= any("scale" in roles.get(path, ()) for path in met)
            if not scaled:
                early += [path for path in met if "shift" in roles.get(path, ())]
            value = after
        else:
            shifts_of[layer] = tuple(early) if scaled else ()
    return shifts_of


def fold_gates(
    groups: Groups,
    variables: Variables,
    gamma: Mapping[str, Any],
    early: Collection[str] = (),
) -> Variables:
    """Writes gates into norms: scale <- gamma, shift <- gamma shift.

    Args:
        groups: from `trace`.
        variables: of the net; shifts stand inside the product.
        gamma: {group: [units]}; groups that are not named keep their norms.
        early: shifts that stay as they are, since the scale comes after them; see `early_shifts`.

    Raises:
        StructureError: an unknown group, or a wrong length.
        FrozenError: a gate on something frozen.
    """
    check_units(groups, gamma)
    leaves = leaves_by_path(groups, variables)
    for name, place in places_of(groups, ("scale", "shift"), tuple(gamma)):
        if place.leaf in early:
            continue
        old = leaves[place.leaf]
        shape = [-1 if axis == place.axis else 1 for axis in range(old.ndim)]
        along = jnp.asarray(gamma[name])[np.maximum(place.units, 0)].reshape(shape)
        # gamma (x + beta) = gamma x + gamma beta: the scale is gamma, the shift gamma beta
        new = along if "scale" in place.roles else along * old
        inside = (place.units >= 0).reshape(shape)
        leaves[place.leaf] = jnp.where(inside, new, old).astype(old.dtype)
    return groups.treedef.unflatten(list(leaves.values()))


def gateable(fn: Callable[..., Any], groups: Groups, shapes: Variables, example: Any) -> list[str]:
    """Groups whose units a gate of 0 removes: all their producers end in gamma (x + beta).

    Every producer is probed with gates of 1 and of 2: both the slope and the shift behind it must
    double. A bias before the norm belongs to x.

    Args:
        fn: the function that was traced.
        groups: from `trace`.
        shapes: of the variables.
        example: shape and type of the input.

    Raises:
        ArgumentError: there is none: a net without batch norms.

    Example:
        >>> import jprune
        >>> def fn(v, x):
        ...     x = (x @ v["w"]) * v["scale"] + v["bias"]
        ...     return jnp.maximum(jnp.maximum(x, 0) @ v["plain"], 0) @ v["out"]
        >>> variables = {"w": jnp.ones((2, 3)), "scale": jnp.ones(3), "bias": jnp.ones(3),
        ...              "plain": jnp.ones((3, 4)), "out": jnp.ones((4, 1))}
        >>> groups = jprune.trace(fn, variables, jnp.ones((1, 2)))
        >>> gateable(fn, groups, variables, jnp.ones((1, 2)))
        ['w']
    """
    names = [
        name
        for name in groups.names
        if any("scale" in place.roles for place in groups.places[name])
    ]
    early = early_shifts(fn, groups, shapes, example)
    affine, x = affine_of(fn, groups), jnp.zeros(example.shape, example.dtype)
    inner = {*chain(*early.values())}

    @jax.jit
    def behind(variables: Variables, gate: Any) -> dict[str, Any]:
        gates = {name: jnp.full(groups.sizes[name], gate) for name in names}
        of_layers = affine(fold_gates(groups, variables, gates, inner), x)
        # {layer: [2, outputs]}: the slope and the shift behind it.
        return {layer: jnp.stack(pair) for layer, pair in of_layers.items()}

    # Any values other than 0 and 1 do; shapes are all that is there before a training.
    filled = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1.5, leaf.dtype), shapes)
    once, twice = (jax.tree.map(np.asarray, behind(filled, gate)) for gate in (1.0, 2.0))
    gated = []
    for name in names:
        slopes = [
            (once[site][:, place.units >= 0], twice[site][:, place.units >= 0])
            for _, place in places_of(groups, ("kernel",), (name,))
            for site in (groups.layers[place.leaf].sites if place.leaf in groups.layers else ())
            if site in once and once[site].shape[1] == len(place.units)
        ]
        # gamma (x + beta) is linear in gamma: twice the gate is twice the slope and twice the
        # shift. A slope of 0 would double too: it says nothing.
        doubles = (np.allclose(2 * a, b) and np.all(a[0] != 0) for a, b in slopes)
        if slopes and all(doubles):
            gated.append(name)
    if not gated:
        raise errors.ArgumentError(
            "the net has no unit whose producers all end in a batch norm of their own, so there "
            "are no scales to gate. Take a net with batch norms, or another method such as taylor."
        )
    return gated

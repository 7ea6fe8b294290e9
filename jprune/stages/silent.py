"""Units that say the same to every input: what they add to their readers is folded in."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune.base import Task, Variables
from jprune.graph import Site, intercept
from jprune.graph.layers import offsets
from jprune.masks import apply_masks
from jprune.train.net import Net
from jprune.units import expand

Units = dict[str, np.ndarray]
"""{group: bool [units]}."""


def noise(task: Task, key: jax.Array) -> jax.Array:
    """Two inputs: what is the same for both, at all positions, is a constant."""
    return jax.random.normal(key, (2, *task.example.shape[1:]), task.example.dtype)


def folded(
    task: Task, variables: Variables, silent: Units, x: jax.Array
) -> tuple[Variables, Units]:
    """Folds what constant units add to their consumers into biases and means.

    Args:
        task: of the net.
        variables: under the masks.
        silent: {group: [units]}, True for a unit without inputs.
        x: two inputs.

    Returns:
        The variables under which the units may go, and which of them may.
    """
    groups = Net(task).groups
    targets = offsets(groups)
    while any(units.any() for units in silent.values()):
        added = contributions(task, variables, silent, x)
        failed = {
            layer
            for layer, part in added.items()
            # Not a constant, or one that neither a bias nor a mean can hold.
            if not part.constant or (np.any(part.adds) and layer not in targets)
        }
        if not failed:
            break
        # Their units stay, but for those that are exactly 0 in front of every consumer; what the
        # others add is then measured anew, without them.
        stays = {name for layer in failed for name in added[layer].groups}
        zero = zeros_of(added, silent)
        silent = {
            name: units & zero[name] if name in stays else units for name, units in silent.items()
        }
    else:
        return variables, silent
    leaves = Net(task).leaves(variables)
    for layer, part in added.items():
        if np.any(part.adds):
            path, sign = targets[layer]
            # b <- b + sum of what the silent units add; in the mean of a norm, mu <- mu - it
            leaves = Net(task).shifted(leaves, path, sign * part.adds)
    moved = Net(task).tree(leaves)
    out = expand(groups, {name: ~units for name, units in silent.items()}, ("in",))
    run = jax.jit(task.fn)  # one program for both, instead of one for every operation
    now, then = run(variables, x), run(apply_masks(moved, out), x)
    # Outputs must be the same without the units, whatever lies between: checked, not derived.
    # Rounding over a few layers in float32 is about 1e-5.
    if float(jnp.abs(now - then).max()) > 1e-4 * float(jnp.abs(now).max()):
        return variables, {name: np.zeros_like(units) for name, units in silent.items()}
    return moved, silent


class Contribution(NamedTuple):
    """What units without inputs add to one consumer.

    Attributes:
        groups: the groups of these units.
        constant: whether they add the same at all positions and for all inputs.
        adds: [outputs]: what they add.
        nonzero: {group: [units]}: which of them are not 0 in front of this consumer.
    """

    groups: tuple[str, ...]
    constant: bool
    adds: np.ndarray
    nonzero: Units


def contributions(
    task: Task, variables: Variables, silent: Units, x: jax.Array
) -> dict[str, Contribution]:
    """What units without inputs add to each consumer: {layer: contribution}."""
    groups = Net(task).groups
    out_axis = {site.layer: site.axis for site in groups.sites if site.kind == "out"}

    def handler(
        site: Site, value: Any, added: dict[str, Contribution]
    ) -> tuple[Any, dict[str, Contribution]]:
        dead = np.zeros(value.shape[site.axis], bool)
        # max over batch and positions of |x_c|: 0 only where a unit is 0 everywhere.
        size = np.abs(np.asarray(value, np.float64)).max(
            axis=tuple(axis for axis in range(value.ndim) if axis != site.axis)
        )
        nonzero: Units = {}
        for name, units in site.units.items():
            if name in silent and silent[name].any():
                at_dead = (units >= 0) & silent[name][np.maximum(units, 0)]
                dead |= at_dead
                nonzero[name] = np.zeros(groups.sizes[name], bool)
                nonzero[name][units[at_dead & (size > 0)]] = True
        if not dead.any():
            return value, added
        along = dead.reshape([-1 if axis == site.axis else 1 for axis in range(value.ndim)])
        # The consumer is linear: run on the silent units alone, it gives what they add.
        outputs = np.asarray(site.apply(jnp.where(along, value, 0)), np.float64)
        axis = out_axis[site.layer]
        # [batch x positions, outputs]
        rows = np.moveaxis(outputs, axis, -1).reshape(-1, outputs.shape[axis])
        # A constant: the same for both inputs at all positions, but for rounding.
        spread = np.ptp(rows, axis=0).max(initial=0)
        constant = bool(spread <= 1e-5 * np.abs(rows).max(initial=0))
        return value, {
            **added,
            site.layer: Contribution(tuple(nonzero), constant, rows.mean(axis=0), nonzero),
        }

    return intercept(task.fn, groups, handler)(variables, {}, x)[1]


def zeros_of(added: Mapping[str, Contribution], silent: Units) -> Units:
    """{group: [units]}: whether a unit is 0 in front of all consumers."""
    zero = {name: np.ones(units.shape, bool) for name, units in silent.items()}
    for part in added.values():
        for name, nonzero in part.nonzero.items():
            zero[name] = zero[name] & ~nonzero
    return zero

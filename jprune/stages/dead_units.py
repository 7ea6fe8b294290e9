"""Removes units that pruning of single weights has cut off, and folds in what they still add."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Masks, Pruned, Records, Task, Variables, is_none
from jprune.graph import Site, intercept
from jprune.graph.layers import offsets
from jprune.graph.look.reach import reached
from jprune.masks import apply_masks
from jprune.stages.frame import fractions, record
from jprune.train.net import Net
from jprune.units import expand, to_units

Units = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class RemoveDead:
    """Masks all weights of units without outputs or without inputs.

    A unit without outputs is removed as it is. One without inputs still emits f(bias): the net is
    run to measure what that adds to the consumers. If it adds the same at all positions of an
    output (it does not where a padded border shows), that constant is folded into the consumer's
    bias, or subtracted from the mean of a norm that follows at once, and the unit is removed; else
    the unit stays. This repeats until neither kind of unit is left.

    Attributes:
        name: of the record: fractions kept, and how many units were `removed` and `kept_silent`.
    """

    name: str = "remove_dead"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same function with smaller masks.

        Raises:
            BudgetError: the net is cut: no path is left from its inputs to its outputs.
        """
        groups = Net(task).groups
        before = unit_count(Net(task).unit_masks(pruned._replace(masks=None)))
        # Two inputs of noise: what is the same for both is a constant.
        x = jax.random.normal(key, (2, *task.example.shape[1:]), task.example.dtype)
        # Read and not fed, so it emits a constant; units that
        # could not be folded are not tried again.
        kept_silent = {name: np.zeros(size, bool) for name, size in groups.sizes.items()}
        while True:
            alive = Net(task).unit_masks(pruned)
            # A unit that nothing reads goes at once: none of its weights matter.
            masks = narrowed(pruned.masks, expand(groups, alive))
            pruned = under(masks, pruned.variables, pruned)
            fed, read = (has_weights(groups, masks, role) for role in ("kernel", "in"))
            silent = {
                name: read[name] & ~fed[name] & ~kept_silent[name]
                for name in groups.names
                if name in fed and name in read
            }
            if not any(units.any() for units in silent.values()):
                break
            # Removing these may cut off others, in front of them or behind: go round once more.
            variables, gone = folded(task, pruned.variables, silent, x)
            for name, units in silent.items():
                kept_silent[name] |= units & ~gone[name]
            # Role "in" alone: once no consumer reads a unit,
            # the next round removes the unit itself.
            out = expand(groups, {name: ~units for name, units in gone.items()}, ("in",))
            pruned = under(narrowed(masks, out), variables, pruned)
        refuse_cut(task, pruned)
        metrics = {
            **fractions(task, pruned.masks),
            "removed": before - unit_count(alive),
            "kept_silent": unit_count(kept_silent),
        }
        return pruned, [record(self.name, metrics)]


def under(masks: Masks, variables: Variables, pruned: Pruned) -> Pruned:
    """The net under masks, with variables that are 0 where they say so."""
    return pruned._replace(variables=apply_masks(variables, masks), masks=masks)


def unit_count(units: Mapping[str, np.ndarray]) -> int:
    """How many units the masks keep."""
    return sum(int(np.sum(mask)) for mask in units.values())


def refuse_cut(task: Task, pruned: Pruned) -> None:
    """Refuses a net whose outputs cannot depend on its inputs any more, whatever these are.

    Raises:
        BudgetError: it is one.
    """
    masks = Net(task).weight_masks(pruned.masks)
    # Any weights will do where the masks leave some: a path is a question about masks.
    rng = np.random.default_rng(0)
    some = lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    weights = jax.tree.map(lambda leaf: some(leaf) if floating(leaf) else leaf, pruned.variables)
    if not any(part.any() for part in reached(task.fn, apply_masks(weights, masks), task.example)):
        raise errors.BudgetError(
            "the budget cuts the net: no path of weights is left from its inputs to its outputs. "
            "Ask for more, or prune in more rounds."
        )


def has_weights(groups: Groups, masks: Masks, role: str) -> Units:
    """{group: [units]}: whether a unit has any weight left at its places of a role."""
    leaves = {
        # A leaf without a mask is whole; a unit has weights if the largest of its mask is 1.
        path: np.ones(leaf.shape, np.float32) if mask is None else np.asarray(mask, np.float32)
        for (path, leaf), mask in zip(groups.leaves.items(), groups.treedef.flatten_up_to(masks))
    }
    alive = groups.treedef.unflatten(list(leaves.values()))
    units = to_units(groups, alive, (role,), within="max", across="max")
    return {name: np.asarray(most) > 0 for name, most in units.items()}


def narrowed(masks: Masks, other: Masks) -> Masks:
    """The intersection of two masks; None where the first is not prunable."""
    both = lambda mask, more: None if mask is None else np.asarray(mask) & np.asarray(more)
    return jax.tree.map(both, masks, other, is_leaf=is_none)


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
    now, then = task.fn(variables, x), task.fn(apply_masks(moved, out), x)
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

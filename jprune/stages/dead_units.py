"""Removes units that pruning of single weights has cut off, and folds in what they still add."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Masks, Pruned, Records, Task, Variables, is_none
from jprune.graph.look.reach import reached
from jprune.masks import apply_masks
from jprune.stages.frame import fractions, record
from jprune.stages.silent import Units, folded, noise
from jprune.train.net import Net
from jprune.units import expand, to_units


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
        x = noise(task, key)
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
            pruned = under(unread(masks, out), variables, pruned)
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


def unread(masks: Masks, out: Masks) -> Masks:
    """The intersection of two masks; a kernel without one gets one if it read what goes.

    Otherwise it would read the unit for ever, and the unit would never be gone.
    """

    def both(mask: Any, more: Any) -> Any:
        if mask is None:
            return None if np.all(more) else np.asarray(more)
        return np.asarray(mask) & np.asarray(more)

    return jax.tree.map(both, masks, out, is_leaf=is_none)


def narrowed(masks: Masks, other: Masks) -> Masks:
    """The intersection of two masks; None where the first is not prunable."""
    both = lambda mask, more: None if mask is None else np.asarray(mask) & np.asarray(more)
    return jax.tree.map(both, masks, other, is_leaf=is_none)

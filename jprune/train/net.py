"""Nets with kernels in another form (leaf types): how they run and what they cost."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.base import (
    Budget,
    Cost,
    CostModel,
    Groups,
    Masks,
    Pruned,
    PyTree,
    Task,
    Variables,
    is_none,
)
from jprune.blocks.grains import lift
from jprune.cost import cost, cost_model
from jprune.cost.samples import gates_of, sample_macs
from jprune.forms.opened import dense_of, has_leaf_types, opened
from jprune.forms.winners import has_dynamic
from jprune.graph import slim, slim_params, trace
from jprune.train.resolution import seen_at
from jprune.units import expand, ones


@functools.lru_cache(maxsize=16)  # the same function for the same net: it is what JAX compiles for
def in_any_form(
    fn: Callable[..., Any], net: Callable[..., Any], init: Callable[..., Any], example: Any
) -> Callable[..., Any]:
    """A function that also takes variables whose kernels are leaf types.

    Args:
        fn: the net's function, in inference or in training mode.
        net: the one in inference mode.
        init: `init(key) -> variables`, all of them arrays.
        example: the net's input.
    """

    def run(variables: Variables, *args: Any) -> Any:
        if not has_leaf_types(variables):
            return fn(variables, *args)
        return slim(fn, traced(net, init, example), {})(variables, *args)

    return run


def cost_as_held(task: Task, pruned: Pruned, masks: Masks, split: str = "validation") -> Cost:
    """What a net costs: under masks, or with the leaf types that it holds.

    Where what is computed depends on the example, MACs are a mean over the examples of a split.

    Args:
        task: of the net.
        pruned: its variables.
        masks: of units or weights, where all kernels are arrays.
        split: whose examples are looked at, where a net depends on them.
    """
    if not has_leaf_types(pruned.variables):
        return cost_of(task)(masks)
    if has_dynamic(pruned.variables):
        macs = macs_over(task, pruned.variables, split)
        return cost_of(task)({})._replace(macs=macs)
    fn, variables = opened(*slim_net(task, pruned))
    return cost(fn, variables, task.example)


def macs_over(task: Task, variables: Variables, split: str) -> float:
    """Mean MACs of an example of a split, for a net that chooses its channels for every one."""
    count = counter_of(task.fn, task.init, task.example)
    total = seen = 0.0
    for batch in task.data.batches(split, 256):
        total += float(batch["weight"] @ count(variables, batch["image"]))
        seen += float(batch["weight"].sum())
    return total / seen


@functools.lru_cache(maxsize=8)
def counter_of(
    fn: Callable[..., Any], init: Callable[..., Any], example: Any
) -> Callable[..., Any]:
    """`count(variables, x) -> [batch]`: MACs of every example."""
    groups = traced(fn, init, example)
    run, macs = gates_of(fn, groups), sample_macs(fn, groups)
    return jax.jit(lambda variables, x: macs(dense_of(variables), run(variables, x)[1], x))


def kernels_in_order(task: Task, masks: Masks) -> tuple[str, ...]:
    """Paths of the kernels that have a mask, in execution order.

    Args:
        task: of the net.
        masks: a tree like the variables, None where nothing is prunable.

    Raises:
        ArgumentError: there is none.
    """
    groups = groups_of(task)
    prunable = {
        path
        for path, mask in zip(groups.leaves, groups.treedef.flatten_up_to(masks))
        if mask is not None
    }
    sites = [site.layer for site in groups.sites if site.kind == "in" and site.layer in prunable]
    # Kernels inside loops have no site.
    found = tuple(dict.fromkeys([*sites, *(path for path in groups.leaves if path in prunable)]))
    if not found:
        raise errors.ArgumentError(
            f"nothing of {task.name} is prunable: it has no kernel, or all of them are frozen. "
            "Freeze fewer groups."
        )
    return found


def per_kernel(text: str, kernels: tuple[str, ...], option: str) -> dict[str, float]:
    """{kernel: number} from one number, or from one a kernel with ":" between.

    Args:
        text: "3" or "0.4:1:1:0.7".
        kernels: paths, in execution order.
        option: name of the option, for the message.

    Raises:
        ArgumentError: no numbers, or not as many as there are kernels.

    Example:
        >>> per_kernel("0.5:2", ("params/conv1/kernel", "params/fc/kernel"), "q")
        {'params/conv1/kernel': 0.5, 'params/fc/kernel': 2.0}
    """
    try:
        numbers = [float(word) for word in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= len(kernels)
    if len(numbers) != len(kernels):
        raise errors.ArgumentError(
            f"{option}={text!r}; write one number, or {len(kernels)} with ':' between, for "
            f"{', '.join(kernels)}."
        )
    return dict(zip(kernels, numbers))


def refuse_nan(task: Task, variables: Variables, kernels: tuple[str, ...]) -> None:
    """Refuses kernels that hold something that is not finite.

    Raises:
        ArgumentError: one does.
    """
    leaves = by_path(task, variables)
    broken = [path for path in kernels if not np.isfinite(np.asarray(leaves[path])).all()]
    if broken:
        raise errors.ArgumentError(
            f"the weights {broken[0]} hold NaN or infinity: training has diverged. Write a "
            "smaller --learning-rate."
        )


def as_tree(task: Task, by_path: Mapping[str, Any]) -> PyTree:
    """A tree like the variables that holds these values, None elsewhere."""
    groups = groups_of(task)
    return groups.treedef.unflatten([by_path.get(path) for path in groups.leaves])


def by_path(task: Task, tree: PyTree) -> dict[str, Any]:
    """{path: leaf} of a tree like the variables, without the None leaves."""
    groups = groups_of(task)
    leaves = zip(groups.leaves, groups.treedef.flatten_up_to(tree))
    return {path: leaf for path, leaf in leaves if leaf is not None}


def groups_of(task: Task) -> Groups:
    """The groups of a task's net; traced once."""
    return traced(task.fn, task.init, task.example)


@functools.lru_cache(maxsize=8)
def traced(fn: Callable[..., Any], init: Callable[..., Any], example: Any) -> Groups:
    """The groups of a net; traced once."""
    return trace(fn, _shapes(init), example)


def _shapes(init: Callable[..., Any]) -> Variables:
    return jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))


def shapes_of(task: Task) -> Variables:
    """Shapes and types of the dense net's variables."""
    return _shapes(task.init)


def cost_of(task: Task) -> CostModel:
    """The cost model of a task's net; made once."""
    return _costed(task.fn, task.init, task.example)


@functools.lru_cache(maxsize=8)
def _costed(fn: Callable[..., Any], init: Callable[..., Any], example: Any) -> CostModel:
    return cost_model(fn, _shapes(init), example, groups=traced(fn, init, example))


def are_units(groups: Groups, masks: Masks) -> bool:
    """Whether masks are {group: [units]} and not a tree like the variables."""
    known = {*groups.sizes, *(branch.name for branch in groups.branches)}
    return isinstance(masks, dict) and set(masks) <= known


def weight_masks(task: Task, masks: Masks) -> Masks:
    """Masks as a tree like the variables; None where nothing is pruned."""
    if masks is None or not are_units(groups_of(task), masks):
        return masks
    return expand(groups_of(task), masks)


def unit_masks(task: Task, pruned: Pruned) -> dict[str, Any]:
    """Masks of all groups; masks of weights remove the units that nothing reads any more."""
    groups = groups_of(task)
    masks = {} if pruned.masks is None else pruned.masks
    if are_units(groups, masks):
        return {**ones(groups), **masks}
    return {**ones(groups), **lift(groups, masks)}


def prunable_weights(task: Task, masks: Masks, budget: Budget) -> Masks:
    """Masks of all weights that may go, True where one is alive; None for the other leaves.

    Kernels may go, all that have two axes or more, but for those of a group that the budget's
    floors leave whole.

    Args:
        task: of the net.
        masks: of weights or units, from before; or None.
        budget: whose floors are read.
    """
    groups = groups_of(task)
    whole = {
        place.leaf
        for name, floor in budget.floors.items()
        if floor >= groups.sizes[name]
        for place in groups.places[name]
        if "kernel" in place.roles
    }
    shapes = shapes_of(task)
    params, rest = task.split(shapes)
    nothing = lambda tree: jax.tree.map(lambda leaf: None, tree)
    kernels = task.merge(
        jax.tree.map(lambda leaf: np.ones(leaf.shape, bool) if leaf.ndim > 1 else None, params),
        nothing(rest),
    )
    kernels = jax.tree.unflatten(
        groups.treedef,
        [
            None if path in whole else mask
            for path, mask in zip(groups.leaves, groups.treedef.flatten_up_to(kernels))
        ],
    )
    before = weight_masks(task, masks)
    if before is None:
        return kernels
    alive = lambda kernel, mask: kernel if kernel is None or mask is None else kernel & mask
    return jax.tree.map(alive, kernels, before, is_leaf=is_none)


def standing(groups: Groups, masks: Mapping[str, Any]) -> tuple[str, ...]:
    """Groups with a place outside the branches that masks remove."""
    removed = {
        leaf
        for branch in groups.branches
        if not np.all(masks.get(branch.name, True))
        for leaf in branch.leaves
    }
    return tuple(
        name
        for name in groups.names
        if any(place.leaf not in removed for place in groups.places[name])
    )


def of_single_weights(budget: Budget) -> Budget:
    """The budget without what concerns units: multiples and floors."""
    return dataclasses.replace(budget, multiple_of=1, min_units=1, floors={})


def slim_net(task: Task, pruned: Pruned) -> tuple[Callable[..., Any], Variables]:
    """The small net: `(fn, variables)`; single weights that are masked stay in it as zeros."""
    groups, masks = groups_of(task), unit_masks(task, pruned)
    fn = seen_at(slim(task.fn, groups, masks), pruned.resolution)
    return fn, slim_params(groups, masks, pruned.variables)

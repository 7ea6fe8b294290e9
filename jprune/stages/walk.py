"""The steps in which a net is pruned layer by layer, and their masks."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jprune import errors
from jprune.allocate.widths import refuse_impossible_widths
from jprune.base import Budget, Groups, Layer, Masks, Pruned, Task
from jprune.train.net import Net
from jprune.train.numbers import Numbers, per_name
from jprune.units import expand, places_of


class Step(NamedTuple):
    """Units that are chosen at once.

    Attributes:
        name: the group's, or `sampler/` and the kernel's path.
        units: how many there are.
        kernels: {path of a consumer's kernel: [units, repeats] positions of every unit on its
            input axis}.
        sampler: whether the units are those that one layer reads of a residual stream.
    """

    name: str
    units: int
    kernels: dict[str, np.ndarray]
    sampler: bool = False

    @property
    def path(self) -> str:
        """The kernel of a sampler."""
        return next(iter(self.kernels))


def steps_of(task: Task, stream: str) -> list[Step]:
    """The steps of a walk, in the order of their first consumer.

    A group takes part if all its readers are plain contractions with a site: their inputs and
    outputs can be observed, and their weights refitted. Others (read by grouped convolutions, by
    attention, inside loops) stay whole. A sampler is put before a layer that reads a residual
    stream and does not write one.
    """
    groups = Net(task).groups
    layers = plain_layers(groups)
    streams = groups.streams
    steps: dict[str, Step] = {}
    for name, size in groups.sizes.items():
        kernels = consumers_of(groups, name)
        if kernels and (stream == "joint" or name not in streams):
            steps[name] = Step(name, size, kernels)
        elif stream == "sampler":
            for path in kernels:
                layer = layers[path]
                # A branch begins with a layer whose outputs are units, and none of a stream.
                if layer.writes and not streams & {*layer.writes}:
                    inputs = np.arange(layer.shape[layer.inputs[0]])[:, None]
                    step = Step(f"sampler/{path}", len(inputs), {path: inputs}, sampler=True)
                    steps[step.name] = step
    # Execution order, so that inputs are those of the net as pruned so far.
    order = list(layers)
    return sorted(steps.values(), key=lambda step: min(order.index(path) for path in step.kernels))


def refuse_unread(task: Task, prunable: Sequence[Any]) -> None:
    """Refuses a net in which no unit can be chosen by its consumers.

    Args:
        task: of the net.
        prunable: steps or groups that take part.

    Raises:
        ArgumentError: there is none.
    """
    if not prunable:
        raise errors.ArgumentError(
            f"nothing of {task.name} is prunable by this method: no unit is read by plain "
            "contractions alone. Take a method that looks at no consumer, such as l1."
        )


def shares_of(ratios: Numbers, steps: Sequence[Step]) -> dict[str, float]:
    """{step: its share of what is kept, relative to the others}.

    Raises:
        ArgumentError: not as many ratios as steps, or one of a step that there is not.
    """
    return per_name(ratios, [step.name for step in steps], "ratios")


def check_steps(task: Task, stream: str, budget: Budget, ratios: Numbers) -> None:
    """Refuses a net of which nothing is prunable, and ratios for other steps than it has.

    Raises:
        ArgumentError: it is one, or they are.
        BudgetError: a budget that no widths can meet.
    """
    steps = steps_of(task, stream)
    refuse_unread(task, steps)
    shares_of(ratios, steps)
    dense = Pruned(None, None)
    masks_of = lambda masks: masks_by_name(task, dense, steps, masks)
    refuse_impossible_widths(alive_of(task, dense, steps), budget, Net(task).cost, masks_of)


def plain_layers(groups: Groups) -> dict[str, Layer]:
    """Layers that can be observed and refitted: plain, with a site; in execution order."""
    return {path: each for path, each in groups.layers.items() if each.plain and each.sites}


def mergeable(task: Task) -> list[str]:
    """Groups whose readers can take over a merged unit's outgoing weights, in execution order."""
    groups = Net(task).groups
    return [name for name in groups.names if groups.exact[name] and consumers_of(groups, name)]


def consumers_of(groups: Groups, name: str) -> dict[str, np.ndarray]:
    """{kernel that reads the group: [units, repeats] positions on its inputs}, in execution order.

    Empty if one of them is no plain layer, or if units stand at different numbers of positions.
    """
    layers, size = plain_layers(groups), groups.sizes[name]
    positions: dict[str, np.ndarray] = {}
    for _, place in places_of(groups, ("in",), (name,)):
        units = place.units
        # Behind a flatten a unit stands at height x width positions of the dense layer's inputs.
        repeats = np.bincount(units[units >= 0], minlength=size)
        layer = layers.get(place.leaf)
        if layer is None or place.axis not in layer.inputs or len({*repeats.tolist()}) > 1:
            return {}
        taken = np.flatnonzero(units >= 0)
        # Positions sorted by unit, in order within a unit: one row per unit.
        index = taken[np.argsort(units[taken], kind="stable")]
        positions[place.leaf] = index.reshape(size, -1)
    return {path: positions[path] for path in layers if path in positions}


def alive_of(task: Task, pruned: Pruned, steps: Sequence[Step]) -> dict[str, np.ndarray]:
    """{step: bool [units]}: the units that the masks keep."""
    units = Net(task).unit_masks(pruned)
    masks = Net(task).weight_masks(pruned.masks)
    single = {} if masks is None else Net(task).leaves(masks)
    alive = {}
    for step in steps:
        if step.sampler:
            mask, layer = single.get(step.path), Net(task).groups.layers[step.path]
            whole = np.ones(layer.shape, bool) if mask is None else np.asarray(mask)
            # A sampler reads an input if any weight of the kernel does: [inputs, window, outputs].
            alive[step.name] = layer.matrix(whole).any(axis=(1, 2))
        else:
            alive[step.name] = np.asarray(units[step.name], bool)
    return alive


def masks_by_name(
    task: Task, pruned: Pruned, steps: Sequence[Step], masks: Mapping[str, np.ndarray]
) -> Masks:
    """Masks of the net: of units, or of weights where a sampler reads a part of a stream."""
    groups = Net(task).groups
    sampled = {step.path: masks[step.name] for step in steps if step.sampler}
    chosen = {step.name: masks[step.name] for step in steps if not step.sampler}
    units = {**Net(task).unit_masks(pruned), **chosen}
    # Unit masks where they say it all: `slim` can then cut channels off.
    if not sampled and (pruned.masks is None or Net(task).are_units(pruned.masks)):
        return units
    leaves = Net(task).leaves(expand(groups, units))
    before = {} if Net(task).are_units(pruned.masks or {}) else Net(task).leaves(pruned.masks)
    for path in leaves:
        leaf = np.asarray(leaves[path])
        if path in before:
            leaf = leaf & np.asarray(before[path])
        if path in sampled:
            read = groups.layers[path].inputs[0]
            # [inputs] along the kernel's input axis
            others = [axis for axis in range(leaf.ndim) if axis != read]
            leaf = leaf & np.expand_dims(sampled[path], others)
        leaves[path] = leaf
    return Net(task).tree(leaves)

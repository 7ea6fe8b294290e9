"""Which layers are pruned one after another: the steps of a walk through a net, and their masks."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jprune.base import Groups, Masks, Pruned, Task
from jprune.forms.slide import plain_kernels
from jprune.reconstruct.windows import sites_of
from jprune.train.net import Net, are_units
from jprune.units import expand, places_of


class Step(NamedTuple):
    """What is chosen at once."""

    name: str
    """The group's, or `sampler/` and the kernel's path."""
    units: int
    kernels: dict[str, np.ndarray]
    """{path of a consumer's kernel: [units, repeats] positions of every unit on its input axis}."""
    sampler: bool = False

    @property
    def path(self) -> str:
        """The kernel of a sampler."""
        return next(iter(self.kernels))


def steps_of(task: Task, stream: str) -> list[Step]:
    """The steps of a walk, in the order of their first consumer.

    A group takes part if all that reads it are plain contractions with a site, so that its
    consumers can be seen and refitted; others (read by grouped convolutions, by attention, inside
    loops) stay whole. A sampler stands before a layer that reads a stream and whose outputs are
    units of their own.
    """
    groups = Net(task).groups
    seen = seen_kernels(task)
    streams = {name for site in groups.sites if site.kind == "join" for name in site.groups}
    found: dict[str, Step] = {}
    for name, size in groups.sizes.items():
        kernels = consumers_of(groups, name, size, seen)
        if kernels and (stream == "joint" or name not in streams):
            found[name] = Step(name, size, kernels)
        elif stream == "sampler":
            for path in kernels:
                if begins_branch(groups, seen[path][0], streams):
                    inputs = np.arange(groups.leaves[path].shape[-2])[:, None]
                    step = Step(f"sampler/{path}", len(inputs), {path: inputs}, sampler=True)
                    found[step.name] = step
    order = list(seen)
    return sorted(found.values(), key=lambda step: min(order.index(path) for path in step.kernels))


def seen_kernels(task: Task) -> dict[str, tuple[str, ...]]:
    """{kernel of plain contractions: its call sites}, in execution order."""
    groups = Net(task).groups
    plain = plain_kernels(task.fn, Net(task).shapes, task.example, casts=True)
    found = {path: sites for path, sites in sites_of(groups, plain).items() if sites}
    order = [site.layer for site in groups.sites if site.kind == "in"]
    return dict(sorted(found.items(), key=lambda item: order.index(item[1][0])))


def mergeable(task: Task) -> list[str]:
    """Groups whose readers can add what a merged unit said, in execution order."""
    groups, seen = Net(task).groups, seen_kernels(task)
    return [
        name
        for name, size in groups.sizes.items()
        if groups.exact[name] and consumers_of(groups, name, size, seen)
    ]


def consumers_of(
    groups: Groups, name: str, size: int, seen: Mapping[str, tuple[str, ...]]
) -> dict[str, np.ndarray]:
    """{kernel that reads the group: [units, repeats] positions}, in execution order.

    Empty where one of them is not in `seen` (from `seen_kernels`), or where units stand at
    different numbers of positions.
    """
    found: dict[str, np.ndarray] = {}
    for _, place in places_of(groups, ("in",), (name,)):
        units = place.units
        repeats = np.bincount(units[units >= 0], minlength=size)
        on_inputs = place.axis == len(groups.leaves[place.leaf].shape) - 2
        if place.leaf not in seen or not on_inputs or len({*repeats.tolist()}) > 1:
            return {}
        taken = np.flatnonzero(units >= 0)
        index = taken[np.argsort(units[taken], kind="stable")]
        found[place.leaf] = index.reshape(size, -1)
    return {path: found[path] for path in seen if path in found}


def begins_branch(groups: Groups, site: str, streams: set[str]) -> bool:
    """Whether what a layer says is units that are on no stream."""
    (out,) = (s for s in groups.sites if s.layer == site and s.kind == "out")
    return bool(out.groups) and not set(out.groups) & streams


def alive_of(task: Task, pruned: Pruned, steps: Sequence[Step]) -> dict[str, np.ndarray]:
    """{step: bool [units]}: what masks have left so far."""
    units = Net(task).unit_masks(pruned)
    masks = Net(task).weight_masks(pruned.masks)
    single = {} if masks is None else Net(task).leaves(masks)
    found = {}
    for step in steps:
        if step.sampler:
            mask = np.asarray(single.get(step.path, np.ones((step.units, 1), bool)))
            found[step.name] = np.moveaxis(mask, -2, 0).reshape(step.units, -1).any(axis=1)
        else:
            found[step.name] = np.asarray(units[step.name], bool)
    return found


def masks_by_name(
    task: Task, pruned: Pruned, steps: Sequence[Step], masks: Mapping[str, np.ndarray]
) -> Masks:
    """Masks of the net: of units, or of weights where a sampler reads a part of a stream."""
    groups = Net(task).groups
    sampled = {step.path: masks[step.name] for step in steps if step.sampler}
    mine = {step.name: masks[step.name] for step in steps if not step.sampler}
    units = {**Net(task).unit_masks(pruned), **mine}
    if not sampled and (pruned.masks is None or are_units(groups, pruned.masks)):
        return units
    leaves = Net(task).leaves(expand(groups, units))
    before = {} if are_units(groups, pruned.masks or {}) else Net(task).leaves(pruned.masks)
    for path in leaves:
        leaf = np.asarray(leaves[path])
        if path in before:
            leaf = leaf & np.asarray(before[path])
        if path in sampled:
            leaf = leaf & sampled[path][:, None]
        leaves[path] = leaf
    return Net(task).tree(leaves)

"""Kernels one by one: their order, and a number for each."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jprune import errors
from jprune.base import Masks, PyTree, Task, Variables
from jprune.recipes._nets import groups_of


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

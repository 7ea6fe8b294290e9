"""Nets with kernels in another form (leaf types): how they run and what they cost."""

import functools
from collections.abc import Callable
from typing import Any

from jprune.base import Cost, Masks, Pruned, Task, Variables
from jprune.cost import cost
from jprune.graph import slim
from jprune.graph.parts import has_leaf_types, opened
from jprune.recipes._nets import cost_of, slim_net, traced


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


def cost_as_held(task: Task, pruned: Pruned, masks: Masks) -> Cost:
    """What a net costs: under masks, or with the leaf types that it holds.

    Args:
        task: of the net.
        pruned: its variables.
        masks: of units or weights, where all kernels are arrays.
    """
    if not has_leaf_types(pruned.variables):
        return cost_of(task)(masks)
    fn, variables = opened(*slim_net(task, pruned))
    return cost(fn, variables, task.example)

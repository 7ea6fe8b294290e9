"""Nets with kernels in another form (leaf types): how they run and what they cost."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jprune.base import Cost, Masks, Pruned, Task, Variables
from jprune.cost import cost
from jprune.cost.samples import gates_of, sample_macs
from jprune.graph import slim
from jprune.graph.parts import dense_of, has_leaf_types, opened
from jprune.graph.winners import has_dynamic
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

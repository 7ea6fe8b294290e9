"""`cost` and `cost_model`: parameters, multiply-accumulates and bytes of a network."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from jprune import errors
from jprune.base import Budget, Cost, CostModel, Groups, Masks
from jprune.cost.contractions import Term, bytes_moved, contractions, macs
from jprune.cost.counts import Count, Counter, as_gates
from jprune.cost.energy import EYERISS, EnergyCosts, layer_energy
from jprune.graph.couple.roles import Uses
from jprune.graph.layers import examples_in
from jprune.graph.shrink.concrete import at_hand
from jprune.graph.trace import Coupling, check_leaves, couple, trace

STATISTICS = {"mean", "var", "state"}


def cost_model(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    groups: Groups,
    per_equation: Callable[[Term], Any] = macs,
    latency: Callable[[Term], Any] | None = None,
    energy: EnergyCosts = EYERISS,
) -> CostModel:
    """A function from masks to cost.

    Args:
        fn: the network, in inference mode.
        variables: its variables, or their shapes.
        *args: inputs; counts are divided by the leading length of the first one (its batch).
        groups: from `trace`.
        per_equation: `Term -> number`, summed over contractions as `Cost.macs`.
        latency: `Term -> ms`, summed as `Cost.latency`, such as a `measure.LatencyTable`. Zeros
            among single weights change nothing of it.
        energy: costs of the levels of memory, for `Cost.energy`. Activations count as not 0.

    Returns:
        `model(masks) -> Cost`. `masks` are unit masks or real gates {group: [n]}, real widths
        {group: scalar}, or a tree of weight masks like the variables; groups that are not named
        are whole. Jittable, and differentiable in gates and widths. Contractions in a `scan` count
        once per turn, in a `while` once.

    Raises:
        StructureError: masks of another net (when called).

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.zeros((3, 5)), "second": jnp.zeros((5, 2))}
        >>> x = jnp.zeros((1, 3))
        >>> model = cost_model(fn, variables, x, groups=jprune.trace(fn, variables, x))
        >>> float(model({}).macs), float(model({"first": 2}).macs)
        (25.0, 10.0)
    """
    check_leaves(groups, variables)
    coupling = couple(fn, variables, *args, inline_remat=True, groups=groups)
    uses = coupling.uses
    counter = Counter(coupling, groups)
    found = contractions(coupling, uses, counter, examples_in(args))
    leaf_counts = _leaf_counts(coupling, uses, counter)
    sizes = {**groups.sizes, **{branch.name: 1 for branch in groups.branches}}
    owners = {
        leaf: tuple(b.name for b in groups.branches if coupling.paths[leaf] in b.leaves)
        for leaf in leaf_counts
    }

    def model(masks: Any) -> Cost:
        if isinstance(masks, Mapping) and set(masks) <= set(sizes):
            gates = as_gates(sizes, masks)
            densities = None
            # A leaf has the product of its axes' counts as size, times the gates of its branches.
            params: Any = 0
            for leaf, counts in leaf_counts.items():
                present = math.prod(gates[name].sum() for name in owners[leaf])
                params = params + present * math.prod(count.of(gates) for count in counts)
        else:
            gates = as_gates(sizes, {})
            weights_kept = _kept(groups, masks)
            whole = {path: math.prod(leaf.shape) for path, leaf in groups.leaves.items()}
            # Single weights: widths stay whole, and MACs are multiplied by the kernel's density.
            densities = {path: weights_kept[path] / max(1, whole[path]) for path in whole}
            params = sum((weights_kept[coupling.paths[leaf]] for leaf in leaf_counts), 0)
        total: Any = 0
        moved: Any = 0
        spent: Any = 0
        time: Any = None if latency is None else 0
        by_group: dict[str, Any] = dict.fromkeys(groups.names, 0)
        for contraction in found:
            term = contraction.term(gates)
            density: Any = 1.0
            if densities is not None and contraction.leaf >= 0:
                density = densities[coupling.paths[contraction.leaf]]
            value = per_equation(term) * density
            total = total + value
            moved = moved + bytes_moved(term._replace(weights=term.weights * density))
            spent = (
                spent
                + layer_energy(
                    macs(term), term.weights, term.read, term.written, density, costs=energy
                ).total
            )
            time = None if latency is None else time + latency(term)
            for name in contraction.groups:
                by_group[name] = by_group[name] + value
        return Cost(params, total, moved, by_group, spent, time)

    return model


def cost(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    groups: Groups | None = None,
    masks: Masks | None = None,
) -> Cost:
    """What a network costs, for one example; see `cost_model` for what is counted.

    Args:
        fn: the network, in inference mode.
        variables: its variables, or their shapes.
        *args: inputs.
        groups: from `trace`; traced here if needed.
        masks: unit masks or weight masks; None for the network as it is.

    Example:
        >>> import jax.numpy as jnp
        >>> cost(lambda v, x: x @ v["w"], {"w": jnp.zeros((3, 2))}, jnp.zeros((7, 3)))[:2]
        (6, 6.0)
    """
    if groups is None:
        groups = trace(fn, variables, *args)
    return cost_model(fn, variables, *args, groups=groups)({} if masks is None else masks)


def _kept(groups: Groups, masks: Any) -> dict[str, Any]:
    """{path: weights kept} under weight masks; a None mask keeps its leaf."""
    try:
        leaves = groups.treedef.flatten_up_to(masks)
    except ValueError:
        raise errors.StructureError(
            f"the masks are neither {{group: ...}} for the groups {', '.join(groups.names)} nor a "
            "tree like the variables: they are of another net."
        ) from None

    def count(mask: Any) -> Any:
        # NumPy's number, whatever the mask is: sums of JAX's would each be a program.
        numbers = at_hand(mask)
        return mask.sum() if numbers is None else numbers.sum()

    return {
        path: math.prod(leaf.shape) if mask is None else count(mask)
        for (path, leaf), mask in zip(groups.leaves.items(), leaves)
    }


def _leaf_counts(coupling: Coupling, uses: Uses, counter: Counter) -> dict[int, tuple[Count, ...]]:
    """Counts of the axes of every parameter, without statistics and leaves that are not read."""
    return {
        leaf: tuple(
            counter.axis(axis, length)
            for axis, length in zip(
                coupling.leaf_axes(leaf), coupling.program.shape(coupling.program.inputs[leaf])
            )
        )
        for leaf in range(len(coupling.paths))
        if uses.roles[leaf] and not uses.roles[leaf] <= STATISTICS
    }


def spent(cost: Cost, budget: Budget) -> Any:
    """What of a cost a budget is about; not of one in density.

    Raises:
        ArgumentError: the cost model does not count it.

    Example:
        >>> spent(Cost(params=8, macs=5, bytes=3, by_group={}), Budget(macs=0.5))
        5
    """
    value = getattr(cost, budget.kind)
    if value is None:
        table = (
            "Make a table with jprune.measure.latency_table, and pass cost_model(..., "
            "latency=table), or the stages task._replace(latency=table)."
        )
        raise errors.ArgumentError(
            f"Budget({budget.kind}={budget.value}) came with a cost model that does not count "
            f"{budget.kind}. {table if budget.kind == 'latency' else 'Write Budget(macs=...).'}"
        )
    return value

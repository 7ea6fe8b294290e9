"""`cost` and `cost_model`: parameters, multiply-accumulates and bytes of a network."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jprune import errors
from jprune.base import Cost, CostModel, Groups, Masks
from jprune.cost.counts import Count, Counter, as_gates
from jprune.graph.couple.interpret import Frame
from jprune.graph.couple.roles import CONTRACTIONS, Uses
from jprune.graph.layers import examples_in, kernel_axes
from jprune.graph.look.branches import Needs, find_forks
from jprune.graph.look.sites import find_spots
from jprune.graph.shrink.concrete import at_hand
from jprune.graph.trace import Coupling, check_leaves, couple, trace
from jprune.jaxprs import Program, nested

STATISTICS = {"mean", "var", "state"}


class Term(NamedTuple):
    """One contraction, for one example; all widths are those kept under the gates.

    Attributes:
        layer: path of the kernel; empty for a contraction of two activations.
        positions: output positions times window.
        inputs: width of the contracted axis (of one group, for grouped convolutions).
        outputs: width of the kernel's output axis.
        read: elements of the data operand.
        written: elements of the result.
        weights: elements of the kernel operand.
    """

    layer: str
    positions: Any
    inputs: Any
    outputs: Any
    read: Any
    written: Any
    weights: Any


def macs(term: Term) -> Any:
    """Multiply-accumulates of a contraction."""
    # k_h k_w H' W' c_in c_out for a convolution
    return term.positions * term.inputs * term.outputs


def bytes_moved(term: Term, itemsize: int = 4) -> Any:
    """Bytes that a contraction reads and writes once: operands and result."""
    return (term.read + term.written + term.weights) * itemsize


@dataclasses.dataclass(frozen=True)
class Measuring:
    """A cost model with the name of what it measures.

    Attributes:
        model: `model(masks, gates or widths) -> Cost`.
        measures: unit of `Cost.macs`: "macs", or the name of the table in its place.
    """

    model: Callable[[Any], Cost]
    measures: str

    def __call__(self, masks: Any) -> Cost:
        """The cost under masks, widths or gates."""
        return self.model(masks)


class _Contraction(NamedTuple):
    """Counts of the axes of a contraction."""

    layer: str
    leaf: int
    times: float
    """How often it runs, over the number of examples."""
    constant: int
    """Window positions."""
    positions: tuple[Count, ...]
    inputs: tuple[Count, ...]
    outputs: tuple[Count, ...]
    read: tuple[Count, ...]
    written: tuple[Count, ...]
    weights: tuple[Count, ...]
    examples: int
    branches: tuple[str, ...]
    """Branches that it is inside of."""

    def term(self, gates: Mapping[str, Any]) -> Term:
        product = lambda counts: math.prod(count.of(gates) for count in counts)
        # A contraction inside branches runs as often as all of them do: the product of their gates.
        times = self.times * math.prod(gates[name].sum() for name in self.branches)
        return Term(
            self.layer,
            times * self.constant * product(self.positions),
            product(self.inputs),
            product(self.outputs),
            times * product(self.read),
            times * product(self.written),
            times * self.examples * product(self.weights),
        )

    @property
    def groups(self) -> frozenset[str]:
        counts = (*self.positions, *self.inputs, *self.outputs)
        return frozenset[str]().union(*(count.groups for count in counts))


def cost_model(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    groups: Groups,
    per_equation: Callable[[Term], Any] = macs,
) -> CostModel:
    """A function from masks to cost.

    Args:
        fn: the network, in inference mode.
        variables: its variables, or their shapes.
        *args: inputs; counts are divided by the leading length of the first one (its batch).
        groups: from `trace`.
        per_equation: `Term -> number`, summed over contractions as `Cost.macs`. An energy or
            latency table plugs in here.

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
    contractions = _contractions(coupling, uses, counter, examples_in(args))
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
        by_group: dict[str, Any] = dict.fromkeys(groups.names, 0)
        for contraction in contractions:
            term = contraction.term(gates)
            value = per_equation(term)
            if densities is not None and contraction.leaf >= 0:
                value = value * densities[coupling.paths[contraction.leaf]]
            total = total + value
            moved = moved + bytes_moved(term)
            for name in contraction.groups:
                by_group[name] = by_group[name] + value
        return Cost(params, total, moved, by_group)

    # The name of the table is the unit of `Cost.macs`; allocators compare it with their budget's.
    return Measuring(model, getattr(per_equation, "__name__", "macs"))


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


def _contractions(
    coupling: Coupling, uses: Uses, counter: Counter, examples: int
) -> list[_Contraction]:
    # Equations are numbered within a program, and programs nest (scan, cond): both make the key.
    kernels = {(id(c.program), c.equation): c for c in uses.contractions}
    top, paths = coupling.program, coupling.paths
    forks = find_forks(top, find_spots(top, uses, paths), len(paths))
    needs = Needs(top, top.outputs)
    bodies = {fork.name: needs.only(fork)[0] for fork in forks}
    contractions = []
    for outer, program, frame, number, times in _walk(top, coupling.frame):
        equation = program.equations[number]
        if equation.name not in CONTRACTIONS:
            continue
        use = kernels.get((id(program), number))
        side = 1 if use is None else use.kernel
        # Counts of the axes of [left operand, right operand, result].
        counts = [
            tuple(counter.axis(a, n) for a, n in zip(frame.labels[value], program.shape(value)))
            for value in (*equation.inputs, *equation.outputs)
        ]
        axes = kernel_axes(program, equation, side)
        kernel_shape = program.shape(equation.inputs[side])
        contractions.append(
            _Contraction(
                "" if use is None else coupling.paths[use.leaf],
                -1 if use is None else use.leaf,
                times / examples,
                math.prod(kernel_shape[axis] for axis in axes.window),
                tuple(counts[2][axis] for axis in axes.positions),
                tuple(counts[side][axis] for axis in axes.inputs),
                tuple(counts[side][axis] for axis in axes.outputs),
                counts[1 - side],
                counts[2],
                counts[side],
                examples if use is not None else 1,
                tuple(name for name, numbers in bodies.items() if outer in numbers),
            )
        )
    return contractions


def _walk(program: Program, frame: Frame, times: int = 1, outer: int | None = None):
    """Yields (top-level equation, program, frame, equation, runs) of all equations, nested too."""
    for number, equation in enumerate(program.equations):
        top = number if outer is None else outer
        yield top, program, frame, number, times
        bodies = list(zip(nested(equation), frame.inner.get(number, ())))
        # One branch of a condition runs. Which one is decided by data, and they mostly cost the
        # same: the last is counted.
        for body, body_frame in bodies[-1:] if equation.name == "cond" else bodies:
            yield from _walk(body.program, body_frame, times * body.turns, top)

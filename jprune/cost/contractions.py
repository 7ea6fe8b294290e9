"""The contractions of a net: what each costs, as a function of the widths that are kept."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jprune.base import Groups
from jprune.cost.counts import Count, Counter
from jprune.graph.couple.interpret import Frame
from jprune.graph.couple.roles import CONTRACTIONS, Uses
from jprune.graph.layers import examples_in, kernel_axes
from jprune.graph.look.branches import Needs, find_forks
from jprune.graph.look.sites import find_spots
from jprune.graph.trace import Coupling, couple
from jprune.jaxprs import Equation, Program, bind, nested


class Term(NamedTuple):
    """One contraction, for one example; all widths are those kept under the gates.

    Attributes:
        site: number of the contraction, in execution order.
        layer: path of the kernel; empty for a contraction of two activations.
        positions: output positions times window.
        inputs: width of the contracted axis (of one group, for grouped convolutions).
        outputs: width of the kernel's output axis.
        read: elements of the data operand.
        written: elements of the result.
        weights: elements of the kernel operand.
    """

    site: int
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


class Contraction(NamedTuple):
    """A call site: a contraction of a net, and the counts of its axes as functions of gates.

    Attributes:
        site: its number in execution order.
        equation: of the dense net.
        types: of the operands.
        kernel: which operand's axes are inputs and outputs.
        layer: path of the kernel; empty for a contraction of two activations.
        leaf: number of the kernel among the leaves; -1 for none.
        times: how often it runs, over the number of examples.
        constant: window positions.
        positions: of the result's axes that are no outputs.
        inputs: of the kernel's contracted axes.
        outputs: of the kernel's output axes.
        read: of the data operand's axes.
        written: of the result's axes.
        weights: of the kernel's axes.
        examples: that share one kernel.
        branches: that it is inside of.
    """

    site: int
    equation: Equation
    types: tuple[Any, ...]
    kernel: int
    layer: str
    leaf: int
    times: float
    constant: int
    positions: tuple[Count, ...]
    inputs: tuple[Count, ...]
    outputs: tuple[Count, ...]
    read: tuple[Count, ...]
    written: tuple[Count, ...]
    weights: tuple[Count, ...]
    examples: int
    branches: tuple[str, ...]

    def term(self, gates: Mapping[str, Any]) -> Term:
        """Its widths and sizes under gates {group: [units]}."""
        product = lambda counts: math.prod(count.of(gates) for count in counts)
        # A contraction inside branches runs as often as all of them do: the product of their gates.
        times = self.times * math.prod(gates[name].sum() for name in self.branches)
        return Term(
            self.site,
            self.layer,
            times * self.constant * product(self.positions),
            product(self.inputs),
            product(self.outputs),
            times * product(self.read),
            times * product(self.written),
            times * self.examples * product(self.weights),
        )

    def shapes(self, gates: Mapping[str, Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes and types of its operands under gates of 0 and 1."""
        sides = (self.read, self.weights) if self.kernel else (self.weights, self.read)
        lengths = [tuple(int(count.of(gates)) for count in counts) for counts in sides]
        return tuple(map(jax.ShapeDtypeStruct, lengths, self.types))

    def run(self, *operands: Any) -> Any:
        """The contraction of operands of any widths."""
        params = self.equation.params
        if params.get("feature_group_count", 1) > 1:
            # A group reads as many channels as its kernel has: narrower data are of fewer groups.
            numbers = params["dimension_numbers"]
            channels = operands[0].shape[numbers.lhs_spec[1]]
            of_one = operands[1].shape[numbers.rhs_spec[1]]
            params = {**params, "feature_group_count": channels // of_one}
        return bind(self.equation, operands, params)[0]

    @property
    def groups(self) -> frozenset[str]:
        """Groups on its axes."""
        counts = (*self.positions, *self.inputs, *self.outputs)
        return frozenset[str]().union(*(count.groups for count in counts))


def call_sites(
    fn: Callable[..., Any], variables: Any, *args: Any, groups: Groups
) -> list[Contraction]:
    """All contractions of a net in execution order, those in loops and branches included.

    Args:
        fn: the network, in inference mode.
        variables: its variables, or their shapes.
        *args: inputs, or their shapes.
        groups: from `trace`.

    Example:
        >>> import jax.numpy as jnp, jprune, numpy as np
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.zeros((3, 5)), "second": jnp.zeros((5, 2))}
        >>> x = jnp.zeros((7, 3))
        >>> sites = call_sites(fn, variables, x, groups=jprune.trace(fn, variables, x))
        >>> gates = {"first": np.arange(5) < 4}
        >>> [tuple(side.shape for side in site.shapes(gates)) for site in sites]
        [((7, 3), (3, 4)), ((7, 4), (4, 2))]
    """
    coupling = couple(fn, variables, *args, inline_remat=True, groups=groups)
    return contractions(coupling, coupling.uses, Counter(coupling, groups), examples_in(args))


def contractions(
    coupling: Coupling, uses: Uses, counter: Counter, examples: int
) -> list[Contraction]:
    """The call sites of a net that is coupled already."""
    # Equations are numbered within a program, and programs nest (scan, cond): both make the key.
    kernels = {(id(c.program), c.equation): c for c in uses.contractions}
    top, paths = coupling.program, coupling.paths
    forks = find_forks(top, find_spots(top, uses, paths), len(paths))
    needs = Needs(top, top.outputs)
    bodies = {fork.name: needs.only(fork)[0] for fork in forks}
    found = []
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
        found.append(
            Contraction(
                len(found),
                equation,
                tuple(program.avals[value].dtype for value in equation.inputs),
                side,
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
    return found


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

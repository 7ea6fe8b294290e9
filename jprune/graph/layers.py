"""The layers of a net: every kernel, what its axes do, and what stands around it.

Read off what the engine knows: contractions and labels of parameters (`couple/roles.py`), call
sites (`look/sites.py`), places of groups. `trace` calls `find_layers`; everyone else reads
`groups.layers`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune.base import Groups, Layer
from jprune.graph.couple.coupling import Coupling
from jprune.graph.couple.labels import Fixed, Indices
from jprune.graph.couple.roles import Contraction, Uses, contracted_axes
from jprune.graph.look.flow import AFFINE, POINTWISE, Flow
from jprune.graph.look.last import last_layers
from jprune.jaxprs import Equation, Program, nested

AFFINE_ROLES = ("shift", "scale", "mean", "var")


class KernelAxes(NamedTuple):
    """What the axes of the kernel operand of a contraction do, and where its positions are."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    window: tuple[int, ...]
    batch: tuple[int, ...]
    channels: tuple[int, ...]
    """Axes of the result that the kernel's output and batch axes became."""
    positions: tuple[int, ...]
    """Axes of the result at which the kernel is applied: examples and places."""


def kernel_axes(program: Program, equation: Equation, kernel: int) -> KernelAxes:
    """What the axes of one operand of a contraction do.

    Args:
        program: that has the equation.
        equation: a convolution or a matrix product.
        kernel: which operand is the kernel.
    """
    numbers = equation.params["dimension_numbers"]
    if equation.name == "conv_general_dilated":
        out, inputs, *window = numbers.rhs_spec
        batch, channels, *places = numbers.out_spec
        return KernelAxes((inputs,), (out,), tuple(window), (), (channels,), (batch, *places))
    contracted, shared = contracted_axes(equation)[kernel], numbers[1][kernel]
    rank = len(program.shape(equation.inputs[kernel]))
    rank_of_result = len(program.shape(equation.outputs[0]))
    outputs = tuple(axis for axis in range(rank) if axis not in contracted and axis not in shared)
    # Results are ordered: batch axes, free axes of the left operand, free axes of the right one.
    start = len(shared) if kernel == 0 else rank_of_result - len(outputs)
    free = range(start, start + len(outputs))
    return KernelAxes(
        tuple(sorted(contracted)),
        outputs,
        (),
        tuple(shared),
        (*range(len(shared)), *free),
        tuple(axis for axis in range(rank_of_result) if axis not in free),
    )


def examples_in(args: Sequence[Any]) -> int:
    """How many examples the inputs of a net hold: the leading length of the first array."""
    leaves = [leaf for leaf in jax.tree.leaves(args) if np.ndim(leaf)]
    return int(np.shape(leaves[0])[0]) if leaves else 1


def find_layers(coupling: Coupling, groups: Groups, flow: Flow, examples: int) -> dict[str, Layer]:
    """All layers of a net in execution order.

    Args:
        coupling: of the net.
        groups: of the net, with sites.
        flow: of its program.
        examples: how many examples its inputs hold.

    Returns:
        {kernel path: layer}.
    """
    uses, program, paths = coupling.uses, coupling.program, coupling.paths
    flows = _Flows(flow, uses)
    times = dict(_times(program))
    by_leaf: dict[int, list[Contraction]] = {}
    for contraction in uses.contractions:
        by_leaf.setdefault(contraction.leaf, []).append(contraction)
    last = last_layers(program, uses, coupling.main)
    sites, standing = _sites(groups), _standing(groups)
    layers: dict[str, Layer] = {}
    for leaf, contractions in by_leaf.items():
        path = paths[leaf]
        axes = _axes_of_leaf(uses, contractions[0], groups.leaves[path].shape)
        counts = [
            _count(contraction, times[id(contraction.program)]) for contraction in contractions
        ]
        parts = sorted(
            {part for contraction in contractions for part in contraction.leaves} - {leaf}
        )
        layers[path] = Layer(
            kernel=path,
            shape=groups.leaves[path].shape,
            sites=sites.get(path, ()),
            **axes,
            feature_groups=max(_feature_groups(contraction) for contraction in contractions),
            parts=tuple(paths[part] for part in parts),
            reads=_names(standing.get(path, {}), axes["inputs"]),
            writes=_names(standing.get(path, {}), axes["outputs"]),
            affine=_affine(flows, uses, paths, contractions),
            positions=_each(sum(positions for positions, _ in counts), examples),
            macs=_each(sum(macs for _, macs in counts), examples),
            plain=_is_plain(flow, leaf, axes, contractions),
            last=leaf in last,
        )
    return layers


def offsets(groups: Groups) -> dict[str, tuple[str, int]]:
    """Where a constant that is added to all outputs of a layer can go.

    It is the leaf that the layer's result meets first: a bias takes the constant, a mean takes it
    off. Kernels that run several times have none, nor have those whose first leaf is a factor, has
    not one number for each output, or stands behind another layer too.

    Returns:
        {kernel: (path of the leaf, 1 or -1)}.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["w"] + v["b"], 0) @ v["out"]
        >>> v = {"w": jnp.ones((3, 5)), "b": jnp.ones(5), "out": jnp.ones((5, 2))}
        >>> offsets(jprune.trace(fn, v, jnp.ones((1, 3))))
        {'w': ('b', 1)}
    """
    signs = {"shift": 1, "mean": -1}
    behind = [leaf for layer in groups.layers.values() for leaf in layer.affine]
    found = {}
    for path, layer in groups.layers.items():
        leaf, role = next(iter(layer.affine.items()), ("", ""))
        outputs = math.prod(layer.shape[axis] for axis in layer.outputs)
        alone = len(layer.sites) == 1 and behind.count(leaf) == 1
        if alone and role in signs and groups.leaves[leaf].size == outputs:
            found[path] = (leaf, signs[role])
    return found


def _sites(groups: Groups) -> dict[str, tuple[str, ...]]:
    """{kernel: names of its call sites}."""
    found: dict[str, tuple[str, ...]] = {}
    for site in groups.sites:
        if site.kind == "in":
            found[site.kernel] = (*found.get(site.kernel, ()), site.layer)
    return found


def _standing(groups: Groups) -> dict[str, dict[int, list[str]]]:
    """{leaf: {axis: names of the groups on it}}."""
    found: dict[str, dict[int, list[str]]] = {}
    for name, places in groups.places.items():
        for place in places:
            found.setdefault(place.leaf, {}).setdefault(place.axis, []).append(name)
    return found


def _names(standing: dict[int, list[str]], axes: Sequence[int]) -> tuple[str, ...]:
    """Groups on some axes, each once."""
    return tuple(dict.fromkeys(name for axis in axes for name in standing.get(axis, ())))


def _feature_groups(contraction: Contraction) -> int:
    """Feature groups of a convolution; 1 for a matrix product."""
    equation = contraction.program.equations[contraction.equation]
    return int(equation.params.get("feature_group_count", 1))


def _each(total: int, examples: int) -> float:
    """A count for one example; a whole number where it is one."""
    return total // examples if total % examples == 0 else total / examples


def _times(program: Program, times: int = 1) -> Iterator[tuple[int, int]]:
    """(`id` of a program, how often it runs), nested ones included."""
    yield id(program), times
    for equation in filter(lambda equation: equation.inner, program.equations):
        for body in nested(equation):
            yield from _times(body.program, times * body.turns)


def _count(contraction: Contraction, times: int) -> tuple[int, int]:
    """Positions and multiply-accumulates of a contraction, over all examples."""
    program, equation = contraction.program, contraction.program.equations[contraction.equation]
    axes = kernel_axes(program, equation, contraction.kernel)
    kernel = program.shape(equation.inputs[contraction.kernel])
    result = program.shape(equation.outputs[0])
    positions = times * math.prod(result[axis] for axis in axes.positions)
    weights = math.prod(kernel[axis] for axis in (*axes.inputs, *axes.window, *axes.outputs))
    return positions, positions * weights


def _axes_of_leaf(
    uses: Uses, contraction: Contraction, shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """{kind: axes of the leaf}, by what the axes of the contraction's operand do."""
    program, equation = contraction.program, contraction.program.equations[contraction.equation]
    parts = kernel_axes(program, equation, contraction.kernel)
    kinds = {"inputs": parts.inputs, "outputs": parts.outputs, "window": parts.window}
    kinds["batch"] = parts.batch
    found: dict[str, list[int]] = {kind: [] for kind in kinds}
    for number, own in enumerate(uses.leaf_axes[contraction.leaf]):
        same = [
            kind for kind, axes in kinds.items() if any(contraction.axes[a] is own for a in axes)
        ]
        mixed = same or [
            kind
            for kind, axes in kinds.items()
            if any(_meet(uses, own, contraction.axes[axis]) for axis in axes)
        ]
        # What is in no operand is stacked, or indexed; of length 1 it says nothing.
        idle = "window" if shape[number] == 1 else "batch"
        found[mixed[0] if mixed else idle].append(number)
    # Window axes in the order of the data's, as patches have them; what does nothing comes last.
    sliding = [contraction.axes[axis] for axis in parts.window]
    own_axes = uses.leaf_axes[contraction.leaf]
    order = lambda number: [*(axis is own_axes[number] for axis in sliding), True].index(True)
    found["window"].sort(key=order)
    return {kind: tuple(axes) for kind, axes in found.items()}


def _meet(uses: Uses, left: Any, right: Any) -> bool:
    """Whether two axes have positions that belong together."""
    if isinstance(left, Fixed) or isinstance(right, Fixed):
        return False
    members: list[Indices] = []
    for axis in (left, right):
        atoms = uses.solution.atoms_of(axis)
        members.append(np.concatenate([atoms[atoms >= 0], uses.solution.component[axis]]))
    return bool(np.isin(members[0], members[1]).any())


class _Flows:
    """Who reads what, by program; made where it is asked for."""

    def __init__(self, flow: Flow, uses: Uses):
        self.uses = uses
        self.made: dict[int, Flow] = {id(flow.program): flow}

    def of(self, program: Program) -> Flow:
        """The flow of the net's program, or of one that is nested in it."""
        if id(program) not in self.made:
            self.made[id(program)] = Flow(program, self.uses.nested[id(program)])
        return self.made[id(program)]


def _is_plain(
    flow: Flow,
    leaf: int,
    axes: dict[str, tuple[int, ...]],
    contractions: Sequence[Contraction],
) -> bool:
    """Whether all that reads a leaf are contractions with it as it is, as papers have them."""
    program = flow.program
    if (len(axes["inputs"]), len(axes["outputs"]), axes["batch"]) != (1, 1, ()):
        return False
    plain: set[tuple[int, int]] = set()
    for found in contractions:
        params = found.program.equations[found.equation].params
        alone = params.get("feature_group_count", 1) == 1 == params.get("batch_group_count", 1)
        if alone and found.program is program:
            plain.add((found.equation, found.kernel))
    waiting = [program.inputs[leaf]]
    while waiting:
        value = waiting.pop()
        if value in program.outputs:
            return False
        for number in flow.readers.get(value, ()):
            equation = program.equations[number]
            if equation.name in ("convert_element_type", "copy", "transpose"):
                waiting.append(equation.outputs[0])
            elif any(
                operand == value and (number, place) not in plain
                for place, operand in enumerate(equation.inputs)
            ):
                return False
    return True


def _affine(
    flows: _Flows, uses: Uses, paths: Sequence[str], contractions: Sequence[Contraction]
) -> dict[str, str]:
    """{path: role} of the leaves that the affine chains behind contractions meet."""
    found: dict[str, str] = {}
    for contraction in contractions:
        program, flow = contraction.program, flows.of(contraction.program)
        equation = program.equations[contraction.equation]
        channels = kernel_axes(program, equation, contraction.kernel).channels
        for value in _beside(flow, equation.outputs[0], channels):
            for leaf in flow.taints[value] or ():
                found.update((paths[leaf], role) for role in uses.roles[leaf] & {*AFFINE_ROLES})
    return found


class _AffineStep(NamedTuple):
    """Parameters scale, shift or move a value: their values, the result and its channel axes."""

    others: list[int]
    result: int
    channels: tuple[int, ...]


def _beside(flow: Flow, value: int, channels: tuple[int, ...]) -> list[int]:
    """Values of parameters that the chain of affine steps from a value meets, in order.

    Where the chain forks (a stream that a norm reads on one side), it goes the way that meets
    most. It ends where a nonlinear function reads: what a slope or a gate multiplies is one side of
    that function.
    """
    steps: dict[int, list[_AffineStep]] = {}
    waiting = [(value, channels)]
    while waiting:
        source, axes = waiting.pop()
        steps[source] = _affine_steps(flow, source, axes)
        waiting += [(step.result, step.channels) for step in steps[source]]
    ways: dict[int, list[int]] = {}
    for source in sorted(steps, reverse=True):  # results have greater numbers than operands
        onward = ([*step.others, *ways[step.result]] for step in steps[source])
        ways[source] = max(onward, key=len, default=[])
    return ways[value]


def _affine_steps(flow: Flow, value: int, channels: tuple[int, ...]) -> list[_AffineStep]:
    """The affine steps that read a value; none where a nonlinear function reads it too."""
    reads = flow.reads(value, channels)
    if any(_is_nonlinear(read.equation, read.operand) for read in reads):
        return []
    steps: list[_AffineStep] = []
    for read in reads:
        equation, result = read.equation, read.equation.outputs[0]
        others = [other for other in equation.inputs if other != read.operand]
        if (
            equation.name in AFFINE
            and flow.program.shape(result) == flow.program.shape(read.operand)
            and not (equation.name == "div" and equation.inputs[0] != read.operand)
            and all(flow.taints[other] is not None for other in others)
            and all(flow.per_channel(other, *read.axes) for other in others)
        ):
            steps.append(_AffineStep(others, result, read.axes))
    return steps


def _is_nonlinear(equation: Equation, value: int) -> bool:
    """Whether an elementwise function of a value begins here: relu, or x of x * sigmoid(x)."""
    if equation.name not in POINTWISE:
        return False
    return equation.name not in AFFINE or equation.inputs.count(value) > 1

"""A function as a program with the labels of all its values, and what they mean."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import errors
from jprune.base import Groups
from jprune.forms.leaf_type import is_leaf_type
from jprune.graph.couple.answers import spread
from jprune.graph.couple.contractions import with_contractions
from jprune.graph.couple.interpret import Frame, interpret
from jprune.graph.couple.labels import Axis, AxisLabels, Fixed, Indices, Labels, Reason, Solution
from jprune.graph.couple.roles import Uses, uses_of
from jprune.graph.couple.rules import DATA, PARAMETER
from jprune.graph.couple.solve import solve
from jprune.graph.couple.zeros import find_survivors
from jprune.jaxprs import Equation, Program, describe, program_of, user_line

INPUT = "tied to the network input "
AUX = "if this output is new statistics, write jprune.trace(..., has_aux=True)"


class Coupling(NamedTuple):
    """A program with the labels of all its values and what they mean.

    Attributes:
        program: the function.
        frame: labels of all its values.
        labels: ties, products and frozen labels, as the rules collected them.
        solution: what the labels mean.
        uses: how the leaves of the variables are used.
        output: shapes of what the function returns.
        main: how many of the flat outputs count, the others being new statistics; None for all.
        paths: of the leaves of the variables.
        argument_names: paths of the leaves of the other arguments.
        cleared: axes whose units need their producers cleared, beside their consumers.
    """

    program: Program
    frame: Frame
    labels: Labels
    solution: Solution
    uses: Uses
    output: Any
    main: int | None
    paths: tuple[str, ...]
    argument_names: tuple[str, ...]
    cleared: tuple[Indices, ...] = ()

    def under(self, groups: Groups) -> "Coupling":
        """The same coupling, with the units of groups as atoms."""
        leaves = (self.frame.labels[value] for value in self.program.inputs)
        solution = unit_solution(self.labels, dict(zip(self.paths, leaves)), groups)
        return self._replace(solution=solution)

    def leaf_axes(self, leaf: int) -> list[Indices]:
        """Labels of the axes of a leaf."""
        axes = self.frame.labels[self.program.inputs[leaf]]
        return [axis for axis in axes if not isinstance(axis, Fixed)]


def leaf_paths(tree: Any) -> dict[str, Any]:
    """{path: leaf} of a tree, in flattening order; paths are the names users see."""
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf_type)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}


def couple(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    has_aux: bool = False,
    inline_remat: bool = False,
    twin: Callable[..., Any] | None = None,
    groups: Groups | None = None,
) -> Coupling:
    """Interprets `fn(variables, *args)` with labels; the arguments may be arrays or shapes.

    Args:
        fn: the function.
        variables: its first argument.
        *args: its other arguments.
        has_aux: `fn` returns `(out, aux)`; `aux` freezes nothing.
        inline_remat: write out `jax.checkpoint`.
        twin: another function of the same arguments whose ties count too.
        groups: of a net that was traced before, for a function that runs under their masks: the
            atoms of the solution are their units (numbered over all groups), and nothing freezes.
    """
    program, output = program_of(fn, variables, *args, inline_remat=inline_remat)
    paths = tuple(leaf_paths(variables))
    labels = Labels()
    leaves: list[AxisLabels] = [
        tuple(labels.fresh(length) for length in program.shape(value))
        for value in program.inputs[: len(paths)]
    ]
    names = tuple(leaf_paths(args))
    inputs = [*leaves, *_fixed_arguments(program, names)]
    levels = [PARAMETER] * len(paths) + [DATA] * len(names)
    program = with_contractions(program, levels)
    frame = interpret(labels, program, inputs, levels)
    main = len(jax.tree.leaves(output[0])) if has_aux else None
    uses = uses_of(program, frame, len(paths), main)
    cleared: list[Indices] = []
    if twin is not None:
        other, _ = program_of(twin, variables, *args, inline_remat=inline_remat)
        # Into the same `labels`: the twin's ties join those of the function, at the same leaves.
        other = with_contractions(other, levels)
        other_inputs = [*leaves, *_fixed_arguments(other, names)]
        other_frame = interpret(labels, other, other_inputs, levels)
        _note_state(other, uses)
        cleared += find_survivors(other, other_frame, labels, uses, kernels=False)
    if groups is None:
        cleared += find_survivors(program, frame, labels, uses)
        pair = not has_aux and isinstance(output, tuple) and len(output) == 2
        first = len(jax.tree.leaves(output[0])) if pair else len(program.outputs)
        for number, value in enumerate(program.outputs[:main]):
            remedy = AUX if number >= first else ""
            reason = _output_reason(program, program.makers.get(value), remedy)
            for axis in frame.labels[value]:
                labels.freeze(axis, reason)
        solution = solve(labels)
    else:
        solution = unit_solution(labels, dict(zip(paths, leaves)), groups)
    return Coupling(
        program, frame, labels, solution, uses, output, main, paths, names, tuple(cleared)
    )


def unit_solution(labels: Labels, leaves: Mapping[str, AxisLabels], groups: Groups) -> Solution:
    """A solution that says which units every label stands for.

    Args:
        labels: of a program.
        leaves: {path: labels of the axes}.
        groups: their units are numbered one group after the other.
    """
    by_axis: dict[tuple[str, int], list[Indices]] = {}
    start = 0
    for name, places in groups.places.items():
        for place in places:
            own = place.units >= 0
            rows = by_axis.setdefault((place.leaf, place.axis), [])
            # Groups beside each other on an axis share a row: a second one is for positions that
            # are a unit of several groups.
            row = next((row for row in rows if (row[own] < 0).all()), None)
            if row is None:
                row = np.full(len(own), -1)
                rows.append(row)
            row[own] = place.units[own] + start
        start += groups.sizes[name]
    seeds: list[tuple[Axis, Indices]] = []
    for path, axes in leaves.items():
        for number, axis in enumerate(axes):
            none = [np.full(groups.leaves[path].shape[number], -1)]
            seeds.append((axis, np.stack(by_axis.get((path, number), none))))
    return spread(labels, seeds)


def unit_numbers(groups: Groups) -> tuple[Indices, Indices]:
    """[units + 1]: number of the group, and of the unit in it; -1 at the end, for "none"."""
    sizes = [*groups.sizes.values()]
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    unit_of = np.concatenate([np.zeros(0, np.int64), *(np.arange(size) for size in sizes)])
    return np.append(group_of, -1), np.append(unit_of, -1)


def _fixed_arguments(program: Program, names: Sequence[str]) -> list[AxisLabels]:
    """Labels of the arguments beside the variables: none of them can go."""
    values = program.inputs[len(program.inputs) - len(names) :]
    fixed = (Fixed(Reason(f"{INPUT}args/{name}")) for name in names)
    return [(axis,) * len(program.shape(value)) for axis, value in zip(fixed, values)]


def _note_state(twin: Program, uses: Uses) -> None:
    """Leaves that only the twin reads are state."""
    read = {value for equation in twin.equations for value in equation.inputs}
    for roles, value in zip(uses.roles, twin.inputs):
        if not roles and value in read:
            roles.add("state")


def _output_reason(program: Program, equation: Equation | None, remedy: str) -> Reason:
    text = "tied to a network output"
    if equation is None:
        return Reason(text, remedy=remedy)
    described = describe(program, equation)
    return Reason(text, equation.name, described, user_line(equation.traceback), remedy)


def check_leaves(groups: Groups, variables: Any) -> list[Any]:
    """The leaves of full variables, in order.

    Raises:
        StructureError: other leaves or shapes than the traced net has.
    """
    leaves = leaf_paths(variables)
    for path in {**groups.leaves, **leaves}:
        expected = groups.leaves[path].shape if path in groups.leaves else "nothing"
        shape = np.shape(leaves[path]) if path in leaves else "nothing"
        if shape != expected:
            raise errors.StructureError(
                f"at {path} the variables have {shape}; the traced net has {expected}. Pass the "
                "variables of the net that was traced, not slim ones."
            )
    return list(leaves.values())


def check_arguments(coupling: Coupling) -> None:
    """Refuses arguments beside the variables that have channels: they belong into the variables.

    Raises:
        TraceError: names the argument.
    """
    arguments = coupling.program.inputs[len(coupling.paths) :]
    arrays = [value for value in arguments if coupling.program.shape(value)]
    suspects = {f"args/{n}": v for n, v in zip(coupling.argument_names, arguments) if v in arrays}
    kernels = {
        equation.inputs[1]
        for equation in coupling.program.equations
        if equation.name == "conv_general_dilated"
        and not isinstance(_channel_axis(coupling, equation), Fixed)
    }
    tied = _names_tied_to_channels(coupling) if len(arrays) > 1 else set[str]()
    for name, value in suspects.items():
        rank = len(coupling.program.shape(value))
        if value in kernels or (rank == 1 and name in tied):
            raise errors.TraceError(
                f"the extra argument {name} of shape {coupling.program.shape(value)} is tied to a "
                "parameter's channel, so it must shrink with it. Put everything that must shrink "
                'into the first argument, for example {"params": ..., "stats": ...}.'
            )


def _channel_axis(coupling: Coupling, equation: Equation) -> Axis:
    """The activation's channel axis of a convolution."""
    numbers = equation.params["dimension_numbers"]
    return coupling.frame.labels[equation.inputs[0]][numbers.lhs_spec[1]]


def _names_tied_to_channels(coupling: Coupling) -> set[str]:
    """Arguments that freeze an axis of a leaf on which the leaf is not contracted."""
    names: set[str] = set()
    for leaf in range(len(coupling.paths)):
        for number, axis in enumerate(coupling.leaf_axes(leaf)):
            if coupling.uses.of_axis(leaf, number) <= {"in"}:
                continue
            for reason in coupling.solution.causes_of(axis):
                if reason.text.startswith(INPUT):
                    names.add(reason.text.removeprefix(INPUT))
    return names

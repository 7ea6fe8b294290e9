"""`trace`: from a function to its groups of units."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import errors
from jprune.base import ROLES, Frozen, Groups, Place
from jprune.graph.branches import find_branches
from jprune.graph.interpret import Frame, interpret, walk
from jprune.graph.jaxprs import Equation, Program, describe, program_of, user_line
from jprune.graph.labels import SPATIAL, Fixed, Labels, Reason, Solution
from jprune.graph.leaves import is_leaf_type
from jprune.graph.roles import Uses, uses_of
from jprune.graph.rules import RULES
from jprune.graph.sites import find_sites, find_spots

INPUT = "tied to the network input "


class Coupling(NamedTuple):
    """A program with the labels of all its values and what they mean."""

    program: Program
    frame: Frame
    solution: Solution
    output: Any
    """Shapes of what the function returns."""
    paths: tuple[str, ...]
    """Of the leaves of the variables."""
    argument_names: tuple[str, ...]

    def leaf_axes(self, leaf: int):
        """Labels of the axes of a leaf."""
        return self.frame.labels[self.program.inputs[leaf]]


def leaf_paths(tree: Any) -> dict[str, Any]:
    """{path: leaf} of a tree, in flattening order; paths are the names users see."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf_type)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def couple(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    has_aux: bool = False,
    inline_remat: bool = False,
    freeze_outputs: bool = True,
) -> Coupling:
    """Interprets `fn(variables, *args)` with labels; arrays or shapes do.

    Raises:
        TraceError: an extra argument is tied to a channel of the variables.
    """
    program, output = program_of(fn, variables, *args, inline_remat=inline_remat)
    paths = tuple(leaf_paths(variables))
    labels = Labels()
    inputs: list[Any] = []
    for value in program.inputs[: len(paths)]:
        inputs.append(tuple(labels.fresh(length) for length in program.shape(value)))
    names = tuple(leaf_paths(args))
    argument_values = program.inputs[len(paths) :]
    for name, value in zip(names, argument_values):
        reason = Reason(f"{INPUT}args/{name}")
        inputs.append(tuple(Fixed(reason) for _ in program.shape(value)))
    frame = interpret(labels, program, inputs)
    main = program.outputs
    if has_aux:
        main = main[: len(jax.tree.leaves(output[0]))]
    makers = {value: e for e in program.equations for value in e.outputs}
    for value in main if freeze_outputs else ():
        for axis in frame.labels[value]:
            if not isinstance(axis, Fixed):
                labels.freeze(axis, _output_reason(program, makers.get(value)))
    return Coupling(program, frame, labels.solve(), output, paths, names)


def check_leaves(groups: Groups, variables: Any) -> list[Any]:
    """The leaves of full variables, in order.

    Raises:
        StructureError: other leaves or shapes than the traced net has.
    """
    found = leaf_paths(variables)
    for path in {**groups.leaves, **found}:
        expected = groups.leaves[path].shape if path in groups.leaves else "nothing"
        shape = np.shape(found[path]) if path in found else "nothing"
        if shape != expected:
            raise errors.StructureError(
                f"at {path} the variables have {shape}; the traced net has {expected}. Pass the "
                "variables of the net that was traced, not slim ones."
            )
    return list(found.values())


def _output_reason(program: Program, equation: Equation | None) -> Reason:
    text = "tied to a network output"
    if equation is None:
        return Reason(text)
    return Reason(text, equation.name, describe(program, equation), user_line(equation.traceback))


def trace(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    has_aux: bool = False,
    freeze: Iterable[str] = (),
    strict: bool = False,
) -> Groups:
    """Finds the units of a network: the channels that live or die together.

    Args:
        fn: pure function `fn(variables, *args)`, in inference mode.
        variables: tree of everything that must shrink, statistics included; shapes are enough.
        *args: inputs, arrays or shapes; one example is enough.
        has_aux: `fn` returns `(out, aux)`, and `aux` (new statistics) freezes nothing.
        freeze: names of groups whose units must stay, or paths of leaves (other than the first
            producer, which names its group) on which they stand.
        strict: an unknown primitive is an error and not a frozen axis.

    Returns:
        The groups, host-side and static.

    Raises:
        TraceError: a primitive has no rule and `strict` is set; an extra argument is tied to a
            channel; `fn` does not take these variables.
        ArgumentError: `freeze` names neither a group nor a leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> shapes = {"first": jnp.zeros((3, 5)), "second": jnp.zeros((5, 2))}
        >>> trace(fn, shapes, jnp.zeros((1, 3))).sizes
        {'first': 5}
    """
    coupling = couple(fn, variables, *args, has_aux=has_aux, inline_remat=True)
    if strict:
        check_known(coupling)
    main = len(jax.tree.leaves(coupling.output[0])) if has_aux else None
    uses = uses_of(coupling.program, coupling.frame, coupling.solution, len(coupling.paths), main)
    _check_arguments(coupling, uses)
    units = _units(coupling, uses)
    groups = Groups(
        sizes={name: max(int(p.units.max()) for p in places) + 1 for name, places in units.items()},
        places=units,
        sites=(),
        branches=(),
        frozen=tuple(_frozen(coupling, uses)),
        exact=dict.fromkeys(units, True),
        leaves={path: _shape(leaf) for path, leaf in leaf_paths(variables).items()},
        treedef=jax.tree.structure(variables),
    )
    groups = _without(groups, tuple(freeze))
    spots = find_spots(coupling.program, uses, coupling.paths)
    branches = find_branches(coupling.program, coupling.frame, spots, coupling.paths, main)
    return groups._replace(sites=find_sites(coupling, spots, groups), branches=branches)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)


def check_known(coupling: Coupling) -> None:
    """Refuses primitives without a rule.

    Raises:
        TraceError: names the primitive, the equation and the line.
    """
    for program, _, equation in walk(coupling.program, coupling.frame):
        if equation.name not in RULES and not equation.inner:
            raise errors.TraceError(
                f"no rule for the primitive {equation.name!r} ({describe(program, equation)}) at "
                f"{user_line(equation.traceback) or 'an unknown line'}. Trace without strict=True "
                "to "
                "freeze what it touches, or add a rule with "
                f'jprune.graph.rules.rule("{equation.name}").'
            )


def _check_arguments(coupling: Coupling, uses: Uses) -> None:
    """An argument beside the variables that holds channels must move into the variables."""
    leaves = len(coupling.paths)
    arguments = coupling.program.inputs[leaves:]
    arrays = [value for value in arguments if coupling.program.shape(value)]
    suspects = {f"args/{n}": v for n, v in zip(coupling.argument_names, arguments) if v in arrays}
    kernels = {
        equation.inputs[1]
        for equation in coupling.program.equations
        if equation.name == "conv_general_dilated"
        and not isinstance(_channel_axis(coupling, equation), Fixed)
    }
    tied = _names_tied_to_channels(coupling, uses) if len(arrays) > 1 else set()
    for name, value in suspects.items():
        rank = len(coupling.program.shape(value))
        if value in kernels or (rank == 1 and name in tied):
            raise errors.TraceError(
                f"the extra argument {name} of shape {coupling.program.shape(value)} is tied to a "
                "parameter's channel, so it must shrink with it. Put everything that must shrink "
                "into "
                'the first argument, for example {"params": ..., "stats": ...}.'
            )


def _channel_axis(coupling: Coupling, equation: Any) -> Any:
    """The activation's channel axis of a convolution."""
    numbers = equation.params["dimension_numbers"]
    return coupling.frame.labels[equation.inputs[0]][numbers.lhs_spec[1]]


def _names_tied_to_channels(coupling: Coupling, uses: Uses) -> set[str]:
    """Arguments that froze a leaf's axis which no contraction consumes there."""
    names = set()
    for leaf in range(len(coupling.paths)):
        for axis in coupling.leaf_axes(leaf):
            if uses.roles[leaf] == {"kernel"} and not uses.surviving[axis].any():
                continue
            for component in np.unique(coupling.solution.component[axis]).tolist():
                reason = coupling.solution.reasons.get(component)
                if reason is not None and reason.text.startswith(INPUT):
                    names.add(reason.text.removeprefix(INPUT))
    return names


def _axis_roles(coupling: Coupling, uses: Uses, leaf: int, axis: np.ndarray) -> tuple[str, ...]:
    """Roles of one axis of a leaf; a kernel's axis is on its output side, its input, or both."""
    roles = set(uses.roles[leaf])
    if "kernel" not in roles:
        return tuple(role for role in ROLES if role in roles)
    found = set()
    if uses.contracted[axis].any():
        found.add("in")
    if uses.surviving[axis].any():
        found.add("kernel")
    if not found:
        # The kernel was reshaped on its way: compare what the labels mean instead of the labels.
        component = coupling.solution.component
        mine = component[axis]
        contracted = np.isin(mine, component[uses.contracted[: len(component)]])
        found = {"in"} if contracted.any() else {"kernel"}
    return tuple(role for role in ROLES if role in found)


class _Axis(NamedTuple):
    """One axis of a leaf that has atoms."""

    leaf: int
    axis: int
    roles: tuple[str, ...]
    atoms: np.ndarray
    """[length]: one row of atoms, -1 for none."""


def _axes(coupling: Coupling, uses: Uses) -> list[_Axis]:
    """All axes of all leaves that something reads, a row of atoms each."""
    rows = []
    for leaf in range(len(coupling.paths)):
        if not uses.roles[leaf]:
            continue
        for number, axis in enumerate(coupling.leaf_axes(leaf)):
            atoms = coupling.solution.atoms_of(axis)
            if (atoms >= 0).any():
                roles = _axis_roles(coupling, uses, leaf, axis)
                rows += [_Axis(leaf, number, roles, row) for row in atoms if (row >= 0).any()]
    return rows


def _units(coupling: Coupling, uses: Uses) -> dict[str, tuple[Place, ...]]:
    """Groups: atoms that touch the same axes, named after their first producer."""
    axes = _axes(coupling, uses)
    count = len(coupling.solution.atoms)
    # A random word per axis: atoms that touch the same axes have the same sum of words.
    words = np.random.default_rng(0).integers(1, 2**62, len(axes))
    signature = np.zeros(count, np.int64)
    for word, row in zip(words, axes):
        signature[np.unique(row.atoms[row.atoms >= 0])] += word
    members = np.flatnonzero(signature)
    keys = signature[members]
    meeting = _atoms_marked(coupling, uses.meeting, count)
    found = []
    for key in np.unique(keys).tolist():
        atoms = members[keys == key]
        touched = [row for row in axes if np.isin(atoms[0], row.atoms)]
        order = min(touched, key=lambda row: _producer_order(uses, row))
        atoms = _in_order_of(order.atoms, atoms)
        index = np.full(count, -1)
        index[atoms] = np.arange(len(atoms))
        stand_in = meeting[atoms].any() or not any("in" in row.roles for row in touched)
        places = tuple(
            Place(
                coupling.paths[row.leaf],
                row.axis,
                _with_stand_in(row.roles) if stand_in else row.roles,
                np.where(row.atoms >= 0, index[row.atoms], -1),
            )
            for row in touched
        )
        found.append((_producer_order(uses, order), coupling.paths[order.leaf], places))
    groups: dict[str, tuple[Place, ...]] = {}
    for _, path, places in sorted(found, key=lambda item: item[0]):
        groups[numbered(path, groups)] = places
    return groups


def numbered(name: str, taken: Any) -> str:
    """`name`, or `name@2`, `name@3` where it is taken."""
    number = 2
    result = name
    while result in taken:
        result = f"{name}@{number}"
        number += 1
    return result


def _producer_order(uses: Uses, row: _Axis) -> tuple[bool, int, int, int]:
    """Sorts producers first, in execution order."""
    order = uses.first.get(row.leaf, len(uses.first))
    return ("kernel" not in row.roles, order, row.axis, int(row.atoms.max()))


def _in_order_of(row: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """The atoms in the order in which they first stand in a row."""
    values, first = np.unique(row, return_index=True)
    place = dict(zip(values.tolist(), first.tolist()))
    return np.array(sorted(atoms.tolist(), key=lambda atom: place[atom]))


def _atoms_marked(coupling: Coupling, marked: np.ndarray, count: int) -> np.ndarray:
    """[atoms] bool: the atoms of marked labels."""
    result = np.zeros(count, bool)
    atoms = coupling.solution.atoms_of(np.flatnonzero(marked))
    result[atoms[atoms >= 0]] = True
    return result


def _with_stand_in(roles: tuple[str, ...]) -> tuple[str, ...]:
    """Units that end in a contraction of two activations: their producers stand in for `in`."""
    return (*roles, "in") if set(roles) & {"kernel", "shift"} and "in" not in roles else roles


def _frozen(coupling: Coupling, uses: Uses) -> list[Frozen]:
    """Frozen axes of the leaves, one entry per reason; positions of images are not listed."""
    found: list[Frozen] = []
    for leaf, path in enumerate(coupling.paths):
        if not uses.roles[leaf]:
            continue
        for number, axis in enumerate(coupling.leaf_axes(leaf)):
            components, counts = np.unique(coupling.solution.component[axis], return_counts=True)
            by_reason: dict[Reason, int] = {}
            for component, positions in zip(components.tolist(), counts.tolist()):
                reason = coupling.solution.reasons.get(component)
                if reason is not None and reason != SPATIAL.reason:
                    by_reason[reason] = by_reason.get(reason, 0) + positions
            found += [
                Frozen(path, number, positions, *reason) for reason, positions in by_reason.items()
            ]
    return found


def _without(groups: Groups, frozen: tuple[str, ...]) -> Groups:
    """The groups without those that the caller wants to keep whole."""
    unknown = [name for name in frozen if name not in groups.sizes and name not in groups.leaves]
    if unknown:
        raise errors.ArgumentError(
            f"freeze={list(frozen)} names {unknown[0]!r}, which is neither a group nor a leaf. "
            f"Groups: {', '.join(groups.names) or 'none'}."
        )
    leaves = set(frozen) - set(groups.sizes)
    gone = {
        name
        for name, places in groups.places.items()
        if name in frozen or any(place.leaf in leaves for place in places)
    }
    records = [
        Frozen(p.leaf, p.axis, int((p.units >= 0).sum()), "frozen by the caller", "", "", "", "")
        for name in gone
        for p in groups.places[name]
    ]
    kept = [name for name in groups.names if name not in gone]
    return groups._replace(
        sizes={name: groups.sizes[name] for name in kept},
        places={name: groups.places[name] for name in kept},
        exact={name: groups.exact[name] for name in kept},
        frozen=groups.frozen + tuple(records),
    )

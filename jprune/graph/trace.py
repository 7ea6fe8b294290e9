"""`trace`: from a function to its groups of units."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.base import Frozen, Groups, Place
from jprune.collector import uncollected
from jprune.graph.couple.coupling import Coupling, check_arguments, check_leaves, couple, leaf_paths
from jprune.graph.couple.groups import Found, find_units
from jprune.graph.couple.interpret import walk
from jprune.graph.couple.labels import SPATIAL, Flags, Indices, Reason
from jprune.graph.couple.rules import RULES
from jprune.graph.couple.solve import solve
from jprune.graph.layers import examples_in, find_layers
from jprune.graph.look.branches import find_branches
from jprune.graph.look.flow import Flow
from jprune.graph.look.sites import find_sites, find_spots
from jprune.jaxprs import describe, user_line

__all__ = ["Coupling", "check_leaves", "couple", "trace"]


@uncollected()  # many objects are made and few cycles: the search walks over the caller's heap
def trace(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    has_aux: bool = False,
    freeze: Iterable[str] = (),
    open: Iterable[str] = (),
    twin: Callable[..., Any] | None = None,
    strict: bool = False,
) -> Groups:
    """Finds the units of a network: the channels that live or die together.

    What is tied to an input or output, and what a primitive without a rule meets, is frozen. So is
    what is reduced over without weights (a layer norm, a softmax over channels, a contraction with
    a constant): the masked net still sums over channels that the slim net no longer has. Such
    groups can be opened. Masked and slim nets differ then, and `exact` says so: the slim net
    normalises over the channels that are left, where a mean divides by their number, and a
    softmax gives them all the weight. Fine-tune the slim net, or the masked one and measure both.

    Args:
        fn: pure function `fn(variables, *args)`, in inference mode.
        variables: tree of everything that must shrink, statistics included; shapes are enough.
        *args: inputs, arrays or shapes; one example is enough.
        has_aux: `fn` returns `(out, aux)`, and `aux` (new statistics) freezes nothing.
        freeze: names of groups whose units must stay, or paths of leaves (other than the first
            producer, which names its group) on which they stand.
        open: names of groups that a reduction freezes, or paths of leaves on which they stand (see
            `groups.frozen`), that may be removed all the same; those that are exact stay exact.
        twin: another function of the same arguments, mostly the training mode of `fn`, whose ties
            count too: it ties statistics that inference does not read (Haiku's hidden averages).
            Its outputs freeze nothing.
        strict: an unknown primitive is an error and not a frozen axis.

    Returns:
        The groups, host-side and static.

    Raises:
        TraceError: a primitive has no rule and `strict` is set; an extra argument is tied to a
            channel; `fn` does not take these variables.
        ArgumentError: `fn` does not take so many arguments; `freeze` or `open` names neither a
            group nor a leaf, or `open` names nothing that a reduction freezes.

    Example:
        >>> import jax.numpy as jnp
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> shapes = {"first": jnp.zeros((3, 5)), "second": jnp.zeros((5, 2))}
        >>> trace(fn, shapes, jnp.zeros((1, 3))).sizes
        {'first': 5}
    """
    _check_call(fn, variables, args)
    coupling = couple(fn, variables, *args, has_aux=has_aux, inline_remat=True, twin=twin)
    if strict:
        check_known(coupling)
    check_arguments(coupling)
    leaves = {path: _shape(leaf) for path, leaf in leaf_paths(variables).items()}
    opened = tuple(open)
    if opened:
        coupling = _opened(coupling, opened, tuple(leaves))
    units = find_units(coupling)
    groups = Groups(
        sizes={name: len(found.atoms) for name, found in units.items()},
        places={name: found.places for name, found in units.items()},
        sites=(),
        branches=(),
        frozen=tuple(_frozen(coupling)),
        exact=_exact(coupling, units),
        leaves=leaves,
        treedef=jax.tree.structure(variables),
        layers={},
    )
    groups = _without(groups, tuple(freeze))
    flow = Flow(coupling.program, coupling.uses.taints)
    spots = find_spots(coupling.program, coupling.uses, coupling.paths, flow)
    branches = find_branches(coupling.program, spots, coupling.paths, coupling.main)
    sites = find_sites(coupling.under(groups), spots, groups)
    groups = groups._replace(sites=sites, branches=branches)
    return groups._replace(layers=find_layers(coupling, groups, flow, examples_in(args)))


def _check_call(fn: Callable[..., Any], variables: Any, args: tuple[Any, ...]) -> None:
    """Refuses what `fn` cannot be called with: mostly a training function without its key."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # a builtin; calling it says what is wrong
        return
    try:
        signature.bind(variables, *args)
    except TypeError as error:
        raise errors.ArgumentError(
            f"trace calls fn(variables, *args) with {1 + len(args)} arguments, and this one is "
            f"fn{signature}: {error}. Write all of them, jprune.trace(fn, variables, x, ...); of a "
            "training function that returns (out, new statistics), has_aux=True too."
        ) from None


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
                "to freeze what it touches, or add a rule with "
                f'jprune.graph.couple.rules.rule("{equation.name}").'
            )


def _opened(coupling: Coupling, names: Sequence[str], leaves: Sequence[str]) -> Coupling:
    """The coupling in which reductions no longer freeze some groups.

    Raises:
        ArgumentError: a name that is neither a group nor a leaf, or that no reduction freezes.
    """
    labels = coupling.labels
    everything = coupling._replace(solution=solve(labels, opened=True))
    units = find_units(everything)
    _check_names("open", names, units, leaves)
    count = len(everything.solution.atoms)
    exact = _exact(everything, units)
    named = _named({name: found.places for name, found in units.items()}, names)
    # Records name leaves, and a leaf may have the name of a group that is exact: it stays so.
    inexact = [name for name in named if not exact[name]]
    if not inexact:
        raise errors.ArgumentError(
            f"open={list(names)} names {named[0]!r}, which no reduction freezes; leave it out."
        )
    wanted = np.zeros(count, bool)
    wanted[np.concatenate([units[name].atoms for name in inexact])] = True
    reduced: list[tuple[Indices, Reason]] = []
    for axis, reason in labels.reduced:
        atoms = everything.solution.atoms_of(axis)
        rest = np.unique(atoms[(atoms >= 0) & ~wanted[atoms]])
        reduced.append((_labels_of(everything, rest), reason))
    narrower = labels.with_reduced(reduced)
    return coupling._replace(solution=solve(narrower))


def _labels_of(coupling: Coupling, atoms: Indices) -> Indices:
    """Labels that freeze these atoms, and no others where that can be said."""
    solution = coupling.solution
    # The solver splits axes more finely with labels of its own, which no rule can freeze.
    rows = solution.atoms[solution.component[: coupling.labels.count]]
    inside = np.isin(rows, atoms)
    only = (inside | (rows < 0)).all(axis=1) & inside.any(axis=1)
    missing = np.setdiff1d(atoms, rows[only])
    return np.flatnonzero(only | np.isin(rows, missing).any(axis=1))


def _named(units: dict[str, tuple[Place, ...]], names: Sequence[str]) -> list[str]:
    """Groups of these names, or with a place on a leaf of such a name that names no group."""
    leaves = set(names) - set(units)
    return [
        name
        for name, places in units.items()
        if name in names or any(place.leaf in leaves for place in places)
    ]


def _exact(coupling: Coupling, units: dict[str, Found]) -> dict[str, bool]:
    """Which groups no reduction sees."""
    seen = np.zeros(len(coupling.solution.atoms), bool)
    for axis, _ in coupling.labels.reduced:
        atoms = coupling.solution.atoms_of(axis)
        seen[atoms[atoms >= 0]] = True
    return {name: not seen[found.atoms].any() for name, found in units.items()}


def _frozen(coupling: Coupling) -> list[Frozen]:
    """Frozen axes of the leaves, one entry per reason; positions of images are not listed."""
    parts = _frozen_parts(coupling)
    found: list[Frozen] = []
    for leaf, path in enumerate(coupling.paths):
        if not coupling.uses.roles[leaf]:
            continue
        for number, axis in enumerate(coupling.leaf_axes(leaf)):
            causes = coupling.solution.causes_of(axis)
            components = coupling.solution.component[axis]
            for reason, flags in parts.items():
                if positions := int(flags[components].sum()):
                    causes[reason] += positions
            found += [
                Frozen(path, number, positions, *reason)
                for reason, positions in causes.items()
                if reason != SPATIAL.reason
            ]
    return found


def _frozen_parts(coupling: Coupling) -> dict[Reason, Flags]:
    """Reason -> [components]: those that go with their row alone, since their column is frozen.

    Or with their column alone. Reasons without a remedy are left out: they are on record where the
    row or the column ends.
    """
    solution = coupling.solution
    found: dict[Reason, Flags] = {}
    for product in coupling.labels.products:
        for slot, factor in enumerate(product.factors):
            causes = solution.causes[solution.component[factor]]
            for number in np.unique(causes[causes >= 0]).tolist():
                reason = solution.reasons[number]
                if reason.remedy:
                    wholes = np.compress(causes == number, product.whole, axis=slot)
                    flags = found.setdefault(reason, np.zeros(len(solution.causes), bool))
                    flags[solution.component[wholes]] = True
    return {reason: flags & (solution.causes < 0) for reason, flags in found.items()}


def _check_names(
    word: str, names: Sequence[str], groups: Iterable[str], leaves: Iterable[str]
) -> None:
    known = {*groups, *leaves}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise errors.ArgumentError(
            f"{word}={list(names)} names {unknown[0]!r}, which is neither a group nor a leaf. "
            f"Groups: {', '.join(groups) or 'none'}."
        )


def _without(groups: Groups, frozen: tuple[str, ...]) -> Groups:
    """The groups without those that the caller wants to keep whole."""
    _check_names("freeze", frozen, groups.names, groups.leaves)
    gone = set(_named(groups.places, frozen))
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

"""Plans: what was removed, as plain data: written as JSON, replayed on the same net."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jprune import errors
from jprune.base import Groups
from jprune.graph.jaxprs import Program, program_of
from jprune.graph.slim import check_masks
from jprune.graph.trace import trace

SCHEMA = 1
# Parameters of primitives that say what is computed; functions and meshes are left out.
_PLAIN = (int, float, str, bool, type(None), np.dtype, np.integer)


def fingerprint(program: Program) -> str:
    """Sha256 of a program's equations, without source lines and addresses."""
    digest = hashlib.sha256()

    def add(program: Program) -> None:
        for equation in program.equations:
            types = [str(program.avals[v]) for v in (*equation.inputs, *equation.outputs)]
            params = [f"{k}={_text(v)}" for k, v in sorted(equation.params.items())]
            line = (equation.name, equation.inputs, equation.outputs, types, params)
            digest.update(repr(line).encode())
            for body in equation.inner:
                add(body)
        digest.update(repr((program.inputs, program.outputs)).encode())

    add(program)
    return digest.hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ",".join(_text(item) for item in value) + ")"
    return str(value) if isinstance(value, _PLAIN) else type(value).__name__


def plan_of(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    groups: Groups,
    masks: Mapping[str, Any],
) -> dict[str, Any]:
    """A plan: plain data, ready for JSON.

    Args:
        fn: the network that was traced.
        variables: its dense variables, or their shapes.
        *args: the inputs that it was traced with.
        groups: from `trace`.
        masks: {group: bool [units]}.

    Returns:
        `schema`, `sha256` of the equations, `primitives` {name: how often}, `leaves` {path:
            shape}, `groups`
        {name: {size, keep: kept units, places: [{leaf, axis, roles}]}}, `branches`, `leaf_types`,
            `frozen`.
    """
    checked = check_masks(groups, masks)
    program, _ = program_of(fn, variables, *args)
    return {
        "schema": SCHEMA,
        "sha256": fingerprint(program),
        "primitives": dict(sorted(Counter(e.name for e in program.equations).items())),
        "leaves": {path: list(leaf.shape) for path, leaf in groups.leaves.items()},
        "groups": {
            name: {
                "size": groups.sizes[name],
                "keep": np.flatnonzero(checked[name]).tolist(),
                "places": [
                    {"leaf": place.leaf, "axis": place.axis, "roles": list(place.roles)}
                    for place in groups.places[name]
                ],
            }
            for name in groups.names
        },
        "branches": [],
        "leaf_types": {},
        "frozen": [record._asdict() for record in groups.frozen],
    }


def replay(
    plan: Mapping[str, Any], fn: Callable[..., Any], variables: Any, *args: Any
) -> tuple[Groups, dict[str, np.ndarray]]:
    """Groups and masks of a plan on the net that it was made of.

    Args:
        plan: from `plan_of`, perhaps read from JSON.
        fn: the same network.
        variables: its dense variables, or their shapes.
        *args: inputs of the shapes that it was traced with.

    Returns:
        What `slim` and `slim_params` take.

    Raises:
        StructureError: another schema, or a net that has changed; the message says in what.
    """
    if plan.get("schema") != SCHEMA:
        raise errors.StructureError(
            f"the plan has schema {plan.get('schema')!r}; this version of jprune reads {SCHEMA}. "
            "Make the plan again with this version."
        )
    groups = trace(fn, variables, *args)
    program, _ = program_of(fn, variables, *args)
    if fingerprint(program) != plan["sha256"]:
        raise errors.StructureError(
            f"the plan is of another net: {_difference(plan, groups, program)}"
        )
    masks = {}
    for name, entry in plan["groups"].items():
        masks[name] = np.zeros(groups.sizes[name], bool)
        masks[name][entry["keep"]] = True
    return groups, masks


def _difference(plan: Mapping[str, Any], groups: Groups, program: Program) -> str:
    """The first thing in which a plan and a net differ."""
    leaves = {path: list(leaf.shape) for path, leaf in groups.leaves.items()}
    for path in {**plan["leaves"], **leaves}:
        planned, found = plan["leaves"].get(path), leaves.get(path)
        if planned != found:
            return f"{path} had shape {planned} and has {found}."
    counts = Counter(equation.name for equation in program.equations)
    for name in sorted({*plan["primitives"], *counts}):
        if plan["primitives"].get(name, 0) != counts[name]:
            before = plan["primitives"].get(name, 0)
            return f"it had {before} equations {name!r} and has {counts[name]}."
    return (
        "its equations differ in their parameters or order (another activation, stride or input?)."
    )

"""Plans: the removed units as plain data, written as JSON and replayed on the same net."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jprune import errors
from jprune.base import Groups
from jprune.forms.leaf_type import is_leaf_type
from jprune.forms.table import FORMS
from jprune.graph.couple.coupling import leaf_paths
from jprune.graph.shrink.plan_files import check_plan
from jprune.graph.shrink.slim import check_masks, dead_branches
from jprune.graph.trace import trace
from jprune.jaxprs import Equation, Program, describe, is_key, program_of, user_line

SCHEMA = 1
# Parameters of primitives that say what is computed; functions and meshes are left out.
_PLAIN = (int, float, str, bool, type(None), np.dtype, np.integer)


def fingerprint(program: Program) -> str:
    """Sha256 of a program's equations, without source lines and addresses."""
    lines = [_line(program, equation) for equation in program.equations]
    ends = repr((program.inputs, program.outputs))
    return hashlib.sha256("\n".join([*lines, ends]).encode()).hexdigest()


def digests(program: Program) -> list[str]:
    """Eight hexadecimal digits per equation of a program, what is nested in it included."""
    return [
        hashlib.sha256(_line(program, equation).encode()).hexdigest()[:8]
        for equation in program.equations
    ]


def _line(program: Program, equation: Equation) -> str:
    # Value ids are numbers in order of execution, so equal programs have equal ids.
    types = [str(program.avals[v]) for v in (*equation.inputs, *equation.outputs)]
    params = [f"{k}={_text(v)}" for k, v in sorted(equation.params.items())]
    constants = [_number(program.constants.get(v)) for v in equation.inputs]
    bodies = [fingerprint(body) for body in equation.inner]
    return repr((equation.name, equation.inputs, equation.outputs, types, params, constants)) + (
        "".join(bodies)
    )


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ",".join(_text(item) for item in value) + ")"
    return str(value) if isinstance(value, _PLAIN) else type(value).__name__


def _number(constant: Any) -> str:
    """A constant as text: whole numbers (indices) exactly, a real one in three digits.

    Arrays of real numbers couple nothing, and differ in their last bits from machine to machine.
    """
    if constant is None or isinstance(constant, Tracer):
        return ""
    if not isinstance(constant, (int, float, np.ndarray, np.generic, jax.Array)):
        return ""
    if is_key(constant):
        return ""
    array = np.asarray(constant)
    # Indices decide which channels a gather couples: they must be the same to the last one.
    if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        return hashlib.sha256(array.tobytes()).hexdigest()
    return f"{float(array.reshape(())):.3g}" if array.size == 1 and array.dtype.kind == "f" else ""


def plan_of(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    groups: Groups,
    masks: Mapping[str, Any],
    small: Any = None,
) -> dict[str, Any]:
    """A plan: plain data, ready for JSON.

    Args:
        fn: the network that was traced.
        variables: its dense variables, or their shapes.
        *args: the inputs that it was traced with.
        groups: from `trace`.
        masks: {group: bool [units]}, and {branch: bool [1]}.
        small: the slim variables, if some of their leaves are leaf types.

    Returns:
        `schema`, `sha256` of the equations, `equations` (a digest of each), `primitives` {name:
        how often}, `leaves` {path: shape}, `groups` {name: {size, keep: kept units, exact, places:
        [{leaf, axis, roles}]}}, `branches` (those that are removed), `leaf_types` {path: {form,
        what is kept}}, `frozen`.

    Raises:
        StructureError: masks of another net.
        ArgumentError: a leaf type that is none of jprune's.
    """
    checked = check_masks(groups, masks)
    program, _ = program_of(fn, variables, *args)
    return {
        "schema": SCHEMA,
        "sha256": fingerprint(program),
        "equations": digests(program),
        "primitives": dict(sorted(Counter(e.name for e in program.equations).items())),
        "leaves": {path: list(leaf.shape) for path, leaf in groups.leaves.items()},
        "groups": {
            name: {
                "size": groups.sizes[name],
                "keep": np.flatnonzero(checked[name]).tolist(),
                "exact": groups.exact[name],
                "places": [
                    {"leaf": place.leaf, "axis": place.axis, "roles": list(place.roles)}
                    for place in groups.places[name]
                ],
            }
            for name in groups.names
        },
        "branches": [branch.name for branch in dead_branches(groups, masks)],
        "leaf_types": {
            path: _planned(path, leaf)
            for path, leaf in leaf_paths(small).items()
            if is_leaf_type(leaf)
        },
        "frozen": [record._asdict() for record in groups.frozen],
    }


def _planned(path: str, leaf: Any) -> dict[str, Any]:
    for form, kind in FORMS.items():
        # Not `isinstance`: a subclass of the user's has parts that `planned` would not bring back.
        if type(leaf) is kind:
            axes = getattr(leaf, "axes", None)
            return {"form": form, **leaf.plan(), **({"axes": list(axes)} if axes else {})}
    raise errors.ArgumentError(
        f"{path} is a {type(leaf).__name__}, which plans do not know; they hold "
        f"{', '.join(kind.__name__ for kind in FORMS.values())}. Pass leaf.dense() for it."
    )


def replay(
    plan: Mapping[str, Any],
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    groups: Groups | None = None,
) -> tuple[Groups, dict[str, np.ndarray]]:
    """Groups and masks of a plan, for the net that it was made of.

    Args:
        plan: from `plan_of`, perhaps read from JSON.
        fn: the same network.
        variables: its dense variables, or their shapes.
        *args: inputs of the shapes that it was traced with.
        groups: of the net, where it was traced with options (`open`, `freeze`, `twin`).

    Returns:
        What `slim` and `slim_params` take: the groups, and masks of groups and removed branches.

    Raises:
        StructureError: no plan, one of another schema, a net that has changed, or other groups than
            the plan's; the message says in what.
    """
    if plan.get("schema") != SCHEMA:
        raise errors.StructureError(
            f"the plan has schema {plan.get('schema')!r}; this version of jprune reads {SCHEMA}. "
            "Make the plan again with this version."
        )
    check_plan(plan)
    # The plan holds no program: the net is traced again, and must be the same.
    groups = trace(fn, variables, *args) if groups is None else groups
    program, _ = program_of(fn, variables, *args)
    if fingerprint(program) != plan["sha256"]:
        raise errors.StructureError(
            f"the plan is of another net: {_difference(plan, groups, program)}"
        )
    _check_groups(plan, groups)
    masks = {name: np.zeros(size, bool) for name, size in groups.sizes.items()}
    for name, entry in plan["groups"].items():
        masks[name][entry["keep"]] = True
    # Branches that stay have no entry: a mask that is not named keeps.
    return groups, {**masks, **{name: np.array([False]) for name in plan["branches"]}}


def held(plan: Mapping[str, Any], small: Any) -> Any:
    """Slim variables with the leaf types of a plan.

    Args:
        plan: from `plan_of`.
        small: slim variables, dense arrays (`leaf.dense()` where a leaf type was).

    Returns:
        The variables, kernels in the forms that the plan says.

    Raises:
        StructureError: a leaf of the plan is missing.
    """
    missing = sorted(set(plan["leaf_types"]) - set(leaf_paths(small)))
    if missing:
        raise errors.StructureError(
            f"the plan holds {', '.join(missing)} in another form, and the variables have no such "
            "leaf. Pass slim_params(groups, masks, variables) of the net that the plan is of."
        )

    def one(path: Any, leaf: Any) -> Any:
        entry = plan["leaf_types"].get(jax.tree_util.keystr(path, simple=True, separator="/"))
        try:
            return leaf if entry is None else FORMS[entry["form"]].planned(leaf, entry)
        except (IndexError, ValueError) as error:
            if isinstance(error, errors.JpruneError):
                raise
            raise errors.StructureError(
                f"the form of {jax.tree_util.keystr(path, simple=True, separator='/')} in the plan "
                f"is not that of a kernel of shape {leaf.shape}: {error}."
            ) from error

    return jax.tree_util.tree_map_with_path(one, small)


def _check_groups(plan: Mapping[str, Any], groups: Groups) -> None:
    """Refuses groups that are not those of a plan.

    Raises:
        StructureError: names the first group, or branch, that differs.
    """
    planned = {name: entry["size"] for name, entry in plan["groups"].items()}
    for name in {**planned, **groups.sizes}:
        if planned.get(name) != groups.sizes.get(name):
            raise errors.StructureError(
                f"the group {name!r} has {planned.get(name, 'no')} units in the plan and "
                f"{groups.sizes.get(name, 'no')} in the net. If the net was traced with options, "
                "pass replay(..., groups=jprune.trace(..., open=..., freeze=...)) with the same."
            )
    unknown = sorted(set(plan["branches"]) - {branch.name for branch in groups.branches})
    if unknown:
        raise errors.StructureError(f"the plan removes {unknown}, which the net does not have.")


def _difference(plan: Mapping[str, Any], groups: Groups, program: Program) -> str:
    """The first thing in which a plan and a net differ."""
    leaves = {path: list(leaf.shape) for path, leaf in groups.leaves.items()}
    for path in {**plan["leaves"], **leaves}:
        planned, shape = plan["leaves"].get(path), leaves.get(path)
        if planned != shape:
            return f"{path} had shape {planned} and has {shape}."
    counts = Counter(equation.name for equation in program.equations)
    for name in sorted({*plan["primitives"], *counts}):
        if plan["primitives"].get(name, 0) != counts[name]:
            before = plan["primitives"].get(name, 0)
            return f"it had {before} equations {name!r} and has {counts[name]}."
    for before, now, equation in zip(
        plan.get("equations", ()), digests(program), program.equations
    ):
        if before != now:
            return (
                f"the first equation that differs is now {describe(program, equation)} at "
                f"{user_line(equation.traceback) or 'an unknown line'}; its parameters, constants "
                "or operands have changed."
            )
    return "it returns other values, or takes other inputs."

"""What a plan must hold: checked wherever one is read, since it may come from anywhere."""

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypedDict

from jprune import errors, foreign
from jprune.foreign import Axis, Range, Size


class PlannedPlace(TypedDict):
    """A `Place`, without its units."""

    leaf: str
    axis: Axis
    roles: list[str]


class PlannedGroup(TypedDict):
    """A group: its units, and those that are kept, in their order."""

    size: Annotated[int, Range(1, 2**31)]
    keep: list[Size]
    exact: bool
    places: list[PlannedPlace]


class PlannedFrozen(TypedDict):
    """A `Frozen`."""

    leaf: str
    axis: Axis
    positions: Size
    reason: str
    primitive: str
    equation: str
    source: str
    remedy: str


class Plan(TypedDict):
    """The keys of a plan, see `plan_of`."""

    sha256: str
    equations: NotRequired[list[str]]
    primitives: dict[str, Size]
    leaves: dict[str, list[Size]]
    groups: dict[str, PlannedGroup]
    branches: list[str]
    leaf_types: dict[str, dict[str, Any]]
    frozen: list[PlannedFrozen]
    resolution: NotRequired[Size | list[Size] | None]


class _Factored(TypedDict):
    inputs: Size
    outputs: Size
    axes: NotRequired[list[Axis]]


class _Lists(TypedDict):
    axes: NotRequired[list[Axis]]


class _Rows(_Lists):
    inputs: list[Size]
    outputs: list[Size]


class _Thin(_Lists):
    taps: list[Size]
    outputs: list[Size]


class _Csr(_Lists):
    columns: list[Size]
    pointers: list[Size]


class _Gated(_Lists):
    outputs: Size


_PARTS = {
    **{"factored": _Factored, "rows": _Rows, "thin": _Thin, "csr": _Csr},
    **dict.fromkeys(("winners", "thresholded", "from_menu"), _Gated),
}


def check_plan(plan: Any, source: str = "the plan", advice: str = "") -> None:
    """Compares a plan with its schema; `replay` compares it with the net.

    Args:
        plan: perhaps read from JSON.
        source: what to call it in messages.
        advice: what to do, behind the message.

    Raises:
        StructureError: names the key, what came there and what was expected.

    Example:
        >>> check_plan({"sha256": 5})
        Traceback (most recent call last):
        jprune.errors.StructureError: the plan has 5 at `sha256`; a text was expected.
    """
    foreign.check(plan, Plan, source, advice, errors.StructureError)
    end = f" {advice}" if advice else ""
    for name, group in plan["groups"].items():
        last = -1
        for unit in group["keep"]:
            if not last < unit < group["size"]:
                raise errors.StructureError(
                    f"{source} has {unit} at `groups.{foreign.shown(name, 60)}.keep`; rising "
                    f"numbers below its {group['size']} units were expected.{end}"
                )
            last = unit
    for path, entry in plan["leaf_types"].items():
        _check_form(plan, foreign.shown(path, 60), entry, plan["leaves"].get(path), source, end)


def _check_form(
    plan: Mapping[str, Any], path: str, entry: Any, shape: Any, source: str, end: str
) -> None:
    form = entry.get("form")
    where = f"{source} has at `leaf_types.{path}`"
    if shape is None or not isinstance(form, str) or form not in _PARTS:
        what = "no leaf" if shape is None else f"the form {foreign.shown(repr(form), 40)}"
        raise errors.StructureError(
            f"{where} {what}; a leaf of `leaves`, in one of the forms {', '.join(_PARTS)}, was "
            f"expected.{end}"
        )
    foreign.check(entry, _PARTS[form], f"{where} a form that", end.strip(), errors.StructureError)
    axes = entry.get("axes")
    if len(shape) < 2 or (axes is not None and sorted(axes) != [*range(len(shape))]):
        raise errors.StructureError(
            f"{where} the axes {foreign.shown(axes, 40)}; those of the shape "
            f"{foreign.shown(shape, 40)} were expected.{end}"
        )
    # Each pointer counts the columns before a row: the last one has them all.
    pointers, columns = entry.get("pointers"), entry.get("columns")
    if form == "csr" and (pointers != sorted(pointers) or pointers[-1:] != [len(columns)]):
        raise errors.StructureError(
            f"{where} pointers that do not end at its {len(columns)} columns.{end}"
        )

"""What the page says of the plan: widths of groups, and axes that cannot shrink."""

from collections.abc import Mapping, Sequence
from typing import Any

from jprune.report.figures import short_names
from jprune.report.markup import Markup, join, tag

WIDTHS_NOTE = (
    "Channels that must live or die together are a group. Every bar is a group, as long as the "
    "dense net is wide; the filled part is what the slim net keeps. Other layers of the group "
    "stand below its name."
)
FORMS_NOTE = (
    "Kernels that the slim net does not run as one array: rotation, core and rotation of a "
    "factored kernel, or the places that a pattern keeps."
)
FROZEN_NOTE = "What cannot be removed, and why."
_MANY = 16  # groups that are more than these stand in two columns


def widths(groups: Mapping[str, Mapping[str, Any]]) -> Markup:
    """A bar per group: units before, units after."""
    if not groups:
        return tag("p", "No group of channels was found.", class_="unknown")
    widest = max(group["size"] for group in groups.values())
    # One scale for all groups: the widest one fills the row, so that widths can be compared.
    rows = [
        _group(name, short, group, widest)
        for (name, group), short in zip(groups.items(), short_names(list(groups)))
    ]
    legend = tag(
        "p",
        tag("span", tag("i", style="background: var(--slim)"), "kept"),
        tag("span", tag("i", style="background: var(--dense)"), "removed"),
        class_="legend",
    )
    many = " many" if len(groups) > _MANY else ""
    return join(legend, tag("div", *rows, class_=f"groups{many}"))


def _group(name: str, short: str, group: Mapping[str, Any], widest: int) -> Markup:
    size, remaining = group["size"], len(group["keep"])
    # Kernels alone: biases and statistics follow their layer, and would only make the line long.
    leaves = {place["leaf"] for place in group["places"] if "kernel" in place["roles"]}
    tied = short_names(sorted(leaves - {name}))
    fill = tag("div", class_="fill", style=f"width: {100 * remaining / size:.2f}%")
    return tag(
        "div",
        tag(
            "div",
            tag("div", short, class_="name", title=name),
            tag("div", "with " + ", ".join(tied), class_="tied") if tied else "",
        ),
        tag(
            "div",
            tag("div", fill, class_="track", style=f"width: {100 * size / widest:.2f}%"),
            class_="bar",
        ),
        tag("div", f"{remaining} of {size}" if remaining < size else f"all {size}", class_="count"),
        class_="group",
    )


def forms(leaf_types: Mapping[str, Mapping[str, Any]], leaves: Mapping[str, Any]) -> Markup:
    """A line per kernel that is not a dense array: its form, and the size of its parts.

    Args:
        leaf_types: of the plan, {path: {form, what is kept}}.
        leaves: of the plan, {path: shape of the dense kernel}.
    """
    return tag(
        "ul", *(_form(path, settings, leaves[path]) for path, settings in leaf_types.items())
    )


def _form(path: str, settings: Mapping[str, Any], shape: Sequence[int]) -> Markup:
    count = lambda part: part if isinstance(part, int) else len(part)
    parts = {name: count(part) for name, part in settings.items() if name not in ("form", "axes")}
    dense = " x ".join(map(str, shape))
    if settings["form"] == "factored":
        i, o = parts["inputs"], parts["outputs"]
        *lengths, inputs, outputs = [shape[a] for a in settings.get("axes") or range(len(shape))]
        window = " x ".join(map(str, [*lengths, i, o]))
        # W = R_in core R_out: rotation [in, i], core [window, i, o], rotation [o, out].
        text = f": {dense} as {inputs} x {i}, {window}, {o} x {outputs}"
    else:
        text = f": {dense}, {settings['form']}, " + ", ".join(
            f"{n} {name}" for name, n in parts.items()
        )
    return tag("li", tag("code", path), text)


def frozen(records: Sequence[Mapping[str, Any]]) -> Markup:
    """Frozen axes, grouped by reason, with the user's source lines and what would unfreeze them."""
    if not records:
        return tag("p", "None: every axis can shrink.")
    reasons: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        # One card per reason, with all its axes, since a net of a hundred layers may have one
        # reason.
        reasons.setdefault((record["reason"], record["remedy"]), []).append(record)
    return join(*(_reason(*reason, same) for reason, same in reasons.items()))


def _reason(reason: str, remedy: str, records: Sequence[Mapping[str, Any]]) -> Markup:
    # Several axes may be frozen at one equation: it is shown once.
    equations = dict.fromkeys((record["equation"], record["source"]) for record in records)
    return tag(
        "div",
        tag("p", tag("strong", reason[:1].upper() + reason[1:])),
        tag("ul", *(tag("li", *_axis(record)) for record in records)),
        *(
            tag("p", tag("code", equation), f", {source}" if source else "", class_="note")
            for equation, source in equations
        ),
        tag("p", f"To open it: {remedy}") if remedy else "",
        class_="frozen",
    )


def _axis(record: Mapping[str, Any]) -> tuple[str, str]:
    positions = record["positions"]
    many = "position" if positions == 1 else "positions"
    return tag("code", record["leaf"]), f", axis {record['axis']}: {positions} {many}"

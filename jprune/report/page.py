"""The page: one HTML file that opens offline, out of the files of a run."""

import os
import pathlib
import string
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jprune.data.fetch import ORIGINS
from jprune.report import figures, schema, structure, tables, text
from jprune.report.markup import Markup, join, tag
from jprune.report.read import Run, read_run
from jprune.report.schema import Result
from jprune.runs.files import atomic_write

AGAIN_NOTE = (
    "With these versions, on the same kind of device with as many threads, the same seed gives the "
    "same net. Times differ, and so do the last digits on another device."
)


def html(run_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes `report.html` and `report.png` into the directory of a finished run.

    The page is one file: style and pictures are inside, nothing is loaded from anywhere. It follows
    the reader's choice of light or dark. What was not measured says so.

    Args:
        run_dir: the `--out` of a finished `jprune prune`.

    Returns:
        Path of `report.html`.

    Raises:
        CheckpointError: a file of the run is missing or damaged; the message names it.
    """
    run = read_run(run_dir)
    folder = pathlib.Path(run_dir)
    # The picture first: whether there is a page decides whether a run writes its report again.
    atomic_write(folder / "report.png", figures.summary(run))
    atomic_write(folder / "report.html", page(run))
    return folder / "report.html"


def page(run: Run) -> str:
    """The text of `report.html`."""
    result, plan = run.result, run.plan
    title = f"{result['method']} on {result['model']}, {result['data']}"
    body = join(
        _header(result, title),
        _tiles(result),
        _section("Accuracy and cost", tables.COST_NOTE, tables.cost(result)),
        _section("Latency", tables.latency_note(result), tables.latency(result)),
        _section("Widths", structure.WIDTHS_NOTE, structure.widths(plan["groups"])),
        *(
            [
                _section(
                    "Layers in another form",
                    structure.FORMS_NOTE,
                    structure.forms(plan["leaf_types"], plan["leaves"]),
                )
            ]
            # Only nets with factored or sparse kernels have this section.
            if plan["leaf_types"]
            else []
        ),
        _section("Training", "", _curves(run)),
        _section("Frozen axes", structure.FROZEN_NOTE, structure.frozen(plan["frozen"])),
        _section("How this was made", "", _provenance(run)),
        _section("How to make it again", AGAIN_NOTE, tag("pre", _again(run.result))),
    )
    # `string.Template`: braces of style and script need no escape.
    template = resources.files("jprune.report").joinpath("template.html").read_text("utf-8")
    return string.Template(template).substitute(title=join(title), body=body)


def _section(title: str, note: str, content: Markup) -> Markup:
    about = tag("p", note, class_="note") if note else ""
    return tag("section", tag("h2", title), about, tag("div", content, class_="card"))


def _header(result: Result, title: str) -> Markup:
    about = f"Asked to keep {text.budget(result['requested'])}. Seed {result['seed']}."
    said = schema.missed(result)
    missed = [tag("p", tag("strong", f"The budget is missed: {said}."))] if said else []
    warnings = [
        tag("p", f"Warning: {warning}", class_="warning") for warning in result.get("warnings", [])
    ]
    head = (tag("p", "jprune report"), tag("h1", title), tag("p", about))
    return tag("header", *head, *missed, *warnings)


def _tiles(result: Result) -> Markup:
    dense, slim, achieved = result["dense"], result["pruned"], result["achieved"]
    before, after = (tables.median(net["latency_ms"]["xla_b128"]) for net in (dense, slim))
    points = text.difference(slim["accuracy"], dense["accuracy"], 100, 1)
    of = lambda kind: f"{text.count(slim[kind])} of {text.count(dense[kind])}"
    tiles = [
        ("Test accuracy", text.percent(slim["accuracy"]), f"{points} points against dense"),
        ("MACs kept", text.percent(achieved["macs"]), of("macs")),
        ("Parameters kept", text.percent(achieved["params"]), of("params")),
        (
            "Latency, batch 128",
            text.percent(text.ratio(after, before)),
            f"{text.milliseconds(after)} of {text.milliseconds(before)}",
        ),
    ]
    return tag("div", *(_tile(*tile) for tile in tiles), class_="tiles")


def _tile(name: str, value: str, more: str) -> Markup:
    return tag(
        "div",
        tag("div", name, class_="name"),
        tag("div", tables.value(value), class_="value"),
        # The value above it says "not measured" already.
        tag("div", "" if text.NOT_MEASURED in more else more, class_="more"),
        class_="card tile",
    )


def _curves(run: Run) -> Markup:
    pictures = [figures.curve(run.records, ending) for ending in ("loss", "accuracy")]
    drawn = [tag("div", picture) for picture in pictures if picture is not None]
    return tag("div", *drawn, class_="curves") if drawn else tables.value(text.NOT_MEASURED)


def _provenance(run: Run) -> Markup:
    result = run.result
    device = result["device"]
    threads = f"{device['threads']} thread" + ("" if device["threads"] == 1 else "s")
    versions = {name: version for name, version in result["versions"].items() if version}
    stages = [f"{stage} {text.seconds(spent)}" for stage, spent in result["wall_s"].items()]
    law = result["law_max_rel_err"]
    facts = {
        "Method": f"{result['method']}{_references(result['refs'])}",
        "Seed": str(result["seed"]),
        "Data": _splits(result),
        "Device": f"{device['kind']} ({device['platform']}, {threads})",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Commit": result["commit"] or "not a git checkout",
        "Time": ", ".join([*stages, f"{text.seconds(sum(result['wall_s'].values()))} in all"]),
        "Masked against slim": tables.value(
            text.NOT_MEASURED if law is None else f"largest relative difference {law:.1e}"
        ),
    }
    settings = tag("details", tag("summary", "All settings"), _facts(_flat(run.config)))
    return join(tag("pre", result["command"]), _facts(facts), settings)


def _again(result: Result) -> str:
    """The commands that make the run once more, in a folder of its own."""
    versions = {name: version for name, version in result["versions"].items() if version}
    packages = [f"{name}=={version}" for name, version in versions.items() if name != "python"]
    lines = [f"pip install {' '.join(packages)}"]
    if result["data"] in ORIGINS:
        lines.append(f"jprune data prepare {result['data']}")
    return "\n".join([*lines, result["command"] or "(it was called from Python: see the settings)"])


def _splits(result: Result) -> str:
    """The sizes of the splits, and where they are from."""
    sizes = [f"{size:,} {split}" for split, size in result.get("splits", {}).items()]
    source = result.get("splits_from", "")
    return ", ".join([result["data"], *sizes]) + (f" ({source})" if source else "")


def _references(numbers: list[int]) -> str:
    return f", after {', '.join(f'[{number}]' for number in numbers)}" if numbers else ""


def _facts(facts: Mapping[str, str]) -> Markup:
    pairs = [join(tag("dt", name), tag("dd", value)) for name, value in facts.items()]
    return tag("dl", *pairs)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as {path with dots: text}."""
    flat: dict[str, str] = {}
    for name, setting in settings.items():
        if isinstance(setting, Mapping):
            flat |= _flat(setting, f"{prefix}{name}.")
        else:
            flat[prefix + name] = text.plain(setting)
    return flat

"""Pictures: training curves for the page, and one summary of the run as PNG."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jprune.report import curves
from jprune.report.markup import Markup
from jprune.report.read import Run
from jprune.report.schema import Result
from jprune.report.text import NOT_MEASURED, percent, ratio


class Palette(NamedTuple):
    """Colours by what they are for."""

    paper: str
    ink: str
    muted: str
    line: str
    dense: str
    slim: str
    second: str


PRINT = Palette("#ffffff", "#1c2430", "#667085", "#e4e7ec", "#cbd2dc", "#0f766e", "#b45309")
# Stand-ins that the page replaces by its own colours, which differ in light and dark.
_SCREEN = Palette(*(f"#00000{number}" for number in range(1, 8)))
_LATENCIES = {"xla_b1": "XLA, batch 1", "xla_b128": "XLA, batch 128", "tflite_b1": "TFLite"}


def curve(records: Sequence[Mapping[str, Any]], ending: str) -> Markup | None:
    """An SVG of all metrics whose name ends in `ending`, over the steps of all stages.

    Its colours and font are CSS variables of the page (`--slim`, `--sans` and so on).

    Args:
        records: lines of `records.jsonl`.
        ending: "loss" or "accuracy".

    Returns:
        The `<svg>` element; None where no stage has a curve.
    """
    if not curves.series(records, ending):
        return None
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    figure.patch.set_alpha(0)
    _draw_curve(figure.subplots(), records, ending, _SCREEN)
    file = io.StringIO()
    # A fixed salt, and no date: the same run gives the same page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": ending}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for name, colour in _SCREEN._asdict().items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", svg)
    # Identifiers are the whole page's, and matplotlib numbers its own from 1 in every picture.
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{ending}-", svg)
    svg = re.sub(r'^<svg[^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg)
    return Markup(svg)


def summary(run: Run) -> bytes:
    """The run in one picture: widths, fractions kept, training curves.

    Returns:
        A PNG of 1800 by 1050 pixels.
    """
    result = run.result
    figure = Figure(figsize=(12, 7), dpi=150, layout="constrained", facecolor=PRINT.paper)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.06)
    budget = ", ".join(f"{percent(value)} {kind}" for kind, value in result["requested"].items())
    figure.suptitle(
        f"{result['method']} on {result['model']}, {result['data']}, seed {result['seed']}: "
        f"{budget} requested",
        x=0.012,
        ha="left",
        fontsize=15,
        fontweight="bold",
        color=PRINT.ink,
    )
    grid = figure.add_gridspec(2, 12)
    _draw_widths(figure.add_subplot(grid[0, :7]), run.plan["groups"], PRINT)
    _draw_kept(figure.add_subplot(grid[0, 7:]), result, PRINT)
    for ending, place in (("loss", grid[1, :6]), ("accuracy", grid[1, 6:])):
        _draw_curve(figure.add_subplot(place), run.records, ending, PRINT)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def short_names(names: Sequence[str]) -> list[str]:
    """Names of groups without what all of them share, where they stay different.

    Example:
        >>> short_names(["params/conv1/kernel", "params/block1/conv1/kernel"])
        ['conv1', 'block1/conv1']
    """
    short = [name.removeprefix("params/").removesuffix("/kernel") for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)


def _style(axes: Axes, title: str, palette: Palette) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=palette.ink, pad=18)
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(palette.line)
    axes.tick_params(colors=palette.muted, labelsize=9, length=0)
    axes.set_axisbelow(True)


def _draw_curve(
    axes: Axes, records: Sequence[Mapping[str, Any]], ending: str, palette: Palette
) -> None:
    _style(axes, ending.capitalize(), palette)
    found = curves.series(records, ending)
    if not found:
        axes.set_axis_off()
        axes.text(0.5, 0.5, NOT_MEASURED, ha="center", color=palette.muted)
        return
    metrics = list(dict.fromkeys(series.metric for series in found))
    colours = (palette.slim, palette.second, palette.muted, palette.ink)
    for series in found:
        few = len(series.steps) < 20
        axes.plot(
            series.steps,
            series.values,
            color=colours[metrics.index(series.metric) % len(colours)],
            linewidth=1.6,
            marker="o" if few else None,
            markersize=3,
            label=series.metric if series.stage == found[0].stage else None,
        )
    axes.grid(axis="y", color=palette.line, linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if ending == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_xlabel("step", fontsize=9, color=palette.muted)
    _mark_stages(axes, curves.spans(records, ending), palette)
    if len(metrics) > 1:
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            *zip(*dict(zip(labels, zip(handles, labels))).values()),
            frameon=False,
            fontsize=9,
            labelcolor=palette.muted,
        )


def _mark_stages(axes: Axes, spans: Sequence[curves.Span], palette: Palette) -> None:
    end = max(span.stop for span in spans) or 1
    axes.set_xlim(-0.01 * end, 1.01 * end)
    for span in spans:
        if span.start:
            axes.axvline(span.start, color=palette.muted, linewidth=0.8, linestyle=(0, (2, 3)))
        if span.stop - span.start > 0.1 * end:  # narrower ones have no room for a name
            axes.annotate(
                span.stage,
                (span.start, 1),
                (3, 4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                fontsize=9,
                color=palette.muted,
            )


def _draw_widths(axes: Axes, groups: Mapping[str, Mapping[str, Any]], palette: Palette) -> None:
    sizes = [group["size"] for group in groups.values()]
    kept = [len(group["keep"]) for group in groups.values()]
    _style(axes, f"Width of {len(sizes)} groups: dense, and kept", palette)
    places = range(len(sizes))
    axes.bar(places, sizes, width=0.78, color=palette.dense)
    axes.bar(places, kept, width=0.78, color=palette.slim)
    axes.grid(axis="y", color=palette.line, linewidth=0.8)
    if len(sizes) <= 24:
        names = [name.rsplit("/", 2) for name in short_names(list(groups))]
        axes.set_xticks(places, ["/".join(name[-2:]) for name in names], rotation=35, ha="right")
        for place, size, width in zip(places, sizes, kept):
            axes.annotate(
                f"{width}", (place, size), (0, 2), textcoords="offset points", ha="center",
                fontsize=8, color=palette.ink,
            )
    else:
        axes.set_xlabel("group, in order of execution", fontsize=9, color=palette.muted)


def _draw_kept(axes: Axes, result: Result, palette: Palette) -> None:
    dense, slim = result["dense"], result["pruned"]
    bars = {
        "accuracy": ratio(slim["accuracy"], dense["accuracy"]),
        "MACs": result["achieved"]["macs"],
        "parameters": result["achieved"]["params"],
        "file (.tflite)": result["achieved"]["bytes"],
    }
    for key, name in _LATENCIES.items():
        before, after = dense["latency_ms"][key], slim["latency_ms"][key]
        bars[name] = ratio(after and after["median"], before and before["median"])
    _style(axes, "Slim net, as a fraction of the dense one", palette)
    places = range(len(bars))
    values = list(bars.values())
    axes.barh(places, [1] * len(bars), height=0.62, color=palette.line)
    colours = [palette.second if name == "accuracy" else palette.slim for name in bars]
    axes.barh(places, [value or 0 for value in values], height=0.62, color=colours)
    for place, value in zip(places, values):
        axes.annotate(
            percent(value), (max(1, value or 0), place), (6, 0), textcoords="offset points",
            va="center", fontsize=9, color=palette.ink if value is not None else palette.muted,
        )
    axes.set_yticks(places, list(bars))
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.set_xlim(0, 1.22 * max([1, *(value or 0 for value in values)]))
    axes.spines["bottom"].set_visible(False)

"""Pictures: training curves for the page, and one summary of the run as PNG."""

import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jprune.report import curves, text
from jprune.report.markup import Markup
from jprune.report.read import Run
from jprune.report.schema import Result


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
# Placeholders that the page replaces by its own colours, which differ in light and dark.
SCREEN = Palette(*(f"#00000{number}" for number in range(1, 8)))
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
    file = io.StringIO()
    with settings(ending):
        # A `Figure` of its own, not `pyplot`: no global state, no display, nothing to close.
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        figure.patch.set_alpha(0)
        _draw_curve(figure.subplots(), records, ending, SCREEN)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return for_page(file.getvalue(), ending)


def numbered(svg: str) -> str:
    """Renames the identifiers of a picture to numbers in order of occurrence.

    Matplotlib makes those of markers and clips from all bits of their coordinates, of which the
    last ones differ from processor to processor.

    Args:
        svg: as Matplotlib writes it.

    Example:
        >>> numbered('<use href="#m0123456789"/><path id="m0123456789"/>')
        '<use href="#m0"/><path id="m0"/>'
    """
    identifiers = dict.fromkeys(re.findall(r'id="([mp][0-9a-f]{10})"', svg))
    names = {old: f"{old[0]}{number}" for number, old in enumerate(identifiers)}
    return re.sub(r"\b[mp][0-9a-f]{10}\b", lambda match: names.get(match[0], match[0]), svg)


def for_page(svg: str, name: str) -> Markup:
    """Makes a picture in the colours of `SCREEN` part of a page, with the page's colours and font.

    Args:
        svg: as Matplotlib writes it.
        name: of the picture; no other of the page has it.

    Returns:
        The `<svg>` element.
    """
    # Without the XML head, which may stand at the beginning of a file only.
    svg = numbered(svg[svg.index("<svg") :])
    # #000001 ... #000007 occur nowhere else in Matplotlib's output, so text can be replaced.
    for colour, value in SCREEN._asdict().items():
        svg = svg.replace(value, f"var(--{colour})")
    # Text stays text (`svg.fonttype`), so the page's font can take its place.
    svg = re.sub(r"'DejaVu Sans'[^;\"<]*sans-serif", "var(--sans)", svg)
    # Identifiers are the whole page's, and Matplotlib numbers its own from 1 in every picture.
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    # Width and height go: the page scales a picture by its `viewBox`.
    svg = re.sub(r'^<svg[^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg)
    return Markup(svg)


def summary(run: Run) -> bytes:
    """The run in one picture: widths, fractions kept, training curves.

    Returns:
        A PNG of 1800 by 1050 pixels.
    """
    result = run.result
    accuracy = [text.percent(result[net]["accuracy"]) for net in ("dense", "pruned")]
    pads = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.08)
    file = io.BytesIO()
    with settings("summary"):
        figure = Figure(figsize=(12, 7), dpi=150, layout=pads, facecolor=PRINT.paper)
        figure.suptitle(
            f"{result['method']} on {result['model']}, {result['data']}: "
            f"{text.budget(result['requested'])}, seed {result['seed']}\n"
            f"test accuracy {accuracy[0]} dense, {accuracy[1]} slim",
            x=0.012,
            ha="left",
            fontsize=13,
            linespacing=1.5,
            color=PRINT.ink,
        )
        # Two subfigures: the long names below the upper bars would else shrink the curves too.
        (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, hspace=0.06)
        widths, fractions = upper.subplots(1, 2, width_ratios=(3, 2))
        _draw_widths(widths, run.plan["groups"], PRINT)
        _draw_kept(fractions, result, PRINT)
        for axes, ending in zip(lower.subplots(1, 2), ("loss", "accuracy")):
            _draw_curve(axes, run.records, ending, PRINT)
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


@contextlib.contextmanager
def settings(salt: str) -> Iterator[None]:
    """Matplotlib's defaults instead of the user's: equal runs give equal pictures."""
    own: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": salt,  # identifiers would be random
        "text.parse_math": False,  # a dollar in a name is no formula
    }
    with style.context("default"), mpl.rc_context(own):
        yield


def short_names(names: Sequence[str]) -> list[str]:
    """Names of groups without `params/` and `/kernel`, if the short names are still different.

    Example:
        >>> short_names(["params/conv1/kernel", "params/block1/conv1/kernel"])
        ['conv1', 'block1/conv1']
    """
    short = [name.removeprefix("params/").removesuffix("/kernel") for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)


def bare(axes: Axes, title: str, palette: Palette) -> None:
    """Removes all lines around the axes but the lower one, and sets the title."""
    axes.set_title(title, loc="left", fontsize=11, color=palette.ink, pad=18)
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(palette.line)
    axes.tick_params(colors=palette.muted, labelsize=9, length=0)
    axes.set_axisbelow(True)


def _draw_curve(
    axes: Axes, records: Sequence[Mapping[str, Any]], ending: str, palette: Palette
) -> None:
    bare(axes, ending.capitalize(), palette)
    series_of_net = curves.series(records, ending)
    if not series_of_net:
        axes.set_axis_off()
        axes.text(0.5, 0.5, text.NOT_MEASURED, ha="center", color=palette.muted)
        return
    metrics = list(dict.fromkeys(series.metric for series in series_of_net))
    for metric, colour in zip(
        metrics, itertools.cycle((palette.slim, palette.second, palette.muted))
    ):
        of_metric = [series for series in series_of_net if series.metric == metric]
        # Short runs: a line through two points is hardly seen without marks.
        few = sum(len(series.steps) for series in of_metric) < 20
        for series in of_metric:
            axes.plot(
                series.steps,
                series.values,
                color=colour,
                linewidth=1.6,
                marker="o" if few else None,
                markersize=3,
                label=metric.replace("_", " ") if series is of_metric[0] else None,
            )
    axes.grid(axis="y", color=palette.line, linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if ending == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_xlabel("step", fontsize=9, color=palette.muted)
    _mark_stages(axes, curves.spans(records, ending), palette)
    if len(metrics) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=palette.muted)


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
    widths = [len(group["keep"]) for group in groups.values()]
    bare(axes, f"Width of {len(sizes)} groups: dense, and kept", palette)
    places = range(len(sizes))
    axes.bar(places, sizes, width=0.78, color=palette.dense)
    axes.bar(places, widths, width=0.78, color=palette.slim)
    axes.grid(axis="y", color=palette.line, linewidth=0.8)
    # More names than these would overlap at this width.
    if len(sizes) <= 24:
        names = [name.rsplit("/", 2) for name in short_names(list(groups))]
        axes.set_xticks(places, ["/".join(name[-2:]) for name in names], rotation=35, ha="right")
        for place, size, width in zip(places, sizes, widths):
            axes.annotate(
                f"{width}",
                (place, size),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=palette.ink,
            )
    else:
        axes.set_xlabel("group, in order of execution", fontsize=9, color=palette.muted)


def _draw_kept(axes: Axes, result: Result, palette: Palette) -> None:
    dense, slim = result["dense"], result["pruned"]
    bars = {
        "MACs": result["achieved"]["macs"],
        "parameters": result["achieved"]["params"],
        "file (.tflite)": result["achieved"]["bytes"],
    }
    for key, name in _LATENCIES.items():
        before, after = dense["latency_ms"][key], slim["latency_ms"][key]
        bars[name] = text.ratio(after and after["median"], before and before["median"])
    bare(axes, "Slim net, as a fraction of the dense one", palette)
    places = range(len(bars))
    values = list(bars.values())
    axes.barh(places, [1] * len(bars), height=0.62, color=palette.line)
    axes.barh(places, [value or 0 for value in values], height=0.62, color=palette.slim)
    for place, value in zip(places, values):
        axes.annotate(
            text.percent(value),
            (max(1, value or 0), place),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=palette.ink if value is not None else palette.muted,
        )
    axes.set_yticks(places, list(bars))
    # The first bar on top, as in the table of the page.
    axes.invert_yaxis()
    axes.set_xticks([])
    # A net may have become slower than the dense one: then its bar is longer than 1. A fifth is for
    # the numbers behind the bars.
    axes.set_xlim(0, 1.22 * max([1, *(value or 0 for value in values)]))
    axes.spines["bottom"].set_visible(False)

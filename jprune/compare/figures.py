"""Pictures of a comparison: the metric against MACs and against latency, method by method."""

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from jprune.compare.protocol import BASELINES
from jprune.compare.summary import FRONTS, METRICS, Cell, Comparison, Spread
from jprune.compare.words import capital, counted
from jprune.report.figures import PRINT, SCREEN, Palette, bare, for_page, numbered, settings
from jprune.report.markup import Markup

# Readable on white and on black, and by the colour-blind; baselines have muted colours.
_COLOURS = ("#0f9488", "#d97706", "#6366f1", "#db2777", "#65a30d", "#0284c7", "#a16207", "#9333ea")
_BASELINES = {"random": "#98a2b3", "l1": "#667085", "scratch_e": "#b08968", "scratch_b": "#8a6240"}
_MARKERS = "osD^vPX*"
_WIDE = 150
"""Characters in a line of the title."""
_WARNING = "#b42318"
_COARSE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_FINE = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)
PANELS = 3.8
"""Height of the curves, in inches."""


class Look(NamedTuple):
    """How a method is drawn."""

    colour: str
    marker: str
    dashes: Literal["-", "--"]


def png(comparisons: Sequence[Comparison]) -> bytes:
    """All comparisons in one PNG, one below the other; unfair ones are labelled in their titles."""
    return _drawn(comparisons, "png", PRINT, titled=True).getvalue()


def svg(comparisons: Sequence[Comparison]) -> str:
    """The same picture as SVG; equal rows give equal bytes."""
    return numbered(_drawn(comparisons, "svg", PRINT, titled=True).getvalue().decode())


def curves(comparison: Comparison, name: str) -> Markup | None:
    """One comparison for a page, in its colours.

    Args:
        comparison: what is drawn.
        name: of the picture; no other of the page has it.

    Returns:
        The `<svg>` element; None where there is no point to draw.
    """
    if not any(_points(comparison.cells, cost, comparison.metric) for cost in FRONTS):
        return None
    drawn = _drawn([comparison], "svg", SCREEN, titled=False)
    return for_page(drawn.getvalue().decode(), name)


def _drawn(
    comparisons: Sequence[Comparison],
    form: Literal["png", "svg"],
    palette: Palette,
    titled: bool,
) -> io.BytesIO:
    file = io.BytesIO()
    heights = [PANELS + (_title_height(each) if titled else 0) for each in comparisons]
    with settings("comparison"):
        # A `Figure` of its own and not `pyplot`, which keeps global state and wants a display.
        figure = Figure(
            figsize=(11, sum(heights)),
            dpi=150,
            layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
            facecolor=palette.paper if titled else "none",
        )
        # Nested subfigures: each comparison has a title, curves and a legend of its own, and the
        # layout keeps their sizes apart.
        parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, comparison in zip(parts, comparisons):
            _draw(part, comparison, palette, titled)
        # A drawing of its own says which Matplotlib made it: another may draw it otherwise.
        about: dict[str, Any] = {"Software": None} if form == "png" else {"Date": None}
        about |= {} if titled else {"Creator": None}
        figure.savefig(file, format=form, metadata=about)
    return file


def _title_height(comparison: Comparison) -> float:
    """Height of the title, in inches."""
    return 0.4 + 0.17 * len(_labels(comparison))


def _labels(comparison: Comparison) -> list[str]:
    """The lines that say that a comparison is not fair, and why."""
    if not comparison.breaches:
        return []
    reasons = "; ".join(breach.says for breach in comparison.breaches)
    return textwrap.wrap(f"Not a fair comparison: {reasons}", _WIDE)


def _draw(part: SubFigure, comparison: Comparison, palette: Palette, titled: bool) -> None:
    if titled:
        height = _title_height(comparison)
        head, part = part.subfigures(2, 1, squeeze=False, height_ratios=(height, PANELS))[:, 0]
        seeds = counted(comparison.seeds, "seed")
        title = f"{comparison.title}: {seeds}, mean and standard deviation"
        at = {"x": 0.012, "ha": "left", "va": "top"}
        head.text(**at, y=1 - 0.1 / height, s=title, fontsize=13, color=palette.ink)
        label = "\n".join(_labels(comparison))
        head.text(**at, y=1 - 0.38 / height, s=label, fontsize=9, color=_WARNING, linespacing=1.35)
    looks = _looks(comparison.cells)
    # One metric, two costs: the shared axis lets the eye go from one to the other.
    all_axes = part.subplots(1, len(FRONTS), sharey=True)
    for axes, cost in zip(all_axes, FRONTS):
        _draw_cost(axes, comparison, cost, looks, palette)
    handles = [_handle(name, look) for name, look in looks.items()]
    part.legend(
        handles=[*handles, Line2D([], [], **_front(palette), label="Pareto front")],
        loc="outside right center",
        frameon=False,
        fontsize=9,
        labelcolor=palette.ink,
    )


def _looks(cells: Sequence[Cell]) -> dict[str, Look]:
    """{method: look}: methods in bright colours, then the baselines in muted ones."""
    names = list(dict.fromkeys(cell.method for cell in cells if cell.budget))
    own = sorted(name for name in names if name not in BASELINES)
    looks = {
        name: Look(colour, marker, "-")
        # Sorted names get colours in turn: a method has the same colour in all pictures with the
        # same methods.
        for name, colour, marker in zip(own, itertools.cycle(_COLOURS), itertools.cycle(_MARKERS))
    }
    for name in BASELINES:
        if name in names:
            looks[name] = Look(_BASELINES[name], ".", "--" if "scratch" in name else "-")
    return looks


def _front(palette: Palette) -> dict[str, Any]:
    """A broad band behind the curves."""
    return {"color": palette.dense, "linewidth": 7, "alpha": 0.6, "solid_capstyle": "round"}


def _handle(name: str, look: Look) -> Line2D:
    colour, marker, dashes = look
    return Line2D([], [], color=colour, marker=marker, markersize=5, linestyle=dashes, label=name)


def _points(cells: Sequence[Cell], cost: str, metric: str) -> list[tuple[Cell, Spread, Spread]]:
    """Cells that have both numbers, in ascending order of cost."""
    points = []
    for cell in cells:
        price, value = cell.spreads[cost], cell.spreads[metric]
        if price is not None and value is not None:
            points.append((cell, price, value))
    # By cost, or the line of a method would run to and fro.
    return sorted(points, key=lambda point: point[1].mean)


def _draw_cost(
    axes: Axes, comparison: Comparison, cost: str, looks: Mapping[str, Look], palette: Palette
) -> None:
    metric = METRICS[comparison.metric]
    bare(axes, f"{capital(metric.title)} against {METRICS[cost].title}", palette)
    axes.grid(axis="y", color=palette.line, linewidth=0.8)
    points = _points(comparison.cells, cost, comparison.metric)
    if not points:
        axes.set_xticks([])
        axes.text(
            0.5, 0.5, "not measured", ha="center", color=palette.muted, transform=axes.transAxes
        )
        return
    for cell, price, value in points:
        # The dense net: a point, and its level as a dashed line through the whole picture.
        if cell.budget is None:
            axes.axhline(value.mean, color=palette.muted, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.plot(price.mean, value.mean, "s", color=palette.ink, markersize=6)
            axes.annotate(
                "dense",
                (price.mean, value.mean),
                (0, 6),
                fontsize=9,
                textcoords="offset points",
                ha="center",
                color=palette.ink,
            )
    for name, look in looks.items():
        of_method = [
            (price, value) for cell, price, value in points if cell.method == name and cell.budget
        ]
        axes.errorbar(
            [price.mean for price, _ in of_method],
            [value.mean for _, value in of_method],
            yerr=[value.std or 0 for _, value in of_method],
            color=look.colour,
            marker=look.marker,
            linestyle=look.dashes,
            markersize=5,
            linewidth=1.5,
            elinewidth=1,
            capsize=2.5,
        )
    front = [(price.mean, value.mean) for cell, price, value in points if cost in cell.fronts]
    # `points` go by cost, so the front's do too; it lies below the curves.
    axes.plot(*zip(*front), **_front(palette), zorder=1)
    _scale(axes, [price.mean for _, price, _ in points])
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if metric.fraction:
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def _scale(axes: Axes, costs: Sequence[float]) -> None:
    """A logarithmic axis with round fractions on it."""
    axes.set_xscale("log")
    # A twelfth more on both sides, as a factor: the axis is logarithmic.
    axes.set_xlim(min(costs) / 1.12, max(costs) * 1.12)
    # A narrow range would have one coarse tick or none.
    ticks = _FINE if max(costs) < 5 * min(costs) else _COARSE
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))

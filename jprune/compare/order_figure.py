"""One picture of the order of methods: who is ahead of whom, and whether by more than chance."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from jprune.compare.summary import METRICS, Comparison
from jprune.compare.words import budget_text
from jprune.report.figures import PRINT, SCREEN, Palette, for_page, numbered, settings
from jprune.report.markup import Markup

_COLOURS = LinearSegmentedColormap.from_list("ahead", ["#d97706", "#f2f4f7", "#0f9488"])
"""Behind, level, ahead; readable by the colour-blind."""
_CELL, _MARGIN = 0.24, 2.2
"""Side of a square and width of the names, in inches."""


def budgets_of(comparison: Comparison) -> list[tuple[str, float]]:
    """Budgets at which two methods can be ordered."""
    return list(dict.fromkeys(order.budget for order in comparison.orders))


def orders_svg(comparisons: Sequence[Comparison]) -> str:
    """The pictures of all budgets of all comparisons; equal rows give equal bytes.

    Every square is how far the method of its row is ahead of that of its column, in the mean of the
    seeds that both have: its colour is that distance, a dot says that the 95 % interval of the
    paired differences leaves out 0.
    """
    pairs = [(each, budget) for each in comparisons for budget in budgets_of(each)]
    return numbered(_drawn(pairs, PRINT, titled=True).getvalue().decode())


def orders_markup(comparison: Comparison, budget: tuple[str, float], name: str) -> Markup:
    """The picture of one budget for a page, in its colours."""
    drawn = _drawn([(comparison, budget)], SCREEN, titled=False)
    return for_page(drawn.getvalue().decode(), name)


def _drawn(
    pairs: Sequence[tuple[Comparison, tuple[str, float]]], palette: Palette, titled: bool
) -> io.BytesIO:
    file = io.BytesIO()
    sides = [_MARGIN + _CELL * len(_names(*pair)) for pair in pairs]
    with settings("orders"):
        figure = Figure(
            figsize=(max(sides, default=1) + 1, sum(sides) + 0.4 * len(sides)),
            layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
            facecolor=palette.paper if titled else "none",
        )
        parts = figure.subfigures(max(1, len(pairs)), 1, squeeze=False, height_ratios=sides or [1])
        for part, (comparison, budget) in zip(parts[:, 0], pairs):
            axes = part.subplots()
            _matrix(axes, comparison, budget, palette)
            if titled:
                words = f"{comparison.title}, {budget_text(budget)}"
                axes.set_title(words, loc="left", fontsize=10, color=palette.ink)
        about: dict[str, Any] = {"Date": None} | ({} if titled else {"Creator": None})
        figure.savefig(file, format="svg", metadata=about)
    return file


def _names(comparison: Comparison, budget: tuple[str, float]) -> list[str]:
    """Methods in the order of the table; those that no order names are left out."""
    orders = [order for order in comparison.orders if order.budget == budget]
    ordered = {name for order in orders for name in (order.better, order.worse)}
    cells = (cell.method for cell in comparison.cells if cell.budget == budget)
    return [name for name in cells if name in ordered]


def _matrix(
    axes: Axes, comparison: Comparison, budget: tuple[str, float], palette: Palette
) -> None:
    names = _names(comparison, budget)
    place = {name: number for number, name in enumerate(names)}
    ahead = np.full((len(names), len(names)), np.nan)
    dots: list[tuple[int, int]] = []
    for order in comparison.orders:
        found = comparison.differences.get((budget, order.better, order.worse))
        if order.budget != budget or found is None:
            continue
        row, column = place[order.better], place[order.worse]
        ahead[row, column], ahead[column, row] = found.mean, -found.mean
        dots += [(column, row), (row, column)] if found.apart else []
    # The largest distance but for a twentieth, so that one failed method does not fade the others.
    sizes = np.abs(ahead[np.isfinite(ahead)])
    limit = float(np.quantile(sizes, 0.95)) if sizes.size else 0.0
    # Squares and not an image, which a page would have to load.
    edges = np.arange(len(names) + 1) - 0.5
    shown = np.ma.masked_invalid(ahead)
    axes.pcolormesh(edges, edges, shown, cmap=_COLOURS, vmin=-(limit or 1), vmax=limit or 1)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    if dots:
        axes.plot(*zip(*dots), ".", color=palette.ink, markersize=3)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, color=palette.ink)
    axes.set_yticks(range(len(names)), names, fontsize=8, color=palette.ink)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    unit = " points" if METRICS[comparison.metric].fraction else ""
    scale = 100 if unit else 1
    axes.set_xlabel(
        f"row ahead of column; full colour at {scale * limit:.3g}{unit}",
        fontsize=8,
        color=palette.muted,
    )

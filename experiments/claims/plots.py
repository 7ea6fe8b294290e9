"""What the figures of claims share: most are `curves`, a list of `Curve` and of `Level`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from experiments.claims.statements import Rows, Value, select
from experiments.rows import Row
from jprune.report.figures import PRINT

Plot = Callable[[Rows, Axes], None]
"""Draws rows on axes that are titled already."""


class Style(NamedTuple):
    """How an arm is drawn."""

    label: str
    colour: str
    """Of `PRINT`."""
    line: str = "-"


def line(axes: Axes, x: Sequence[float], y: Sequence[float], style: Style, **more: Any) -> None:
    """A line with points; `more` as of `Axes.plot`."""
    usual: dict[str, Any] = {
        "marker": "o",
        "markersize": 3,
        "linewidth": 1.2,
        "linestyle": style.line,
    }
    axes.plot(x, y, color=getattr(PRINT, style.colour), label=style.label, **{**usual, **more})


def spread(
    axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], style: Style, **more: Any
) -> None:
    """A line of means with standard deviations over seeds; `more` as of `Axes.errorbar`."""
    usual: dict[str, Any] = {"marker": "o", "markersize": 3, "capsize": 2, "linewidth": 1.2}
    usual |= {"linestyle": style.line, "label": style.label}
    axes.errorbar(
        x,
        [fmean(each) for each in values],
        [stdev(each) if each[1:] else 0 for each in values],
        color=getattr(PRINT, style.colour),
        **{**usual, **more},
    )


def quartiles(axes: Axes, values: np.ndarray, style: Style) -> None:
    """The median of values [samples, places] over their places, and a band to the quartiles."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    places = np.arange(values.shape[1])
    line(axes, places.tolist(), middle.tolist(), style, marker=None)
    shade = getattr(PRINT, style.colour)
    axes.fill_between(places, low, high, color=shade, alpha=0.15, linewidth=0)


def logarithmic(axes: Axes, names: str, plain: bool = False) -> None:
    """Logarithmic scales of "x", "y" or "xy", their numbers plain or as powers."""
    for name in names:
        axes.set(**{f"{name}scale": "log"})
        if plain:
            getattr(axes, f"{name}axis").set_major_formatter("{x:g}")


def level(axes: Axes, y: float, label: str = "dense", colour: str = "line", **more: Any) -> None:
    """A line across, such as the dense net's accuracy."""
    usual: dict[str, Any] = {"linewidth": 0.8, "label": label}
    axes.axhline(y, color=getattr(PRINT, colour), **{**usual, **more})


def finish(axes: Axes, x: str, y: str, size: int = 8, **more: Any) -> None:
    """Names the axes and what is drawn; `more` as of `Axes.legend`."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, fontsize=size, **more)


class Level(NamedTuple):
    """A value that is drawn as a line across."""

    value: Value | float
    label: str = "dense"
    colour: str = "line"
    more: Mapping[str, Any] = {}
    """As of `Axes.axhline`."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values, each at its place; those that no row has are left out.

    Attributes:
        style: how the line is drawn.
        x: the places, numbers or means of values.
        y: the values.
        bars: whether standard deviations over seeds are drawn as well.
        more: as of `Axes.errorbar`; without bars as of `Axes.plot`.
    """

    style: Style
    x: Sequence[Value | float]
    y: Sequence[Value]
    bars: bool = True
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def draw(self, rows: Rows, axes: Axes) -> None:
        """Draws it."""
        there = [(x, y.list(rows)) for x, y in zip(self.x, self.y) if y.list(rows)]
        if not there:
            return
        x = [place.mean(rows) if isinstance(place, Value) else place for place, _ in there]
        if self.bars:
            spread(axes, x, [values for _, values in there], self.style, **self.more)
        else:
            line(axes, x, [fmean(values) for _, values in there], self.style, **self.more)


def curves(
    drawn: Sequence[Curve],
    x: str,
    y: str,
    *,
    across: Sequence[Level] = (),
    log: str = "",
    plain: bool = False,
    falls: bool = False,
    ticks: Mapping[float, str] | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    **legend: Any,
) -> Plot:
    """A figure of curves.

    Args:
        drawn: the curves.
        x: name of the axis.
        y: name of the axis.
        across: values that have no place.
        log: "x", "y" or both: axes whose scale is logarithmic.
        plain: whether their numbers are written out, and not as powers.
        falls: whether x goes from large to small.
        ticks: {x: label}.
        limits: of y.
        legend: as of `finish`.
    """

    def plot(rows: Rows, axes: Axes) -> None:
        for curve in drawn:
            curve.draw(rows, axes)
        for value, label, colour, more in across:
            height = value.mean(rows) if isinstance(value, Value) else value
            level(axes, height, label, colour, **more)
        logarithmic(axes, log, plain)
        if falls:
            axes.invert_xaxis()
        if ticks is not None:
            axes.set_xticks([*ticks], [*ticks.values()])
            axes.xaxis.set_minor_formatter("")
        axes.set_ylim(*limits)
        finish(axes, x, y, **legend)

    return plot


def bars(of: Mapping[str, tuple[str, Sequence[Value]]], kinds: Sequence[str], y: str) -> Plot:
    """A figure of bars, side by side by kind.

    Args:
        of: {arm: (colour of `PRINT`, a value of every kind)}.
        kinds: their names.
        y: name of the axis.
    """

    def plot(rows: Rows, axes: Axes) -> None:
        for number, (arm, (colour, values)) in enumerate(of.items()):
            lists = [value.list(rows) for value in values]
            axes.bar(
                [place + 0.2 * number for place in range(len(kinds))],
                [fmean(each) for each in lists],
                0.18,
                yerr=[stdev(each) if each[1:] else 0 for each in lists],
                color=getattr(PRINT, colour),
                label=arm,
            )
        axes.set_xticks([place + 0.3 for place in range(len(kinds))], kinds)
        finish(axes, "", y)

    return plot


def traces(
    of: Sequence[tuple[Style, Callable[[Row], Sequence[float]], Mapping[str, Any]]],
    x: str,
    y: str,
    *,
    log: str = "",
    ticks: Sequence[str] = (),
    **more: Any,
) -> Plot:
    """A figure with a line a row: numbers over their places, 1, 2, ...

    Args:
        of: (style, numbers of a row, what its rows say).
        x: name of the axis.
        y: name of the axis.
        log: "x", "y" or both: axes whose scale is logarithmic.
        ticks: names of the places, which are few.
        more: as of `finish`.
    """

    def plot(rows: Rows, axes: Axes) -> None:
        for style, numbers, where in of:
            for number, row in enumerate(select(rows, **where)):
                values = numbers(row)
                named = style._replace(label="_") if number else style
                size = {"markersize": 4} if ticks else {}
                line(axes, range(1, len(values) + 1), values, named, **size)
        logarithmic(axes, log)
        if ticks:
            axes.set_xticks([*range(1, len(ticks) + 1)], ticks)
            axes.set_xlim(0.7, len(ticks) + 0.3)
        finish(axes, x, y, **more)

    return plot

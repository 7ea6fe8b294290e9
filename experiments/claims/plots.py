"""What the figures of claims share."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from jprune.report.figures import PRINT


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


def level(axes: Axes, y: float, label: str = "dense", colour: str = "line", **more: Any) -> None:
    """A line across, such as the dense net's accuracy."""
    usual: dict[str, Any] = {"linewidth": 0.8, "label": label}
    axes.axhline(y, color=getattr(PRINT, colour), **{**usual, **more})


def finish(axes: Axes, x: str, y: str, size: int = 8, **more: Any) -> None:
    """Names the axes and what is drawn; `more` as of `Axes.legend`."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, fontsize=size, **more)

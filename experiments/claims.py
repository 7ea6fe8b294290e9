"""What a module of `experiments.mechanisms` says of its rows, and the page that comes of it.

Such a module defines `CLAIM`; its rows are in `results/mechanisms/<first part of its name>.jsonl`.
`make tables` makes the pages.
"""

import importlib
import io
import pkgutil
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import mechanisms, rows
from jprune.compare.words import device_text
from jprune.report.figures import PRINT, bare, settings
from jprune.report.markup import Markup


class Finding(NamedTuple):
    """One claim of a paper, beside what came out here."""

    claim: str
    paper: str
    """Its figure."""
    ours: str
    """Our figure, with its standard deviation over seeds."""
    holds: bool


class Claim(NamedTuple):
    """How the rows of a module are read."""

    title: str
    findings: Callable[[Sequence[rows.Row]], list[Finding]]
    draw: Callable[[Sequence[rows.Row], Axes], None]
    """Draws the rows on axes that are titled already."""
    remarks: str = ""
    """What differs from the paper, and what was tried where a claim does not hold."""


def find(stem: str) -> Claim:
    """The claim whose rows are in a file of this name.

    Example:
        >>> find("e09").title
        'E9: winning tickets [9]'
    """
    names = [m.name for m in pkgutil.iter_modules(mechanisms.__path__) if m.name != "__init__"]
    (name,) = (name for name in names if name.partition("_")[0] == stem)
    return importlib.import_module(f"experiments.mechanisms.{name}").CLAIM


def shown(values: Iterable[float], digits: int = 2, unit: str = "") -> str:
    """Mean and standard deviation of the sample.

    Example:
        >>> shown([1.0, 3.0], unit=" %"), shown([2.0])
        ('2.00 ± 1.41 %', '2.00')
    """
    known = list(values)
    mean = f"{statistics.fmean(known):.{digits}f}"
    return f"{mean} ± {statistics.stdev(known):.{digits}f}{unit}" if known[1:] else mean + unit


def page(stem: str, found: Sequence[rows.Row]) -> str:
    """The page of a claim in Markdown."""
    claim = find(stem)
    lines = [
        (finding.claim, finding.paper, finding.ours, "holds" if finding.holds else "does not hold")
        for finding in claim.findings(found)
    ]
    last = found[-1]
    versions = ", ".join(f"{name} {v}" for name, v in last["versions"].items() if v)
    commits = ", ".join(sorted({row["commit"][:10] for row in found}))
    return "\n".join(
        [
            f"# {claim.title}\n",
            f"![{claim.title}]({stem}.svg)\n",
            rows.markdown(("claim", "paper", "here", ""), lines),
            *([claim.remarks + "\n"] if claim.remarks else []),
            f"{len({row['seed'] for row in found})} seeds; mean and standard deviation.\n",
            f"Device: {device_text(last['device'])}. Versions: {versions}. Commit: {commits}.\n",
            f"```sh\n{last['command']}\n```\n",
        ]
    )


def svg(stem: str, found: Sequence[rows.Row]) -> str:
    """The figure of a claim; equal rows give equal bytes."""
    claim, file = find(stem), io.StringIO()
    with settings(stem):
        figure = Figure(figsize=(7, 4), layout="constrained", facecolor=PRINT.paper)
        axes = figure.subplots()
        bare(axes, claim.title, PRINT)
        claim.draw(found, axes)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return Markup(file.getvalue())

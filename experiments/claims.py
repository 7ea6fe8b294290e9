"""What a module of `experiments.mechanisms` says of its rows, and the page that comes of it.

Such a module defines `CLAIM`; its rows are in `results/mechanisms/<first part of its name>.jsonl`.
`make tables` makes the pages.
"""

import dataclasses
import importlib
import io
import pkgutil
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import mechanisms, rows
from jprune.compare.words import counted, device_text
from jprune.report.figures import PRINT, bare, numbered, settings
from jprune.report.markup import Markup


class Finding(NamedTuple):
    """One claim of a paper, beside what came out here."""

    claim: str
    paper: str
    """Its figure."""
    ours: str
    """Our figure, with its standard deviation over seeds."""
    holds: bool | None
    """None: it is told, and nothing was expected of it."""


WORDS = {True: "holds", False: "does not hold", None: "told"}


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


class Given(Protocol):
    """The settings of a module, a dataclass."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of everything that is drawn."""
        ...

    @property
    def smoke(self) -> bool:
        """Whether it is only tried out: one seed, and nothing is written."""
        ...


def seeds_of(settings: Given) -> tuple[int, ...]:
    """The seeds that are run."""
    return settings.seeds[:1] if settings.smoke else settings.seeds


IN_ROWS = ("seeds", "nets", "macs")
"""Settings that rows say themselves, each its own."""


def collect(path: Path, about: rows.Row, settings: Any, made: Iterable[rows.Row]) -> list[rows.Row]:
    """Shows rows as they come, and adds them to a file, with all that their numbers depend on.

    Args:
        path: the file.
        about: what all rows have in front: the claim, and the numbers of the papers.
        settings: a `Given`, whose values are in every row.
        made: the rows, each when it is known.

    Returns:
        The rows, whole.
    """
    given = {k: v for k, v in dataclasses.asdict(settings).items() if k not in IN_ROWS}
    found = []
    for row in made:
        print(*(f"{name} {_short(v)} " for name, v in row.items() if _plain(v)), flush=True)
        found.append({**about, **given, **row, **rows.provenance()})
        if not settings.smoke:
            rows.append(path, found[-1])
    return found


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finished(found: Sequence[rows.Row]) -> tuple[list[rows.Row], list[int]]:
    """Rows of seeds that are done, and the seeds that are not: those with fewer rows than most.

    Example:
        >>> finished([{"seed": 0}, {"seed": 0}, {"seed": 1}, {"seed": 1}, {"seed": 2}])[1]
        [2]
    """
    counts = Counter(row["seed"] for row in found)
    usual = statistics.mode(counts.values())
    short = sorted(seed for seed, count in counts.items() if count < usual)
    return [row for row in found if row["seed"] not in short], short


def page(stem: str, found: Sequence[rows.Row]) -> str:
    """The page of a claim in Markdown."""
    claim, (found, short) = find(stem), finished(found)
    lines = [
        (finding.claim, finding.paper, finding.ours, WORDS[finding.holds])
        for finding in claim.findings(found)
    ]
    seeds = {row["seed"] for row in found}
    devices = "; ".join(sorted({device_text(row["device"]) for row in found}))
    stacks = (
        ", ".join(f"{name} {v}" for name, v in each["versions"].items() if v) for each in found
    )
    versions = "; ".join(dict.fromkeys(stacks))
    commits = ", ".join(sorted({row["commit"][:10] for row in found}))
    return "\n".join(
        [
            f"# {claim.title}\n",
            f"![{claim.title}]({stem}.svg)\n",
            rows.markdown(("claim", "paper", "here", ""), lines),
            *([claim.remarks + "\n"] if claim.remarks else []),
            f"{counted(len(seeds), 'seed')}; mean and standard deviation.\n",
            *(f"Seed {seed} is not finished, and was left out.\n" for seed in short),
            f"Device: {devices}. Versions: {versions}. Commit: {commits}.\n",
            "\n".join(("```sh", *dict.fromkeys(row["command"] for row in found), "```\n")),
        ]
    )


def svg(stem: str, found: Sequence[rows.Row]) -> str:
    """The figure of a claim; equal rows give equal bytes."""
    claim, file, (found, _) = find(stem), io.StringIO(), finished(found)
    with settings(stem):
        figure = Figure(figsize=(7, 4), layout="constrained", facecolor=PRINT.paper)
        axes = figure.subplots()
        bare(axes, claim.title, PRINT)
        claim.draw(found, axes)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return Markup(numbered(file.getvalue()))

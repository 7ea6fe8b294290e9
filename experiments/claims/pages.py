"""The page and the figure of a claim, made from its rows: `make tables`."""

import io
import re
import statistics
from collections import Counter

from matplotlib.figure import Figure

from experiments import rows as files
from experiments.claims.claim import find
from experiments.claims.statements import Rows
from jprune.compare.words import counted, device_text
from jprune.report.figures import PRINT, bare, numbered, settings
from jprune.report.markup import Markup

WORDS = {True: "holds", False: "does not hold", None: "told"}


def finished(rows: Rows) -> tuple[list[files.Row], list[int]]:
    """Rows of seeds that are done, and the seeds that are not: those with fewer rows than most.

    Example:
        >>> finished([{"seed": 0}, {"seed": 0}, {"seed": 1}, {"seed": 1}, {"seed": 2}])[1]
        [2]
    """
    counts = Counter(row["seed"] for row in rows)
    usual = statistics.mode(counts.values())
    short = sorted(seed for seed, count in counts.items() if count < usual)
    return [row for row in rows if row["seed"] not in short], short


def command(said: str) -> str:
    """The command of a row; claims were modules of another name once.

    Example:
        >>> command("python -m experiments.mechanisms.e13_ssl --seeds 0")
        'python -m experiments.claims e13 --seeds 0'
    """
    return re.sub(r"experiments\.mechanisms\.([^\W_]+)\w*", r"experiments.claims \1", said)


def page(stem: str, rows: Rows) -> str:
    """The page of a claim in Markdown."""
    claim, (rows, short) = find(stem), finished(rows)
    remarks = claim.remarked(rows)
    lines = [
        (finding.claim, finding.paper, finding.ours, WORDS[finding.holds])
        for finding in claim.findings(rows)
    ]
    seeds = {row["seed"] for row in rows}
    devices = "; ".join(sorted({device_text(row["device"]) for row in rows}))
    stacks = (
        ", ".join(f"{name} {v}" for name, v in each["versions"].items() if v) for each in rows
    )
    versions = "; ".join(dict.fromkeys(stacks))
    commits = ", ".join(sorted({row["commit"][:10] for row in rows}))
    commands = dict.fromkeys(command(row["command"]) for row in rows)
    return "\n".join(
        [
            f"# {claim.title}\n",
            f"![{claim.title}]({stem}.svg)\n",
            files.markdown(("claim", "paper", "here", ""), lines),
            *([remarks + "\n"] if remarks else []),
            f"{counted(len(seeds), 'seed')}; mean and standard deviation.\n",
            *(f"Seed {seed} is not finished, and was left out.\n" for seed in short),
            f"Device: {devices}. Versions: {versions}. Commit: {commits}.\n",
            "\n".join(("```sh", *commands, "```\n")),
        ]
    )


def svg(stem: str, rows: Rows) -> str:
    """The figure of a claim; equal rows give equal bytes."""
    claim, file, (rows, _) = find(stem), io.StringIO(), finished(rows)
    with settings(stem):
        figure = Figure(figsize=(7, 4), layout="constrained", facecolor=PRINT.paper)
        axes = figure.subplots()
        bare(axes, claim.title, PRINT)
        claim.plot(rows, axes)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return Markup(numbered(file.getvalue()))

"""Every table and figure, from the rows: `make tables`.

    python -m experiments.tables

A file of rows becomes a page in `docs/results` with the table, the figure, the labels of the
protocol and the commands; `docs/results/README.md` lists the pages. Tables of other measurements
stand beside their rows. Nothing is typed, and the same rows give the same bytes: a test makes all
of it again and compares.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import rows as files
from experiments import run
from experiments.claims.claim import find
from experiments.claims.pages import finished, page, svg
from jprune import compare, errors
from jprune.compare import METRICS, Comparison, figures, order_figure
from jprune.compare.beside import CHOICE
from jprune.compare.page import (
    apart_text,
    changes_text,
    front_text,
    paired_text,
    spread_text,
    steps_text,
)
from jprune.compare.summary import Cell
from jprune.compare.words import budget_text, device_text
from jprune.report import text

PAGES = Path(__file__).parent.parent / "docs" / "results"
ORDER = (
    "Row ahead of column, in the mean of the seeds that both have. A dot: the 95 % interval of the "
    "differences, seed by seed, leaves out 0."
)
AHEAD = {"l1": "ahead of L1:", "random": "ahead of random:", CHOICE: "choice:"}
"""Columns that are there where a row stands beside a method."""
TITLES = (
    *("kept", "method", "test accuracy:", "before fine-tuning:", "MACs:", "parameters:"),
    *("latency:", ".tflite:", "TFLite, batch 1:", "pruning:", "seeds:", "front"),
)


def main(results: Path = files.RESULTS, pages: Path = PAGES) -> list[Path]:
    """Makes all tables and figures again.

    Args:
        results: folder of the rows.
        pages: folder of the pages.

    Returns:
        The files that were written.

    Raises:
        ArgumentError: two comparisons of one name.
        CheckpointError: a row that is damaged, or of another schema.
    """
    written, made, tested = [], {}, {}
    for rows in sorted(results.rglob("*.jsonl")):
        family = rows.relative_to(results).parts[0]
        if family in OTHERS:
            written += OTHERS[family](rows)
            continue
        if rows.stem in {**made, **tested}:
            raise errors.ArgumentError(
                f"two comparisons have the name {rows.stem}; rename one: pages are named after it."
            )
        if family == "claims":
            tested[rows.stem] = files.read(rows)
            written += write_claim(pages, rows.stem, tested[rows.stem])
            continue
        found = compare.read([rows])
        made[rows.stem] = compare.summarize(found.rows, notes=found.notes)
        written += write_page(pages, rows.stem, made[rows.stem])
    if made or tested:
        files.write(pages / "README.md", index(made, tested))
        written.append(pages / "README.md")
    return written


def _zoo(rows: Path) -> list[Path]:
    if rows.stem != "keras_zoo":
        return []
    from experiments import zoos  # keras takes seconds to import

    files.write(rows.with_suffix(".md"), zoos.table(files.read(rows)))
    return [rows.with_suffix(".md")]


OTHERS: dict[str, Callable[[Path], list[Path]]] = {"engine": _zoo, "benchmarks": lambda rows: []}
"""{folder of results whose rows are no runs: what makes their tables}."""


def write_page(pages: Path, name: str, comparisons: Sequence[Comparison]) -> list[Path]:
    """Writes the page of a comparison, and its figure."""
    files.write(pages / f"{name}.svg", figures.svg(comparisons))
    said = run.remarks(name)
    head = [f"# {name}\n", f"![Curves]({name}.svg)\n", *([f"{said}\n"] if said else [])]
    parts = [*head, *map(section, comparisons)]
    drawn = [pages / f"{name}.svg"]
    if any(each.orders for each in comparisons):
        drawn.append(pages / f"{name}-order.svg")
        files.write(drawn[-1], order_figure.orders_svg(comparisons))
        parts.append(f"![Order over the seeds]({name}-order.svg)\n\n{ORDER}\n")
    files.write(pages / f"{name}.md", "\n".join(parts))
    return [*drawn, pages / f"{name}.md"]


def write_claim(pages: Path, name: str, rows: Sequence[files.Row]) -> list[Path]:
    """Writes the page of a claim that was run again, and its figure."""
    files.write(pages / f"{name}.svg", svg(name, rows))
    files.write(pages / f"{name}.md", page(name, rows))
    return [pages / f"{name}.svg", pages / f"{name}.md"]


def section(comparison: Comparison) -> str:
    """One comparison in Markdown."""
    return "\n".join(
        [
            f"## {comparison.title}\n",
            label(comparison),
            table(comparison),
            "Means and standard deviations over the seeds. Accuracy is that of the test split, "
            "before fine-tuning of the validation split; MACs, parameters and latency (XLA, batch "
            "128) are fractions of the dense net's.\n",
            *order(comparison),
            *(f"- {words}" for words in (*comparison.findings, *comparison.notes)),
            *provenance(comparison),
        ]
    )


def label(comparison: Comparison) -> str:
    """Whether the comparison is fair, and why not."""
    if not comparison.breaches:
        return "It keeps to the [protocol](../compare.md).\n"
    said = "".join(f"> - {breach.says}\n" for breach in comparison.breaches)
    return f"> **Not a fair comparison** by the [protocol](../compare.md):\n>\n{said}"


def table(comparison: Comparison) -> str:
    """Its arms, best first; columns that no row has anything for are left out."""
    cells = comparison.cells
    fraction = METRICS[comparison.metric].fraction
    more = {
        title: [paired_text(cell.ahead.get(name), fraction) for cell in cells]
        for name, title in AHEAD.items()
    }
    settled = [cell.spreads["settled"] for cell in cells]
    more["new statistics:"] = ["" if s is None else text.percent(s.mean) for s in settled]
    more["steps"] = [steps_text(cell.steps) for cell in cells]
    more = {title: column for title, column in more.items() if any(column)}
    lines = [(*_line(cell), *words) for cell, *words in zip(cells, *more.values())]
    return files.markdown((*TITLES, *more), lines)


def _line(cell: Cell) -> tuple[Any, ...]:
    found = cell.spreads

    def shown(name: str, write: Callable[[float], str]) -> str:
        spread = found[name]
        return "" if spread is None else write(spread.mean)

    return (
        "" if cell.budget is None else budget_text(cell.budget).replace(" the ", " "),
        cell.method,
        spread_text(found["accuracy"], METRICS["accuracy"].fraction),
        *(shown(name, text.percent) for name in ("before", "macs", "params", "latency")),
        shown("bytes", lambda size: text.count(size, "B")),
        shown("tflite_b1", text.milliseconds),
        shown("prune_s", text.seconds),
        len(cell.seeds),
        front_text(cell).removeprefix("front: "),
    )


def order(comparison: Comparison) -> Iterator[str]:
    """How often the order of two methods changes over the seeds."""
    for budget in order_figure.budgets_of(comparison):
        orders = [each for each in comparison.orders if each.budget == budget]
        words = f"{changes_text(orders)}; {apart_text(comparison, orders)}"
        yield f"At {budget_text(budget)}, over the seeds, {words}.\n"


def provenance(comparison: Comparison) -> list[str]:
    """Where the numbers are from."""
    made = comparison.provenance
    versions = (
        ", ".join(f"{name} {version}" for name, version in each.items() if version)
        for each in made["versions"]
    )
    commands = "\n".join(command or "" for command in made["commands"])
    return [
        "",
        f"Device: {'; '.join(map(device_text, made['devices']))}. Versions: "
        f"{'; '.join(versions)}. Commit: {', '.join(map(str, made['commits']))}.\n",
        f"```sh\n{commands}\n```\n",
    ]


def index(made: dict[str, Sequence[Comparison]], tested: dict[str, Sequence[files.Row]]) -> str:
    """The list of pages: comparisons, and claims of papers that were run again."""
    lines = [
        (
            f"[{name}]({name}.md)",
            each.title,
            ", ".join(dict.fromkeys(cell.method for cell in each.cells)),
            each.seeds,
            "no" if each.breaches else "yes",
        )
        for name, comparisons in sorted(made.items())
        for each in comparisons
    ]
    again = []
    for name, rows in sorted(tested.items()):
        done, _ = finished(rows)
        found = [finding.holds for finding in find(name).findings(done)]
        held = [holds for holds in found if holds is not None]
        link = f"[{find(name).title}]({name}.md)"
        again.append((link, sum(held), len(held) - sum(held), len({row["seed"] for row in done})))
    comparisons = ("comparison", "net and data", "methods", "seeds:", "fair")
    parts = [
        "# Results\n\nMade by `make tables` from `experiments/results`.\n",
        *([files.markdown(comparisons, lines)] if lines else []),
        *(["## Claims of the papers, run again\n"] if again else []),
        *([files.markdown(("", "hold:", "do not:", "seeds:"), again)] if again else []),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    print("\n".join(map(str, main())))

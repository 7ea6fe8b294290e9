"""What was measured of a method: rows of the repository, where this package lies in one."""

import pathlib
import statistics
from collections.abc import Iterator

from jprune import errors, foreign, survey
from jprune.compare.rows import LINES, Row, read
from jprune.compare.words import budget_text, counted
from jprune.foreign import content
from jprune.report import text

RESULTS = pathlib.Path(__file__).parents[2] / "experiments" / "results"
PAGES = "docs/results"


def measured(method: str, results: pathlib.Path = RESULTS) -> list[str]:
    """Accuracies of a method, and the pages of claims about its papers.

    Args:
        method: name on the command line.
        results: folder of rows; files of claims lie in its `claims`.

    Returns:
        A line for every net, data set and budget: mean and deviation over seeds, those of the
        dense net beside; then one for every claim. Empty where nothing was measured, or where no
        repository is around the package.

    Example:
        >>> measured("l1", pathlib.Path("nowhere"))
        []
    """
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in _rows(results):
        if row["method"] == method and row["budget"] is not None:
            (budget,) = row["budget"].items()
            cell = (row["model"], row["data"], budget_text(budget))
            cells.setdefault(cell, []).append(row)
    lines = [
        f"{model} on {data}, {budget}: {_spread(rows, 'pruned')}, dense "
        f"{_spread(rows, 'dense')} ({counted(len({row['seed'] for row in rows}), 'seed')})"
        for (model, data, budget), rows in cells.items()
    ]
    return [*sorted(lines), *_claims(method, results)]


def _rows(results: pathlib.Path) -> Iterator[Row]:
    """Rows of finished runs, of every file that holds such."""
    for file in sorted(results.glob("*/*.jsonl")):
        try:
            yield from read([file]).rows
        except errors.JpruneError:  # rows of another kind: benchmarks, claims
            continue


def _spread(rows: list[Row], net: str) -> str:
    reached = [row[net]["accuracy"] for row in rows if row[net]["accuracy"] is not None]
    if not reached:
        return text.NOT_MEASURED
    mean = text.percent(statistics.fmean(reached))
    if len(reached) < 2:
        return mean
    return f"{mean.removesuffix(' %')} ± {100 * statistics.stdev(reached):.1f} %"


def _claims(method: str, results: pathlib.Path) -> Iterator[str]:
    refs = {paper.number for paper in survey.papers_of(method)} - {None}
    for file in sorted((results / "claims").glob("*.jsonl")):
        first = foreign.parse(content(file, LINES).split(b"\n", 1)[0])
        if refs & {*first.get("refs", [])}:
            yield f"claim {first['claim']}: {PAGES}/{file.stem}.md"

"""The page of comparisons: one HTML file that opens offline."""

import pathlib
import string
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jprune.compare import figures, order_figure
from jprune.compare.beside import CHOICE, Paired
from jprune.compare.steps import Steps
from jprune.compare.summary import METRICS, Cell, Comparison, Order, Spread, plain
from jprune.compare.words import budget_text, capital, counted, device_text
from jprune.report import text
from jprune.report.markup import Markup, join, table, tag
from jprune.report.tables import value
from jprune.runs.files import PathLike, atomic_write, make_folder, write_json

TABLE_NOTE = (
    "Mean and standard deviation over the seeds. Accuracy is that of the test split, read once at "
    "the end; before fine-tuning, of the validation split, as it is and with new statistics of the "
    "norms. MACs, latency (XLA, batch 128) and file size (.tflite) are fractions of the dense "
    "net's; TFLite is its latency at batch 1. Pruning is the time of the pruning step itself. A "
    "front has what no other net beats in both accuracy and cost. Steps: before pruning, under the "
    "method, after the cut. Ahead of L1 and of random filters that have as many steps after the "
    "cut as the method, seed by seed, with the 95 % interval of the mean difference. Choice: ahead "
    "of random filters in the widths that the method chose: what its choice of filters is worth, "
    "and not that of widths. A click on a heading sorts by it."
)
ORDER_NOTE = (
    "How far the row is ahead of the column in the mean of the seeds that both have. A dot: the "
    "95 % interval of the differences, seed by seed, leaves out 0. Where there is none, another "
    "seed may turn the order round. Methods stand in the order of the table above."
)
NO_BREAK = "\N{NO-BREAK SPACE}"
COLUMNS = {
    "before": "Before fine-tuning",
    "settled": "With new statistics",
    "macs": "MACs",
    "latency": "Latency",
    "bytes": "File",
    "tflite_b1": "TFLite",
    "prune_s": "Pruning",
}
WHERE_TOLD = ("settled",)
"""Columns that older rows have nothing for: they are there where a cell has a number."""
AHEAD = {"l1": "Ahead of L1", "random": "Ahead of random", CHOICE: "Choice"}
"""{key of `Cell.ahead`: title of its column}, where a cell has one."""


def write(out: PathLike, comparisons: Sequence[Comparison]) -> list[pathlib.Path]:
    """Writes `comparison.json`, `comparison.html` and `comparison.png` into a folder.

    Returns:
        The three files.

    Raises:
        CheckpointError: the folder cannot be written to.
    """
    folder = make_folder(out)
    files = [folder / f"comparison.{kind}" for kind in ("json", "html", "png")]
    write_json(files[0], plain(comparisons))
    atomic_write(files[1], html(comparisons))
    atomic_write(files[2], figures.png(comparisons))
    return files


def html(comparisons: Sequence[Comparison]) -> str:
    """The text of `comparison.html`."""
    title = "; ".join(comparison.title for comparison in comparisons)
    body = join(*(_body(number, each) for number, each in enumerate(comparisons)))
    # Our own file: what is shown of rows stands in none of it.
    script = resources.files("jprune.compare").joinpath("sorting.js").read_text("utf-8")
    body = join(body, tag("script", Markup(script)))
    # The page of a single run and this one share the style.
    template = resources.files("jprune.report").joinpath("template.html").read_text("utf-8")
    return string.Template(template).substitute(title=join(f"Compared: {title}"), body=body)


def _body(number: int, comparison: Comparison) -> Markup:
    metric, seeds = METRICS[comparison.metric].title, counted(comparison.seeds, "seed")
    header = tag(
        "header",
        tag("p", "jprune compare"),
        tag("h1", comparison.title),
        tag("p", f"{capital(metric)}, {seeds}."),
        **({} if not number else {"style": "margin-top: 72px"}),
    )
    drawn = figures.curves(comparison, f"curves{number}")
    return join(
        header,
        _labels(comparison),
        _section("Curves", "", _wide(drawn or value(text.NOT_MEASURED))),
        _section("Methods", TABLE_NOTE, _table(comparison)),
        *_findings(comparison),
        *_orders(number, comparison),
        _section("How this was made", "", _provenance(comparison)),
    )


def _wide(picture: Markup) -> Markup:
    """A picture that scrolls on narrow screens: shrunk, its text would be too small to read."""
    inner = tag("div", picture, style="min-width: 640px")
    return tag("div", inner, class_="curves", style="display: block; overflow-x: auto")


def _section(title: str, note: str, *content: str) -> Markup:
    about = tag("p", note, class_="note") if note else ""
    return tag("section", tag("h2", title), about, tag("div", *content, class_="card"))


def _labels(comparison: Comparison) -> Markup:
    """A note that the comparison is fair, or a red card with the rules that it breaks."""
    if not comparison.breaches:
        words = (
            "It keeps to the protocol: seeds, fine-tuning, baselines, budgets, versions, device."
        )
        return tag("p", words, class_="note")
    red = "border-color: #d92d20; border-left-width: 5px; margin-top: 24px"
    sentences = [tag("li", breach.says) for breach in comparison.breaches]
    return tag(
        "div",
        tag("strong", "Not a fair comparison"),
        tag("ul", *sentences, style="margin: 6px 0 0; padding-left: 20px"),
        class_="card",
        style=red,
        role="note",
    )


def _table(comparison: Comparison) -> Markup:
    metric = METRICS[comparison.metric]
    cells = comparison.cells
    names = [
        name
        for name in COLUMNS
        if name != comparison.metric
        and (name not in WHERE_TOLD or any(cell.spreads[name] for cell in cells))
    ]
    ahead = [name for name in AHEAD if any(name in cell.ahead for cell in cells)]
    steps = any(cell.steps for cell in cells)
    head = ["Method", capital(metric.title), *(AHEAD[name] for name in ahead)]
    head += [*(["Steps"] if steps else []), *(COLUMNS[name] for name in names)]
    # Sizes are shown as a fraction of the dense net's, where it was measured.
    dense = next((cell for cell in comparison.cells if cell.budget is None), None)
    size = dense and dense.spreads["bytes"]
    body: list[list[str]] = []
    for cell in comparison.cells:
        where = "" if cell.budget is None else budget_text(cell.budget)
        more = "; ".join(filter(None, [where, front_text(cell)]))
        body.append(
            [
                tag("div", cell.method, tag("span", more, class_="more")),
                _spread(cell.spreads[comparison.metric], metric.fraction),
                *(_ahead(cell.ahead.get(name), metric.fraction) for name in ahead),
                *([_steps(cell.steps)] if steps else []),
                *(_cell(cell, column, size) for column in names),
            ]
        )
    return table([*head], body, class_="sorts")


def front_text(cell: Cell) -> str:
    """The fronts that a net lies on; empty for none.

    Example:
        >>> front_text(Cell("l1", ("macs", 0.5), (0,), {}, ("macs", "latency")))
        'front: MACs, latency'
    """
    names = [METRICS[cost].title.removesuffix(" kept") for cost in cell.fronts]
    return f"front: {', '.join(names)}" if names else ""


def _ahead(found: Paired | None, fraction: bool) -> Markup:
    mean, _, interval = paired_text(found, fraction).partition(" (")
    return _two(mean, interval.removesuffix(")"), found and found.mean)


def paired_text(found: Paired | None, fraction: bool) -> str:
    """How far an arm is ahead, in points for fractions, with its interval; empty for nothing.

    Example:
        >>> paired_text(Paired(0.0123, -0.001, 0.0256, 3), True)
        '+1.23 (-0.10 to +2.56)'
        >>> paired_text(Paired(0.0123, None, None, 1), True), paired_text(None, True)
        ('+1.23', '')
    """
    if found is None:
        return ""
    scale, digits = (100, 2) if fraction else (1, 4)
    mean = f"{scale * found.mean:+.{digits}f}"
    if found.low is None or found.high is None:
        return mean
    return f"{mean} ({scale * found.low:+.{digits}f} to {scale * found.high:+.{digits}f})"


def steps_text(steps: Steps | None) -> str:
    """Steps in three: before pruning, under the method, after the cut.

    Example:
        >>> steps_text({"before": 0, "under": 312, "after": 312}), steps_text(None)
        ('0 + 312 + 312', '')
    """
    return "" if steps is None else f"{steps['before']} + {steps['under']} + {steps['after']}"


def _steps(steps: Steps | None) -> Markup:
    total = None if steps is None else steps["before"] + steps["under"] + steps["after"]
    return _two(steps_text(steps), key=total)


def _cell(cell: Cell, name: str, dense_bytes: Spread | None) -> Markup:
    measured = cell.spreads[name]
    if measured is None:
        return value("" if cell.budget is None else text.NOT_MEASURED)
    if name == "bytes":
        fraction = text.percent(measured.mean / dense_bytes.mean, 0) if dense_bytes else ""
        return _two(text.count(measured.mean, "B"), fraction, measured.mean)
    if name == "prune_s":
        return _two(text.seconds(measured.mean), key=measured.mean)
    if name == "tflite_b1":
        return _two(text.milliseconds(measured.mean), key=measured.mean)
    return _two(text.percent(measured.mean), key=measured.mean)


def _two(words: str, more: str = "", key: float | None = None) -> Markup:
    """A number with its unit on one line, and a smaller line below; `data-key` sorts by it."""
    below = tag("span", more, class_="more") if more else ""
    sorts = None if key is None else repr(float(key))
    return tag("div", words.replace(" ", NO_BREAK), below, data_key=sorts)


def _spread(spread: Spread | None, fraction: bool) -> Markup:
    if spread is None:
        return value(text.NOT_MEASURED)
    # The text is taken apart again, so that table, page and terminal round alike.
    mean, _, deviation = spread_text(spread, fraction).partition(" ± ")
    unit = " %" if fraction and deviation else ""
    below = f"± {deviation.removesuffix(' %')}" if deviation else ""
    return _two(f"{mean}{unit}", below, spread.mean)


def spread_text(spread: Spread | None, fraction: bool) -> str:
    """Mean and standard deviation.

    Example:
        >>> spread_text(Spread(0.9123, 0.0042, 3), True), spread_text(Spread(0.5, None, 1), True)
        ('91.23 ± 0.42 %', '50.00 %')
    """
    if spread is None:
        return text.NOT_MEASURED
    scale, unit = (100, " %") if fraction else (1, "")
    # Percentages to hundredths; other numbers to four digits behind the point, two from 10 on.
    digits = 2 if fraction or abs(spread.mean) >= 10 else 4
    deviation = "" if spread.std is None else f" ± {scale * spread.std:.{digits}f}"
    return f"{scale * spread.mean:.{digits}f}{deviation}{unit}"


def _findings(comparison: Comparison) -> list[Markup]:
    paragraphs = [tag("p", words) for words in (*comparison.findings, *comparison.notes)]
    return [_section("To be noted", "", *paragraphs)] if paragraphs else []


def _orders(number: int, comparison: Comparison) -> list[Markup]:
    if not comparison.orders:
        return []
    parts: list[Markup] = []
    for place, budget in enumerate(order_figure.budgets_of(comparison)):
        orders = [order for order in comparison.orders if order.budget == budget]
        said = f"{changes_text(orders)}; {apart_text(comparison, orders)}"
        drawn = order_figure.orders_markup(comparison, budget, f"orders{number}-{place}")
        parts += [tag("p", f"{budget_text(budget)}: {said}."), _wide(drawn)]
    return [_section("Order over the seeds", ORDER_NOTE, *parts)]


def apart_text(comparison: Comparison, orders: Sequence[Order]) -> str:
    """How many pairs of methods are apart by more than the chance of these seeds."""
    apart = sum(
        comparison.differences[order.budget, order.better, order.worse].apart for order in orders
    )
    verb = "is" if apart == 1 else "are"
    return f"{apart} {verb} apart by more than chance (95 %, paired)"


def changes_text(orders: Sequence[Order]) -> str:
    """How often the order of two methods changes.

    Example:
        >>> half = ("macs", 0.5)
        >>> changes_text([Order(half, "a", "b", 1, 3), Order(half, "a", "c", 0, 3)])
        '1 of 2 pairs of methods changes its order in some seed (1 of 6 comparisons)'
    """
    unstable = sum(order.changes > 0 for order in orders)
    verb = "changes its" if unstable == 1 else "change their"
    changes, compared = (sum(o.changes for o in orders), sum(o.seeds for o in orders))
    return (
        f"{unstable} of {len(orders)} pairs of methods {verb} order in some seed "
        f"({changes} of {compared} comparisons)"
    )


def _provenance(comparison: Comparison) -> Markup:
    provenance = comparison.provenance
    versions = [
        ", ".join(f"{name} {version}" for name, version in each.items() if version)
        for each in provenance["versions"]
    ]
    facts = {
        "Device": "; ".join(map(device_text, provenance["devices"])),
        "Versions": "; ".join(versions),
        "Commit": ", ".join(commit or "not a git checkout" for commit in provenance["commits"]),
        "Seeds": ", ".join(map(str, sorted({s for c in comparison.cells for s in c.seeds}))),
    }
    pairs: list[Any] = [join(tag("dt", k), tag("dd", v)) for k, v in facts.items()]
    commands = tag("pre", "\n".join(command or "" for command in provenance["commands"]))
    many = counted(len(provenance["commands"]), "command")
    return join(tag("dl", *pairs), tag("details", tag("summary", many), commands))

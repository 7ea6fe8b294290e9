"""Tables for people, on standard output."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jprune.foreign import shown

if TYPE_CHECKING:
    from jprune.report.method import Description

COLUMNS = 80
PATH = 4096
"""Characters of a path that are printed: one that is cut cannot be copied."""


def row(table: Table, *cells: str, style: str | None = None) -> None:
    """Adds a row; what stands in it may be from a file: it is escaped, cut, and no markup."""
    table.add_row(*(Text(shown(cell)) for cell in cells), style=style)


def _table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    title = "\n" * title.startswith("\n") + escape(shown(title.removeprefix("\n")))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def result(outcome: Mapping[str, Any], out: str) -> None:
    """Prints accuracy, cost and latency of a finished run, dense beside slim."""
    # Late: reports draw with a library that takes a second to import.
    from jprune import report
    from jprune.report import text

    table = _table(
        f"{outcome['method']} on {outcome['model']}, {outcome['data']}, seed {outcome['seed']}",
        "",
        "dense",
        "slim",
        "kept",
    )
    dense, slim, achieved = outcome["dense"], outcome["pruned"], outcome["achieved"]
    row(table, "test accuracy", _percent(dense["accuracy"]), _percent(slim["accuracy"]), "")
    for name in slim.get("metrics", {}):
        values = [net.get("metrics", {}).get(name) for net in (dense, slim)]
        row(table, name, *("-" if value is None else f"{value:.4f}" for value in values), "")
    for name, title in (("macs", "MACs"), ("params", "parameters"), ("bytes", ".tflite bytes")):
        row(table, title, _whole(dense[name]), _whole(slim[name]), _percent(achieved[name]))
    for name, title in (
        ("xla_b1", "XLA, batch 1"),
        ("xla_b128", "XLA, batch 128"),
        ("tflite_b1", "TFLite, batch 1"),
    ):
        # Either may be None: no TFLite extra, or no time to measure.
        before, after = (net["latency_ms"][name] for net in (dense, slim))
        row(
            table,
            f"{title}, ms",
            _milliseconds(before),
            _milliseconds(after),
            _percent(after["median"] / before["median"])
            if before and after and before["median"]
            else "-",
        )
    console = Console()
    console.print(table)
    asked = text.budget(outcome["requested"])
    console.print(f"asked to keep {shown(asked)}", highlight=False, markup=False)
    if "predicted" in outcome:
        console.print(
            f"latency kept: predicted {_percent(outcome['predicted'].get('latency'))}, measured "
            f"{_percent(achieved['latency'])}",
            highlight=False,
            markup=False,
        )
    if said := report.missed(outcome):
        console.print(f"The budget is missed: {shown(said)}.", style="bold red", markup=False)
    if sizes := outcome.get("splits"):
        parts = ", ".join(f"{size:,} {split}" for split, size in sizes.items())
        source = f" ({outcome['splits_from']})" if outcome.get("splits_from") else ""
        console.print(
            shown(f"data: {parts}{source}", 400), highlight=False, markup=False, soft_wrap=True
        )
    console.print(
        f"masked against slim net: relative difference {_law(outcome['law_max_rel_err'])}",
        # Not wrapped: a path that is broken over two lines cannot be copied.
        f"report: {shown(pathlib.Path(out) / 'report.html', PATH)}",
        markup=False,
        sep="\n",
        highlight=False,
        soft_wrap=True,
    )


def bench(
    rows: Sequence[Mapping[str, Any]], nets: Sequence[str], device: Mapping[str, Any]
) -> None:
    """Prints the times of two nets, and their ratio with its 10th and 90th percentile."""
    console = Console(highlight=False, markup=False)
    for letter, net in zip("AB", nets):
        console.print(f"{letter}: {shown(net, PATH)}", soft_wrap=True)
    console.print(shown(f"on {device['kind']}, {device['threads']} threads, in turns"))
    table = _table("", "", "A, ms", "B, ms", "A, images/s", "B, images/s", "B / A")
    for compared in rows:
        times, ratio = compared["times"], compared["ratio"]
        row(
            table,
            compared["runtime"],
            *map(_milliseconds, times),
            *(f"{1000 * compared['batch'] / time['median']:,.0f}" for time in times),
            f"{ratio['median']:.2f} ({ratio['p10']:.2f}-{ratio['p90']:.2f})",
        )
    console.print(table)


def verdicts(found: Sequence[Any]) -> None:
    """Prints which files of a run are whole."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for verdict in found:
        row(table, verdict.name, verdict.state, verdict.note)
    Console().print(table)


def warnings(texts: Sequence[str]) -> None:
    """Prints warnings on the error stream: in red on a terminal, unless NO_COLOR is set."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    for text in texts:
        console.print(f"jprune: warning: {shown(text, 400)}", style="red")


def _law(error: float | None) -> str:
    return "not measured" if error is None else f"{error:.1e}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def _whole(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _milliseconds(latency: Mapping[str, float] | None) -> str:
    return "-" if latency is None else f"{latency['median']:.3g}"


def methods(rows: Sequence[Mapping[str, Any]]) -> None:
    """The methods, a line each, under their places in the survey's taxonomy."""
    console = Console(highlight=False, markup=False)
    files = {row["name"]: (row["file"] or "not yet").removeprefix("jprune/") for row in rows}
    # Fixed columns, without a table: headings of the taxonomy stand between the lines.
    wide = max(map(len, files.values())) + 1
    line = lambda *cells: console.print(
        "{:<19}{:<8}{:<{wide}}{}".format(*cells, wide=wide), no_wrap=True, overflow="ellipsis"
    )
    line("method", "refs", "file", "paper")
    for kind, members in _by(rows, "taxonomy", " / ".join).items():
        console.print(f"\n{kind}", style="bold")
        for row in members:
            refs = ", ".join(map(str, row["refs"])) or "-"
            line(row["name"], refs, files[row["name"]], row["paper"])
    implemented = sum(row["implemented"] for row in rows)
    console.print(f"\n{implemented} of {len(rows)} methods are here. Whole titles: methods --json")


def method(described: "Description", measured: Sequence[str]) -> None:
    """All about one method, in 80 columns: they are read in terminals, and are no table."""
    blocks = [[f"{described.name}: {described.does}"], described.idea]
    facts = {
        "class": [" / ".join(described.place)],
        "paper": described.papers,
        "file": [described.file],
        **{need: [words] for need, words in described.needs.items()},
    }
    for lines in blocks:
        for line in lines:
            print(*wrap(line, COLUMNS), sep="\n", end="\n\n")
    for name, lines in facts.items():
        for number, line in enumerate(lines):
            _hung(name if not number else "", line, 10)
    print("\nOptions, as --set NAME=VALUE; what stands behind = is taken without one:\n")
    for option in described.options:
        print(f"  {option.name}={option.usual}")
        _hung("", option.meaning, 6)
    command = described.command.replace(" --method", " \\\n      --method")
    print("  none" * (not described.options) + f"\nRun it:\n  {command}\n")
    print("Measured:" + " nothing in this installation" * (not measured))
    for line in measured:
        _hung("", line, 2)


def _hung(name: str, line: str, indent: int) -> None:
    """A line behind a name, broken at 80 columns and indented."""
    first = f"{name:<{indent}}"
    print(*wrap(line, COLUMNS, initial_indent=first, subsequent_indent=" " * indent), sep="\n")


def inspection(report: Mapping[str, Any]) -> None:
    """Groups, branches, sites and frozen axes of a net."""
    console = Console()
    cost = report["cost"]
    console.print(
        f"{shown(report['model'])}: {_whole(cost['params'])} parameters, "
        f"{_whole(cost['macs'])} MACs, "
        f"{_whole(cost['bytes'])} bytes moved, for one example",
        highlight=False,
    )
    table = _table("\nGroups: units that live or die together", "group", "units", "places", "MACs")
    for name, group in report["groups"].items():
        places = str(len(group["places"]))
        row(table, name, _whole(group["size"]), places, _whole(group["macs"]))
    console.print(table)
    if report["branches"]:
        table = _table("\nBranches that can go as a whole", "branch", "leaves")
        for branch in report["branches"]:
            row(table, branch["name"], str(len(branch["leaves"])))
        console.print(table)
    table = _table("\nSites, by kind", "kind", "sites", "groups")
    for kind, sites in _by(report["sites"], "kind").items():
        groups = {name for site in sites for name in site["groups"]}
        row(table, kind, str(len(sites)), str(len(groups)))
    console.print(table)
    console.print("\n[italic]Frozen axes[/italic]" if report["frozen"] else "\nNothing is frozen.")
    for reason, records in _by(report["frozen"], "reason").items():
        console.print(f"{shown(reason)}:", highlight=False, markup=False)
        for record in records:
            at = f", at {record['source']}" if record["source"] else ""
            by = f": {record['equation']}" if record["equation"] else ""
            console.print(
                f"  {shown(record['leaf'])}, axis {record['axis']} ({record['positions']} long)"
                f"{shown(by, 1000)}{shown(at)}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        # Many axes may have one remedy: it is said once.
        for remedy in dict.fromkeys(record["remedy"] for record in records if record["remedy"]):
            console.print(f"  To open it: {shown(remedy, 400)}", highlight=False, markup=False)


def _by(
    records: Sequence[Mapping[str, Any]], key: str, name: Callable[[Any], str] = str
) -> dict[str, list[Mapping[str, Any]]]:
    """{name of a key's value: records with this value}."""
    lists: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        lists.setdefault(name(record[key]), []).append(record)
    return lists

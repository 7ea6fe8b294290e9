"""The verb `compare`: rows or a sweep in, a table for people out."""

import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jprune import compare as comparisons
from jprune import errors
from jprune.base import Budget
from jprune.cli.options import Compare
from jprune.compare import METRICS, Comparison
from jprune.compare.page import changes_text, spread_text
from jprune.compare.summary import FRONTS, Cell
from jprune.compare.words import budget_text, capital, counted
from jprune.report import text

_SHOWN = 6
"""Unstable orders in the summary; `--json` has all."""
_FRONT = {"macs": "MACs", "latency": "time"}


def compare(given: Compare, words: Sequence[str]) -> None:
    """Compares, writes what was asked for, and shows the table."""
    comparisons.find_metric(given.metric)
    if given.rows:
        _refuse_settings(given)
        rows, notes = comparisons.read(given.rows)
        out = given.out
    else:
        out = given.out or f"runs/compare-{given.model}-{given.data}".replace(":", "-")
        rows, notes = _swept(given, words, out)
    found = comparisons.summarize(rows, given.metric, notes)
    written = [] if out is None else comparisons.write(out, found)
    if given.json:
        print(json.dumps(comparisons.plain(found), indent=1))
    elif not given.quiet:
        for comparison in found:
            show(comparison)
        for file in written[1:]:
            print(file)


def _refuse_settings(given: Compare) -> None:
    """Settings of runs beside runs that are finished would do nothing."""
    kept = ("rows", "metric", "out", "json", "quiet", "log_level")
    usual = Compare()
    for name, value in vars(given).items():
        if name not in kept and value != getattr(usual, name):
            raise errors.ArgumentError(
                f"--{name.replace('_', '-')} is for runs that are still to be done, and "
                f"{given.rows[0]} holds finished ones. Leave out one of the two."
            )


def _swept(given: Compare, words: Sequence[str], out: str) -> comparisons.Read:
    from jprune.compare import sweep as sweeps
    from jprune.job.main import Job
    from jprune.runs.progress import Bars, Lines, Silent

    missing = [name for name in ("model", "data", "methods") if not getattr(given, name)]
    if missing:
        raise errors.ArgumentError(
            f"--{missing[0]} is missing. Write a folder of rows, or --model, --data, --methods and "
            "--macs of the runs to do."
        )
    budgets = _budgets(given)
    job = Job(
        model=given.model or "",
        data=given.data or "",
        method=given.methods[0],
        budget=budgets[0],
        epochs=given.epochs,
        finetune_epochs=given.finetune_epochs,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        finetune_learning_rate=given.finetune_learning_rate,
        max_steps=given.steps,
        distill=given.distill,
        freeze=given.freeze,
        weights=given.weights,
        data_dir=given.data_dir,
    )
    methods = sweeps.with_baselines(given.methods)
    command = shlex.join(["jprune", *words])
    options = _options(given.set, methods)
    sweep = sweeps.Sweep(job, methods, budgets, given.seeds, command, options)
    progress = Silent() if given.quiet else Bars() if sys.stderr.isatty() else Lines()
    try:
        return comparisons.Read(*sweeps.run(sweep, out, progress))
    finally:
        progress.close()


def _options(texts: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{method: options} of METHOD.OPTION=VALUE each."""
    from jprune import recipes

    found: dict[str, dict[str, Any]] = {}
    for given in texts:
        method, dot, option = given.partition(".")
        if not dot or method not in methods:
            raise errors.ArgumentError(
                f"--set {given}: write METHOD.OPTION=VALUE with one of "
                f"{', '.join(methods)}, such as {methods[0]}.rounds=3."
            )
        found.setdefault(method, {}).update(recipes.read_options(method, [option]))
    return found


def _budgets(given: Compare) -> tuple[Budget, ...]:
    asked = {name: getattr(given, name) for name in ("macs", "params", "density")}
    asked = {name: fractions for name, fractions in asked.items() if fractions}
    if len(asked) != 1:
        came = " and ".join(f"--{name}" for name in asked) or "none"
        raise errors.ArgumentError(
            f"write exactly one of --macs, --params and --density; {came} came. To keep a half and "
            "a quarter of the multiply-accumulates, write --macs 0.5,0.25."
        )
    ((kind, fractions),) = asked.items()
    return tuple(
        Budget(**{kind: fraction}, multiple_of=given.multiple_of, min_units=given.min_units)
        for fraction in fractions
    )


def show(comparison: Comparison, console: Console | None = None) -> None:
    """The table of a comparison, with its labels above and the order over seeds below."""
    console = Console() if console is None else console
    metric = METRICS[comparison.metric]
    seeds = counted(comparison.seeds, "seed")
    say = lambda words, style="": console.print(words, style=style, markup=False, highlight=False)
    say(f"{comparison.title}, {seeds}: {metric.title}", "bold")
    if comparison.breaches:
        say("Not a fair comparison:", "bold red")
    for breach in comparison.breaches:
        say(f"- {breach.says}", "red")
    table = Table(box=None, pad_edge=False, header_style="bold")
    name = metric.title.removeprefix("test ") + (", %" if metric.fraction else "")
    table.add_column("", overflow="fold")
    for head in (name, "before", "MACs", "time", "file", "prune"):
        table.add_column(head, justify="right", no_wrap=head == name)
    table.add_column("front")
    budget = None
    for cell in comparison.cells:
        if cell.budget is not None and cell.budget != budget:
            table.add_row(budget_text(cell.budget).replace(" the ", " "), style="italic")
        budget = cell.budget
        table.add_row(*_cells(cell, comparison))
    console.print(table)
    if comparison.orders:
        say(f"\n{capital(changes_text(comparison.orders))}.")
    unstable = [order for order in comparison.orders if order.changes]
    for order in unstable[:_SHOWN]:
        ahead = f"{order.seeds - order.changes} of {counted(order.seeds, 'seed')}"
        say(f"  {budget_text(order.budget)}: {order.better} before {order.worse} in {ahead}")
    if len(unstable) > _SHOWN:
        say(f"  and {len(unstable) - _SHOWN} more; --json has all.")
    for words in (*comparison.findings, *comparison.notes):
        say(words)
    console.print()


def _cells(cell: Cell, comparison: Comparison) -> list[str]:
    found, metric = cell.spreads, METRICS[comparison.metric]
    percent = lambda kept: "-" if kept is None else text.percent(kept.mean, int(kept.mean < 1))
    size, pruning = found["bytes"], found["prune_s"]
    reached = found[comparison.metric]
    return [
        cell.method if cell.budget is None else f"  {cell.method}",
        "-" if reached is None else spread_text(reached, metric.fraction).removesuffix(" %"),
        percent(found["before"]),
        percent(found["macs"]),
        percent(found["latency"]),
        "-" if size is None else text.count(size.mean, "B"),
        "-" if pruning is None else text.seconds(pruning.mean),
        " ".join(_FRONT[cost] for cost in FRONTS if cost in cell.fronts),
    ]

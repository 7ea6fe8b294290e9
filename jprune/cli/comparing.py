"""The verb `compare`: rows or a sweep in, a table for people out."""

import json
import re
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
from jprune.cli.show import row
from jprune.compare import METRICS, Comparison
from jprune.compare.page import changes_text, spread_text
from jprune.compare.summary import FRONTS, Cell
from jprune.compare.words import budget_text, capital, counted
from jprune.foreign import shown
from jprune.report import text

_SHOWN = 6
SENTENCE = 1000
"""Characters of a sentence on a comparison."""
"""Unstable orders in the summary; `--json` has all."""
_FRONT = {"macs": "MACs", "latency": "time"}


def compare(settings: Compare, words: Sequence[str]) -> None:
    """Compares, writes what was asked for, and shows the table."""
    comparisons.find_metric(settings.metric)
    if settings.rows:
        _refuse_settings(settings)
        rows, notes = comparisons.read(settings.rows)
        out = settings.out
    else:
        # Rows are only shown unless --out is written; a sweep has to put its runs somewhere.
        folder = re.sub(r"[:\\/]+", "-", f"compare-{settings.model}-{settings.data}")
        out = settings.out or f"runs/{folder}"
        rows, notes = _swept(settings, words, out)
    results = comparisons.summarize(rows, settings.metric, notes)
    written = [] if out is None else comparisons.write(out, results)
    if settings.json:
        print(json.dumps(comparisons.plain(results), indent=1))
    elif not settings.quiet:
        for comparison in results:
            show(comparison)
        # The JSON is for programs: people are told of the page and the picture.
        for file in written[1:]:
            print(file)


def _refuse_settings(settings: Compare) -> None:
    """Refuses settings of runs beside rows of finished runs: they would have no effect."""
    allowed = ("rows", "metric", "out", "json", "quiet", "log_level")
    usual = Compare()
    for name, value in vars(settings).items():
        # A setting that was written with its usual value cannot be told from none; it does no harm.
        if name not in allowed and value != getattr(usual, name):
            raise errors.ArgumentError(
                f"--{name.replace('_', '-')} is for runs that are still to be done, and "
                f"{settings.rows[0]} holds finished ones. Leave out one of the two."
            )


def _swept(settings: Compare, words: Sequence[str], out: str) -> comparisons.Read:
    # Late: JAX takes a second to import, which `--help` and the comparison of rows need not wait
    # for.
    from jprune.compare import sweep as sweeps
    from jprune.job.main import Job
    from jprune.recipes import read_values
    from jprune.runs.progress import Bars, Lines, Silent

    missing = [name for name in ("model", "data", "methods") if not getattr(settings, name)]
    if missing:
        raise errors.ArgumentError(
            f"--{missing[0]} is missing. Write finished runs or a folder of rows, or --model, "
            "--data, --methods and --macs of the runs to do."
        )
    budgets = _budgets(settings)
    job = Job(
        model=settings.model or "",
        data=settings.data or "",
        # A job has one method and one budget; the sweep replaces both for every run.
        method=settings.methods[0],
        budget=budgets[0],
        epochs=settings.epochs,
        finetune_epochs=settings.finetune_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        finetune_learning_rate=settings.finetune_learning_rate,
        max_steps=settings.steps,
        distill=settings.distill,
        freeze=settings.freeze,
        weights=settings.weights,
        data_dir=settings.data_dir,
        data_options=read_values(settings.data_options, "--data-options"),
        optimizer=settings.optimizer,
        optimizer_options=read_values(settings.optimizer_options, "--optimizer-options"),
        rate_schedule=settings.rate_schedule,
        warmup=settings.warmup,
        clip=settings.clip,
        ema=settings.ema,
        accumulate=settings.accumulate,
    )
    methods = sweeps.with_baselines(settings.methods)
    command = shlex.join(["jprune", *words])
    options = _options(settings.set, methods)
    sweep = sweeps.Sweep(job, methods, budgets, settings.seeds, command, options)
    # Bars need a terminal; a log gets lines.
    progress = Silent() if settings.quiet else Bars() if sys.stderr.isatty() else Lines()
    try:
        return comparisons.Read(*sweeps.run(sweep, out, progress))
    finally:
        progress.close()


def _options(texts: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{method: options} of METHOD.OPTION=VALUE each."""
    from jprune import recipes

    by_method: dict[str, dict[str, Any]] = {}
    for assignment in texts:
        method, dot, option = assignment.partition(".")
        if not dot or method not in methods:
            raise errors.ArgumentError(
                f"--set {assignment}: write METHOD.OPTION=VALUE with one of "
                f"{', '.join(methods)}, such as {methods[0]}.rounds=3."
            )
        by_method.setdefault(method, {}).update(recipes.read_options(method, [option]))
    return by_method


def _budgets(settings: Compare) -> tuple[Budget, ...]:
    asked = {name: getattr(settings, name) for name in ("macs", "params", "density")}
    asked = {name: fractions for name, fractions in asked.items() if fractions}
    if len(asked) != 1:
        came = " and ".join(f"--{name}" for name in asked) or "none"
        raise errors.ArgumentError(
            f"write exactly one of --macs, --params and --density; {came} came. To keep a half and "
            "a quarter of the multiply-accumulates, write --macs 0.5,0.25."
        )
    ((kind, fractions),) = asked.items()
    return tuple(
        Budget(**{kind: fraction}, multiple_of=settings.multiple_of, min_units=settings.min_units)
        for fraction in fractions
    )


def show(comparison: Comparison, console: Console | None = None) -> None:
    """The table of a comparison, with its labels above and the order over seeds below."""
    console = Console() if console is None else console
    metric = METRICS[comparison.metric]
    seeds = counted(comparison.seeds, "seed")
    # No markup: "[49]" is a reference and not a style.
    say = lambda words, style="": console.print(
        shown(words, SENTENCE), style=style, markup=False, highlight=False
    )
    say(f"{shown(comparison.title)}, {seeds}: {metric.title}", "bold")
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
        # Cells come budget by budget: each gets a heading when it begins.
        if cell.budget is not None and cell.budget != budget:
            row(table, budget_text(cell.budget).replace(" the ", " "), style="italic")
        budget = cell.budget
        row(table, *_cells(cell, comparison))
    console.print(table)
    if comparison.orders:
        console.print()
        say(f"{capital(changes_text(comparison.orders))}.")
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
    spreads, metric = cell.spreads, METRICS[comparison.metric]
    percent = lambda spread: (
        "-" if spread is None else text.percent(spread.mean, int(spread.mean < 1))
    )
    size, pruning = spreads["bytes"], spreads["prune_s"]
    reached = spreads[comparison.metric]
    return [
        cell.method if cell.budget is None else f"  {cell.method}",
        "-" if reached is None else spread_text(reached, metric.fraction).removesuffix(" %"),
        percent(spreads["before"]),
        percent(spreads["macs"]),
        percent(spreads["latency"]),
        "-" if size is None else text.count(size.mean, "B"),
        "-" if pruning is None else text.seconds(pruning.mean),
        " ".join(_FRONT[cost] for cost in FRONTS if cost in cell.fronts),
    ]

"""What each verb does; each imports what it needs when it runs."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jprune import errors
from jprune.base import Budget
from jprune.cli import options, show


def prune(given: options.Prune, words: Sequence[str]) -> None:
    """The main job."""
    budget = _budget(given)
    from jprune import recipes
    from jprune.job import main as jobs
    from jprune.runs.devices import connect
    from jprune.runs.progress import Bars, Lines, Silent

    if not connect():  # one of several processes is enough to talk
        given = dataclasses.replace(given, quiet=True, json=False)
    chosen = {name: getattr(given, name) for name in ("schedule", "rounds", "allocator")}
    job = jobs.Job(
        model=given.model,
        data=given.data,
        method=given.method,
        budget=budget,
        seed=given.seed,
        epochs=given.epochs,
        finetune_epochs=given.finetune_epochs,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        finetune_learning_rate=given.finetune_learning_rate,
        max_steps=given.steps,
        distill=given.distill,
        freeze=given.freeze,
        options={
            **recipes.read_options(given.method, given.set),
            **{name: value for name, value in chosen.items() if value is not None},
        },
        dtype=given.dtype,
        weights=given.weights,
        data_dir=given.data_dir,
    )
    out = given.out or f"runs/{_folder_name(given, budget)}"
    progress = Silent() if given.quiet else Bars() if sys.stderr.isatty() else Lines()
    try:
        result = jobs.prune(job, out, shlex.join(["jprune", *words]), progress, given.overwrite)
    finally:
        progress.close()
    if given.json:
        _print_json(result)
    elif not given.quiet:
        show.result(result, out)


def _budget(given: options.Prune) -> Budget:
    fractions = {name: getattr(given, name) for name in ("macs", "params", "density")}
    fractions = {name: value for name, value in fractions.items() if value is not None}
    if len(fractions) != 1:
        came = " and ".join(f"--{name}" for name in fractions) or "none"
        raise errors.ArgumentError(
            f"write exactly one of --macs, --params and --density; {came} came. To keep half of "
            "the multiply-accumulates, write --macs 0.5."
        )
    return Budget(**fractions, multiple_of=given.multiple_of, min_units=given.min_units)


def _folder_name(given: options.Prune, budget: Budget) -> str:
    model = given.model.replace(":", "-").replace("/", "-")
    return f"{model}-{given.data}-{given.method}-{budget.kind}{budget.value:g}-seed{given.seed}"


def compare(given: options.Compare, words: Sequence[str]) -> None:
    """Methods side by side."""
    from jprune.cli import comparing

    comparing.compare(given, words)


def inspect(given: options.Inspect, words: Sequence[str]) -> None:
    """Groups, sites, frozen axes, cost."""
    del words
    from jprune.job.inspection import inspected

    found = inspected(given.model, given.data)
    if given.json:
        _print_json(found)
    else:
        show.inspection(found)


def report(given: options.Report, words: Sequence[str]) -> None:
    """The page of a finished run."""
    del words
    from jprune import report

    _tell([str(report.html(given.directory))], given)


def export(given: options.Export, words: Sequence[str]) -> None:
    """The exported forms of a finished run."""
    del words
    from jprune.job.export import export_again

    _tell([str(path) for path in export_again(given.directory, given.to)], given)


def methods(given: options.Methods, words: Sequence[str]) -> None:
    """The table of methods."""
    del words
    from jprune import survey

    rows = survey.rows()
    if given.json:
        _print_json(rows)
    else:
        show.methods(rows)


def data(given: options.Data, words: Sequence[str]) -> None:
    """Prepares a data set."""
    del words
    from jprune import data

    _tell([str(data.prepare(given.name, given.data_dir, given.source))], given)


def _tell(paths: list[str], given: Any) -> None:
    if given.json:
        _print_json({"written": paths})
    elif not given.quiet:
        print("\n".join(paths))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


TABLE: dict[str, Callable[[Any, Sequence[str]], None]] = {
    "prune": prune,
    "compare": compare,
    "inspect": inspect,
    "report": report,
    "export": export,
    "methods": methods,
    "data": data,
}

"""What each verb does; each imports what it needs when it runs."""

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jprune import errors, foreign, interrupts
from jprune.base import Budget
from jprune.cli import options, show


def prune(settings: options.Prune, words: Sequence[str]) -> int:
    """The main job; 1 if what it has written cannot be relied on."""
    # Before the imports below, which take seconds: a mistake is answered at once.
    budget = _budget(settings)
    from jprune import recipes, report
    from jprune.job import main as jobs
    from jprune.runs.devices import connect
    from jprune.runs.progress import Bars, Lines, Silent

    if not connect():  # one of several processes is enough to talk
        settings = dataclasses.replace(settings, quiet=True, json=False)
    chosen = {name: getattr(settings, name) for name in ("schedule", "rounds", "allocator")}
    job = jobs.Job(
        model=settings.model,
        data=settings.data,
        method=settings.method,
        budget=budget,
        seed=settings.seed,
        epochs=settings.epochs,
        finetune_epochs=settings.finetune_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        finetune_learning_rate=settings.finetune_learning_rate,
        max_steps=settings.steps,
        distill=settings.distill,
        freeze=settings.freeze,
        options={
            **recipes.read_options(settings.method, settings.set),
            # The three have options of their own since most methods share them; unset ones are left
            # to the method's recipe.
            **{name: value for name, value in chosen.items() if value is not None},
        },
        dtype=settings.dtype,
        weights=settings.weights,
        data_dir=settings.data_dir,
        data_options=recipes.read_values(settings.data_options, "--data-options"),
        optimizer=settings.optimizer,
        optimizer_options=recipes.read_values(settings.optimizer_options, "--optimizer-options"),
        rate_schedule=settings.rate_schedule,
        warmup=settings.warmup,
        clip=settings.clip,
        ema=settings.ema,
        accumulate=settings.accumulate,
        target=settings.target,
        steps_of_table=settings.multiple_of is None,
        execute=settings.execute,
    )
    out = settings.out or f"runs/{_folder_name(settings, budget)}"
    progress = Silent() if settings.quiet else Bars() if sys.stderr.isatty() else Lines()
    command = shlex.join(["jprune", *words])
    try:
        with interrupts.deferred():
            result = jobs.prune(job, out, command, progress, settings.overwrite)
    finally:
        # Also after an error: a terminal without its cursor would be left behind.
        progress.close()
    if settings.json:
        _print_json(result)
    elif not settings.quiet:
        show.result(result, out)
    # On the error stream, and last: scripts that read the result, or nothing, see it too.
    if said := report.missed(result):
        finer = (
            "; write --multiple-of 1 for finer widths" if (settings.multiple_of or 1) > 1 else ""
        )
        print(f"jprune: the budget is missed: {said}{finer}.", file=sys.stderr)
    # Whatever is quiet: a script must not take the files of another net for success.
    warnings = result.get("warnings", [])
    show.warnings(warnings)
    return 1 if warnings else 0


def _budget(settings: options.Prune) -> Budget:
    fractions = {name: getattr(settings, name) for name in Budget.KINDS}
    fractions = {name: value for name, value in fractions.items() if value is not None}
    if len(fractions) != 1:
        came = " and ".join(f"--{name}" for name in fractions) or "none"
        raise errors.ArgumentError(
            "write exactly one of --macs, --params, --density, --latency, --energy and --bytes; "
            f"{came} came. To keep half of the multiply-accumulates, write --macs 0.5."
        )
    multiple_of = settings.multiple_of or 1
    return Budget(**fractions, multiple_of=multiple_of, min_units=settings.min_units)


def _folder_name(settings: options.Prune, budget: Budget) -> str:
    # A colon or slash has a meaning in paths.
    model, data = (re.sub(r"[:/\\]+", "-", name) for name in (settings.model, settings.data))
    return f"{model}-{data}-{settings.method}-{budget.kind}{budget.value:g}-seed{settings.seed}"


def compare(settings: options.Compare, words: Sequence[str]) -> None:
    """Methods side by side."""
    from jprune.cli import comparing

    with interrupts.deferred():
        comparing.compare(settings, words)


def inspect(settings: options.Inspect, words: Sequence[str]) -> None:
    """Groups, sites, frozen axes, cost."""
    del words
    from jprune.job.inspection import inspected
    from jprune.recipes import read_values

    options = read_values(settings.data_options, "--data-options")
    inspection = inspected(settings.model, settings.data, options)
    if settings.json:
        _print_json(inspection)
    else:
        show.inspection(inspection)


def report(settings: options.Report, words: Sequence[str]) -> None:
    """The page of a finished run."""
    del words
    from jprune import report

    _tell([str(report.html(settings.directory))], settings)


def export(settings: options.Export, words: Sequence[str]) -> None:
    """The exported forms of a finished run."""
    del words
    from jprune.job.export import export_again

    _tell(
        [str(path) for path in export_again(settings.directory, settings.to, settings.model)],
        settings,
    )


def check(settings: options.Check, words: Sequence[str]) -> None:
    """Which files of a run are whole."""
    del words
    from jprune.runs.whole import verdicts

    found = verdicts(settings.directory)
    if settings.json:
        _print_json([verdict._asdict() for verdict in found])
    elif not settings.quiet:
        show.verdicts(found)
    wrong = [verdict.name for verdict in found if not verdict.stands]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise errors.DamagedError(
            f"{wrong[0]}{more} of {settings.directory} are not whole. Run the command of the run "
            "again: it makes again what is missing or damaged, and says so."
        )


def bench(settings: options.Bench, words: Sequence[str]) -> None:
    """Two nets against each other."""
    del words
    from jprune import measure

    nets = (settings.first, settings.second)
    rows = measure.bench(*nets, settings.batches, settings.threads, settings.seconds)
    device = measure.device()
    if settings.json:
        versions = measure.versions()
        _print_json({"nets": nets, "device": device, "versions": versions, "rows": rows})
    else:
        show.bench(rows, nets, device)


def methods(settings: options.Methods, words: Sequence[str]) -> None:
    """The table of methods, or all about one."""
    del words
    if settings.name is not None:
        _method(settings.name, settings.json)
        return
    from jprune import survey

    rows = survey.rows()
    if settings.json:
        _print_json(rows)
    else:
        show.methods(rows)


def _method(name: str, as_json: bool) -> None:
    from jprune.compare.measured import measured
    from jprune.report.method import describe

    described, lines = describe(name), measured(name)
    if as_json:
        chosen = [each._asdict() for each in described.options]
        _print_json(described._asdict() | {"options": chosen, "measured": lines})
    else:
        show.method(described, lines)


def data(settings: options.Data, words: Sequence[str]) -> None:
    """Prepares a data set."""
    del words
    from jprune import data

    _tell([str(data.prepare(settings.name, settings.data_dir, settings.source))], settings)


def _tell(paths: list[str], settings: Any) -> None:
    if settings.json:
        _print_json({"written": paths})
    elif not settings.quiet:
        print("\n".join(foreign.shown(path, show.PATH) for path in paths))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


TABLE: dict[str, Callable[[Any, Sequence[str]], int | None]] = {
    "prune": prune,
    "compare": compare,
    "inspect": inspect,
    "report": report,
    "export": export,
    "check": check,
    "bench": bench,
    "methods": methods,
    "data": data,
}

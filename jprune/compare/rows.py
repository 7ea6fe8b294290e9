"""Rows: finished runs as lines of JSON, read, checked, and sorted into arms.

A row holds the results of one run of `jprune prune`, in a form that later versions can read. What
was not measured is null, never absent:

    schema, id, config            of the row; its name; the comparison that it was run for
    method, refs, budget, seed    budget: {"macs": 0.5}, null for the dense net
    model, data, train_images     train_images: null for all of them
    settings                      {name: value} of what is not as usual
    commit, command, versions, device, date
    wall_s, prune_s               {stage: seconds}; seconds of the pruning step alone
    achieved, dense, before_finetune, pruned        as in result.json (`jprune.report.schema`)
    validation                    {"dense", "pruned": accuracy on the validation split}
    finetune                      {"epochs", "learning_rate", "steps"}: what was run; rows of older
                                  versions have the epochs that were set
    steps                         {"before", "under", "after"}: what was run before pruning, under
                                  the method, after the cut (`steps.py`)
    widths                        {group: units kept}; null where weights were pruned
    code                          {"method", "shared"}: digests of the source that numbers depend
                                  on: of the method, and of what is around every method

The last three are absent from rows of older versions.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, NotRequired, TypedDict

from jprune import errors, foreign
from jprune.compare.steps import NO_PRUNING, Row, Steps, base, steps_of
from jprune.foreign import LINES, Range, Size, content, shown
from jprune.graph.shrink.plan_files import Plan
from jprune.measure import Device, Latency
from jprune.report import schema
from jprune.runs.files import PathLike, lines_of, read_json, read_lines
from jprune.runs.inside import guarded
from jprune.runs.schemas import Config, Record

SCHEMA = 1


class Net(TypedDict, total=False):
    """What a row says of a net, as in `result.json`; what was not measured is null or absent."""

    accuracy: float | None
    loss: float | None
    params: Size | None
    macs: Size | None
    bytes: Size | None
    latency_ms: dict[str, Latency | None]


class Finetune(TypedDict):
    """What a row says of the training after pruning."""

    epochs: float | None
    learning_rate: float
    steps: Size | None


class _Row(TypedDict):
    """The keys of a row, see above."""

    schema: int
    id: str | None
    config: str | None
    method: str
    refs: list[Size] | None
    budget: dict[str, Annotated[float, Range(0, 1)]] | None
    seed: Size
    model: str
    data: str
    train_images: Size | None
    settings: dict[str, Any] | None
    commit: str | None
    command: str | None
    versions: dict[str, str | None]
    device: Device
    date: str | None
    wall_s: dict[str, float] | None
    prune_s: float | None
    achieved: dict[str, float | None] | None
    dense: Net | None
    before_finetune: Net | None
    pruned: Net | None
    validation: dict[str, float | None] | None
    finetune: Finetune | None
    steps: NotRequired[Steps | None]
    widths: NotRequired[dict[str, Size] | None]
    code: NotRequired[dict[str, str] | None]


class Arm(NamedTuple):
    """A method at a budget: what several seeds are runs of.

    Attributes:
        method: with the settings that tell it from others of its name.
        budget: (kind, fraction kept); None for the dense net.
    """

    method: str
    budget: tuple[str, float] | None


Runs = dict[Arm, dict[int, Row]]
"""{arm: {seed: row}}."""


class Read(NamedTuple):
    """The rows of some files.

    Attributes:
        rows: in the order of the files' names.
        notes: what was left out, and why.
    """

    rows: list[Row]
    notes: list[str]


def read(places: Iterable[PathLike]) -> Read:
    """Reads rows.

    Args:
        places: files of rows (.jsonl), directories of finished runs (the `--out` of `jprune
            prune`), or folders with such files and directories at any depth. Runs below a folder
            with a `rows.jsonl` are those of its rows, and are not read again.

    Returns:
        The rows, in the order of the names; notes of a file's last line that a kill tore, and of
        runs that are not finished.

    Raises:
        ArgumentError: a place that is not there, or no rows at all.
        CheckpointError: a row or run that is damaged, or of a newer schema.
    """
    rows: list[Row] = []
    notes: list[str] = []
    places = [pathlib.Path(place) for place in places]
    for place in places:
        if not place.exists():
            raise errors.ArgumentError(
                f"{place} is not there. Write a file of rows (.jsonl), the directory of a finished "
                "run, or a folder with such files or directories, such as "
                "experiments/results/first_comparison."
            )
        for source in _sources(place):
            if source.is_dir():
                if not (source / "result.json").exists():
                    notes.append(f"The run in {shown(source)} is not finished and was left out.")
                    continue
                made, dropped = [row_of(source)], 0
                check(made[0], f"the run in {shown(source)}")
            else:
                made, dropped = lines_of(content(source, LINES), shown(source.name))
                for number, row in enumerate(made, start=1):
                    check(row, f"{shown(source.name, 80)}, line {number}")
            rows += made
            if dropped:
                notes.append(f"The last line of {shown(source.name)} is torn and was left out.")
    if not rows:
        where = ", ".join(map(str, places))
        raise errors.ArgumentError(
            f"there are no rows in {where}. Rows are lines of .jsonl files, one per finished run, "
            "or finished runs themselves; to make some, write --model, --data and --methods "
            f"instead of a folder. {' '.join(notes)}".strip()
        )
    return Read(rows, notes)


def _sources(place: pathlib.Path) -> list[pathlib.Path]:
    """Files of rows and directories of runs, in the order of their names.

    The order of a folder differs between file systems, and of two rows of one run the last counts.
    """
    if not place.is_dir():
        return [place]
    # Before its files: the records of a run are no rows.
    if (place / "config.json").exists() and (place / "records.jsonl").exists():
        return [place]
    inside = sorted(place.iterdir())
    summed = (place / "rows.jsonl").exists()
    return [
        source
        for entry in inside
        # A link to a folder above would have no end.
        if (entry.is_dir() and not entry.is_symlink()) or entry.suffix == ".jsonl"
        for source in _sources(entry)
        if not (summed and source.is_dir())
    ]


def check(row: Any, source: str) -> None:
    """Checks that a row can be compared.

    Args:
        row: a line's value.
        source: what to call it in messages.

    Raises:
        CheckpointError: no row, one of another schema, or one without a key that it needs.

    Example:
        >>> check({"schema": 2}, "a.jsonl, line 1")
        Traceback (most recent call last):
        jprune.errors.CheckpointError: a.jsonl, line 1, has schema 2; ...
    """
    if not isinstance(row, dict) or "schema" not in row:
        raise errors.CheckpointError(
            f"{source}, is no row: it has no `schema`. Rows are lines of experiments/results or "
            "rows.jsonl of `jprune compare --out DIR`; of a finished run, write the directory."
        )
    if row["schema"] != SCHEMA:
        newer = isinstance(row["schema"], int) and row["schema"] > SCHEMA
        advice = "Update jprune." if newer else "Run its command again with this version."
        raise errors.CheckpointError(
            f"{source}, has schema {shown(row['schema'], 40)}; this version of jprune reads "
            f"{SCHEMA}. {advice}"
        )
    # A key that is missing is told apart from null: the first is a file of another kind, the second
    # only says that nothing was measured.
    foreign.check(row, _Row, f"{source},")
    empty = [key for key in ("method", "model", "data", "versions") if not row[key]]
    if empty:
        raise errors.CheckpointError(
            f"{source}, has an empty `{empty[0]}`: without it the numbers say nothing."
        )
    budget = row["budget"]
    # Exactly one kind: two limits at once have no place on an axis of budgets.
    if budget is not None and len(budget) != 1:
        raise errors.CheckpointError(
            f"{source}, has {shown(budget, 60)} at `budget`; one fraction that is kept was "
            'expected, such as {"macs": 0.5}, or null for the dense net.'
        )
    if budget is None and row["method"] != "dense":
        raise errors.CheckpointError(
            f"{source}, has no budget, but its method is {shown(row['method'], 60)}. Only "
            "`dense` has none."
        )


def tasks(rows: Iterable[Row]) -> dict[tuple[str, str, int | None], list[Row]]:
    """Rows by net, data and training images: only rows of one task are compared.

    Example:
        >>> rows = [{"model": "a", "data": d, "train_images": None} for d in ("x", "y", "x")]
        >>> {task: len(same) for task, same in tasks(rows).items()}
        {('a', 'x', None): 2, ('a', 'y', None): 1}
    """
    by_task: dict[tuple[str, str, int | None], list[Row]] = {}
    for row in rows:
        by_task.setdefault((row["model"], row["data"], row["train_images"]), []).append(row)
    return by_task


def arms(rows: Sequence[Row]) -> tuple[Runs, list[str]]:
    """Sorts rows of one task by method, budget and seed; the dense net is an arm too.

    Settings in which the rows of one method differ become part of its name. Of several rows of one
    arm and seed the last counts. The dense net is taken from rows of its own, else from the
    `dense` entries of other rows.

    Returns:
        The runs, and notes of what does not count.
    """
    runs: Runs = {}
    again = 0
    for row, name in zip(rows, _names(rows)):
        budget = None if row["budget"] is None else next(iter(row["budget"].items()))
        seeds = runs.setdefault(Arm(name, budget), {})
        # The same arm and seed once more: the later row replaces the earlier one.
        again += row["seed"] in seeds
        seeds[row["seed"]] = row
    dense = {row["seed"]: _dense(row) for row in rows if _accuracy(row, "dense") is not None}
    # Rows of its own come second, so that they win.
    dense |= {row["seed"]: _dense(row) for row in rows if row["budget"] is None}
    whole = {Arm("dense", None): dense} if dense else {}
    notes = [f"{again} of the rows were run again later: of one seed, the last row counts."]
    pruned = {arm: seeds for arm, seeds in runs.items() if arm.budget is not None}
    return {**whole, **pruned}, notes if again else []


def _names(rows: Sequence[Row]) -> list[str]:
    """A name for each row: its method, with the settings in which rows of that method differ."""
    settings = [_flat(row["settings"] or {}) for row in rows]
    differing: dict[str, list[str]] = {}
    for method in {row["method"] for row in rows}:
        of_method = [chosen for row, chosen in zip(rows, settings) if row["method"] == method]
        # A dict keeps the order in which settings came; a set would not, and names would change
        # between runs.
        keys = dict.fromkeys(key for chosen in of_method for key in chosen)
        # Compared as text: lists have no hash. A setting that is not in a row counts as another
        # value.
        differing[method] = [key for key in keys if len({str(g.get(key)) for g in of_method}) > 1]
    return [
        " ".join(
            [row["method"]]
            + [f"{key}={chosen.get(key, 'usual')}" for key in differing[row["method"]]]
        )
        for row, chosen in zip(rows, settings)
    ]


_ARM = ("method", "seed", "budget", "macs", "params", "density")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {path with dots: value}, without those that make the arm and the seed."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if name in _ARM and not prefix:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _accuracy(row: Row, net: str) -> float | None:
    return (row[net] or {}).get("accuracy")


def _dense(row: Row) -> Row:
    """The row of a dense net: the row itself, or one made of the net that its run began with."""
    # In a row of its own the dense net is what came out; in other rows it is what the run began
    # with.
    own = row["budget"] is None and _accuracy(row, "pruned") is not None
    unpruned = dict.fromkeys(("density", "params", "macs", "bytes", "latency"), 1.0)
    nothing = dict.fromkeys(("before_finetune", "finetune", "prune_s", "steps", "widths"))
    validation = (row["validation"] or {}).get("pruned" if own else "dense")
    return {
        **row,
        **nothing,
        "method": "dense",
        "refs": [],
        "budget": None,
        "pruned": row["pruned" if own else "dense"],
        "achieved": unpruned,
        "validation": {"pruned": validation},
    }


def row_of(folder: PathLike, config: str = "", train_images: int | None = None) -> Row:
    """The row of a finished run.

    Args:
        folder: the `--out` of `jprune prune`.
        config: name of the comparison that it was run for.
        train_images: training images that it was restricted to; None is what the run says.

    Raises:
        CheckpointError: the run is not finished, or its files are damaged.
    """
    folder = guarded(folder)
    result, settings = read_json(folder / "result.json"), read_json(folder / "config.json", Config)
    schema.check(result, str(folder / "result.json"))
    validated: dict[str, list[int]] = {}
    validation: dict[str, float | None] = {}
    for record in read_lines(folder / "records.jsonl", Record).records:
        # Only the records at the end of an epoch have it; the last one of a stage stays. The loss,
        # since not every task has an accuracy.
        if "validation_loss" in record["metrics"]:
            validated.setdefault(record["stage"], []).append(record["step"])
            validation[record["stage"]] = record["metrics"].get("validation_accuracy")
    # Whatever trains behind the dense net counts as fine-tuning, rounds of pruning included.
    after = [stage for stage in validated if stage != "train"]
    steps = sum(validated[stage][-1] for stage in after)
    epoch = _steps_of_an_epoch(result, settings, validated)
    copied = "refs model data seed versions device wall_s achieved dense before_finetune pruned"
    return {
        "schema": SCHEMA,
        "id": folder.resolve().name,
        "config": config,
        "method": result["method"],
        "budget": result["requested"],
        "train_images": settings.get("train_images") if train_images is None else train_images,
        "settings": {
            **settings["options"],
            **({"weights": settings["weights"]} if settings["weights"] else {}),
        },
        "commit": result["commit"],
        "command": result["command"],
        "date": datetime.fromtimestamp((folder / "result.json").stat().st_mtime, UTC).isoformat(
            timespec="seconds"
        ),
        **{key: result[key] for key in copied.split()},
        "validation": {
            "dense": validation.get("train"),
            # The last training stage: what comes behind it no longer changes the accuracy by
            # training.
            "pruned": validation[after[-1]] if after else None,
        },
        "finetune": {
            # What was run, and not what was set: `max_steps` ends a training early, and methods
            # such as rounds of pruning train at several times.
            "epochs": None if epoch is None else round(steps / epoch, 4),
            "learning_rate": settings["finetune"]["learning_rate"],
            "steps": steps,
        },
        "steps": steps_of(result["wall_s"], {s: of[-1] for s, of in validated.items()}),
        "widths": _widths(folder),
        "prune_s": round(
            sum(s for stage, s in result["wall_s"].items() if base(stage) not in NO_PRUNING), 3
        ),
    }


def _steps_of_an_epoch(
    result: Mapping[str, Any], settings: Mapping[str, Any], validated: Mapping[str, Sequence[int]]
) -> int | None:
    """Steps in a pass over the training split; None where nothing says it."""
    examples = result.get("splits", {}).get("train")
    if examples is not None:
        return max(1, examples // settings["finetune"]["batch_size"])
    # Older results have no sizes. A stage is validated at the end of every epoch and at its own
    # end: the first of several validations is the end of an epoch.
    return min((steps[0] for steps in validated.values() if len(steps) > 1), default=None)


def _widths(folder: pathlib.Path) -> dict[str, int] | None:
    """{group: units kept}, of a run whose plan is there; None without."""
    try:
        plan = read_json(folder / "plan.json", Plan)
    except errors.CheckpointError:
        return None
    return {name: len(group["keep"]) for name, group in plan["groups"].items()}

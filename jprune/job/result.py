"""The files that a finished run leaves for others: `plan.json`, `result.json`, `report.html`."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jprune import errors, measure, report, survey
from jprune.base import Budget, Cost, Pruned, Task
from jprune.forms.leaf_type import has_dynamic
from jprune.graph import slim_params
from jprune.job.saved import plan_for
from jprune.masks import density
from jprune.runs.directory import Note, RunDirectory, machines_of
from jprune.runs.files import read_json, write_json
from jprune.train.net import Net
from jprune.train.task import at_resolution

KINDS = {"bytes": "traffic"}
"""Names in results of kinds of budgets; `bytes` of a result are those of the file."""


class Asked(NamedTuple):
    """The settings of the run that `result.json` repeats."""

    command: str
    method: str
    model: str
    data: str
    seed: int
    budget: Budget
    target: str = "xla"


def write_result(
    directory: RunDirectory,
    asked: Asked,
    task: Task,
    pruned: Pruned,
    note: Note = lambda text: None,
) -> dict[str, Any]:
    """Writes `plan.json`, `result.json` and `report.html`, unless they are there and whole.

    Args:
        directory: of the run, all of whose stages are done.
        asked: what was asked for.
        task: the dense net and its data.
        pruned: the net after the last stage.
        note: told what is made again.

    Returns:
        What is in `result.json`.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to.
    """
    path, plan_path = directory.path / "result.json", directory.path / "plan.json"
    plan, result = _standing(plan_path), _standing(path, report.check)
    # Where all of it is missing, the run has only now come to its end.
    if plan is not None or result is not None or path.exists() or plan_path.exists():
        for name, content in (("plan.json", plan), ("result.json", result)):
            if content is None:
                note(f"{directory.path / name} is missing or damaged: it is made again.")
    if plan is None:
        groups, masks = Net(task).groups, Net(task).unit_masks(pruned)
        shapes, small = Net(task).shapes, slim_params(groups, masks, pruned.variables)
        plan = plan_for(task.fn, shapes, task.example, groups, masks, small)
        if pruned.resolution is not None:
            plan["resolution"] = np.asarray(pruned.resolution).tolist()
        write_json(plan_path, plan, digest=True)
    # The result is written once: what was measured stays, whatever machine opens the directory
    # later.
    if result is None:
        result = result_of(directory, asked, task, pruned)
        # Checked before it is written: a result without a key would be found by its readers, much
        # later.
        report.check(result)
        write_json(path, result, digest=True)
    if not all((directory.path / name).exists() for name in ("report.html", "report.png")):
        report.html(directory.path)
    return read_json(path)


def _standing(
    path: pathlib.Path, check: Callable[[dict[str, Any]], None] = lambda value: None
) -> dict[str, Any] | None:
    """What is in a file; None where it is missing or damaged."""
    try:
        value = read_json(path)
        check(value)
    except errors.CheckpointError:
        return None
    return value


def refs_of(method: str) -> list[int]:
    """Numbers of the survey's references that a method is from; none for a baseline."""
    return [ref for row in survey.rows() if row["name"] == method for ref in row["refs"]]


def result_of(directory: RunDirectory, asked: Asked, task: Task, pruned: Pruned) -> dict[str, Any]:
    """The keys of `result.json`; null for what was not measured.

    Args:
        directory: of the run.
        asked: what was asked for.
        task: the dense net and its data.
        pruned: the net after the last stage.
    """
    measured = _metrics(directory, "measure")
    law = _metrics(directory, "law").get("max_rel_err")
    dense, before, small = (
        {**_metrics(directory, name), **measured.get(name, {})}
        for name in ("dense", "before_finetune", "pruned")
    )
    machines = machines_of(directory.outcomes())
    now = {"versions": measure.versions(), "device": measure.device()}
    # What was measured, was so on the last of them.
    last = {**now, **(machines[-1][1] if machines else {})}
    fraction = lambda kind: _ratio(small.get(kind), dense.get(kind))
    counted = counted_fractions(task, pruned)
    return {
        "schema": report.SCHEMA,
        "commit": directory.about["commit"],
        "command": asked.command,
        "method": asked.method,
        "refs": refs_of(asked.method),
        "model": asked.model,
        "data": asked.data,
        "seed": asked.seed,
        "versions": last["versions"],
        "device": last["device"],
        "earlier_machines": [{"from": name, **machine} for name, machine in machines[:-1]],
        "wall_s": {name: done["wall_s"] for name, done in directory.outcomes().items()},
        "requested": {KINDS.get(asked.budget.kind, asked.budget.kind): float(asked.budget.value)},
        "achieved": {
            "density": density(pruned.masks),
            "params": fraction("params"),
            "macs": fraction("macs"),
            "bytes": fraction("bytes"),
            "latency": _ratio(_median(small, asked.target), _median(dense, asked.target)),
            **{KINDS.get(kind, kind): counted[kind] for kind in ("energy", "bytes")},
        },
        **({} if counted["latency"] is None else {"predicted": {"latency": counted["latency"]}}),
        **({} if asked.budget.kind != "latency" else {"target": asked.target}),
        "splits": {name: int(size) for name, size in task.data.sizes.items()},
        "splits_from": task.data.about,
        "law_max_rel_err": law,
        "warnings": report.law_warnings(law),
        "dense": report.measured(**dense),
        "before_finetune": report.measured(**before),
        "pruned": report.measured(**small),
    }


def _metrics(directory: RunDirectory, stage: str) -> dict[str, Any]:
    """Metrics of a stage that has one record; none if the recipe has no such stage."""
    outcome = directory.outcomes().get(stage)
    return outcome["records"][0]["metrics"] if outcome else {}


def counted_fractions(task: Task, pruned: Pruned) -> dict[str, float | None]:
    """What the cost model says is kept of energy, bytes moved and latency; None: it does not."""
    kinds = ("energy", "bytes", "latency")
    # Nets that choose their channels for every image are counted in MACs alone.
    if has_dynamic(pruned.variables):
        return dict.fromkeys(kinds)
    net = Net(at_resolution(task, pruned))
    now, dense = net.cost_as_held(pruned, pruned.masks or {}), Net(task).cost({})
    return {kind: _ratio(_number(now, kind), _number(dense, kind)) for kind in kinds}


def _number(cost: Cost, kind: str) -> float | None:
    value = getattr(cost, kind)
    return None if value is None else float(value)


def _median(net: dict[str, Any], target: str) -> float | None:
    """Latency under XLA at batch 128, or TFLite at batch 1, in ms."""
    latency = net.get("tflite_b1" if target == "tflite" else "xla_b128")
    return latency and latency["median"]


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None

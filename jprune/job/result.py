"""The files that a finished run leaves for others: `plan.json`, `result.json`, `report.html`."""

from typing import Any, NamedTuple

import numpy as np

from jprune import measure, report, survey
from jprune.base import Budget, Pruned, Task
from jprune.graph import slim_params
from jprune.job.saved import plan_for
from jprune.masks import density
from jprune.runs.directory import RunDirectory
from jprune.runs.files import read_json, write_json
from jprune.train.net import Net


class Asked(NamedTuple):
    """The settings of the run that `result.json` repeats."""

    command: str
    method: str
    model: str
    data: str
    seed: int
    budget: Budget


def write_result(
    directory: RunDirectory, asked: Asked, task: Task, pruned: Pruned
) -> dict[str, Any]:
    """Writes `plan.json`, `result.json` and `report.html`, unless they exist already.

    Args:
        directory: of the run, all of whose stages are done.
        asked: what was asked for.
        task: the dense net and its data.
        pruned: the net after the last stage.

    Returns:
        What is in `result.json`.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to.
    """
    path = directory.path / "result.json"
    # The result is written once: latencies that were measured stay those of the run, whatever
    # machine opens the directory later.
    if not path.exists():
        groups, masks = Net(task).groups, Net(task).unit_masks(pruned)
        shapes, small = Net(task).shapes, slim_params(groups, masks, pruned.variables)
        plan = plan_for(task.fn, shapes, task.example, groups, masks, small)
        if pruned.resolution is not None:
            plan["resolution"] = np.asarray(pruned.resolution).tolist()
        write_json(directory.path / "plan.json", plan)
        result = result_of(directory, asked, task, pruned)
        # Checked before it is written: a result without a key would be found by its readers, much
        # later.
        report.check(result)
        write_json(path, result)
    if not (directory.path / "report.html").exists():
        report.html(directory.path)
    return read_json(path)


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
    fraction = lambda kind: _ratio(small.get(kind), dense.get(kind))
    return {
        "schema": report.SCHEMA,
        "commit": directory.about["commit"],
        "command": asked.command,
        "method": asked.method,
        "refs": refs_of(asked.method),
        "model": asked.model,
        "data": asked.data,
        "seed": asked.seed,
        "versions": measure.versions(),
        "device": measure.device(),
        "wall_s": {name: done["wall_s"] for name, done in directory.outcomes().items()},
        "requested": {asked.budget.kind: float(asked.budget.value)},
        "achieved": {
            "density": density(pruned.masks),
            "params": fraction("params"),
            "macs": fraction("macs"),
            "bytes": fraction("bytes"),
            "latency": _ratio(_median(small), _median(dense)),
        },
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


def _median(net: dict[str, Any]) -> float | None:
    """Latency at batch 128, in ms."""
    latency = net.get("xla_b128")
    return latency and latency["median"]


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None

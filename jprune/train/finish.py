"""The end of the main job: slim, export, measure, report."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors, export, measure, report, survey
from jprune.base import Variables
from jprune.cost import cost_model
from jprune.graph import slim, slim_params
from jprune.graph.plans import plan_of
from jprune.learners import evaluator
from jprune.masks import apply_masks
from jprune.recipes.stages import shapes_of
from jprune.report import schema
from jprune.train import checkpoint
from jprune.train.files import atomic_write, write_json
from jprune.units import expand

if TYPE_CHECKING:
    from jprune.train.job import Job

LAW_EXAMPLES = 256
"""Test images on which the masked and the slim net are compared."""


class Small:
    """The slim net of a job, made from its masks."""

    def __init__(self, job: Job):
        self.masks = job.net.masks or {}
        self.fn = slim(job.task.fn, job.groups, self.masks)
        self.variables: Variables = slim_params(job.groups, self.masks, job.net.variables)


def results(job: Job, command: str, first: dict[str, Any]) -> dict[str, Any]:
    """Runs the last stages and writes `result.json` and `report.html`.

    Args:
        job: all stages of the recipe are done.
        command: as the user typed it.
        first: versions and device.
    """
    small, directory = Small(job), job.directory
    slimmed = stage(job, "slim", lambda folder: slim_stage(job, small))
    sizes = stage(job, "export", lambda folder: export_stage(job, small, folder))
    measured = stage(job, "measure", lambda folder: measure_stage(job, small, directory.folder))
    result = result_of(job, command, first, slimmed, sizes, measured)

    def report_stage(folder: pathlib.Path) -> dict[str, Any]:
        schema.check(result)
        write_json(directory.folder / "result.json", result)
        report.html(directory.folder)
        return {}

    stage(job, "report", report_stage)
    return result


def stage(job: Job, name: str, run: Any) -> dict[str, Any]:
    """A stage that leaves the net as it is."""

    def body(folder: pathlib.Path) -> dict[str, Any]:
        job.reporter.begin(name)
        found = run(folder)
        job.reporter.end(name)
        return found

    return job.directory.stage(name, body)


def slim_stage(job: Job, small: Small) -> dict[str, Any]:
    """Saves the slim variables and the plan; checks the law on real data."""
    task, folder = job.task, job.directory.folder
    checkpoint.save(folder / "params", 0, small.variables, {"leaves": leaf_shapes(small.variables)})
    shapes = shapes_of(task)
    plan = plan_of(task.fn, shapes, task.example, groups=job.groups, masks=small.masks)
    write_json(folder / "plan.json", plan)
    model = cost_model(task.fn, shapes, task.example, groups=job.groups)
    kept, dense = model(small.masks), model({})
    batch = next(task.data.batches("test", LAW_EXAMPLES))
    masks = expand(job.groups, small.masks, roles=("in",))
    masked = jax.jit(task.fn)(apply_masks(job.net.variables, masks), batch["image"])
    slim_out = jax.jit(small.fn)(small.variables, batch["image"])
    error = jnp.max(jnp.abs(masked - slim_out)) / jnp.max(jnp.abs(masked))
    units = sum(mask.size for mask in small.masks.values())
    return {
        "law_max_rel_err": float(error),
        "density": sum(int(np.sum(m)) for m in small.masks.values()) / max(1, units),
        "params": [int(dense.params), int(kept.params)],
        "macs": [int(dense.macs), int(kept.macs)],
    }


def leaf_shapes(variables: Variables) -> list[str]:
    """Path and shape of every leaf, as text."""
    return [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')}:{leaf.shape}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    ]


def export_stage(job: Job, small: Small, folder: pathlib.Path) -> dict[str, Any]:
    """model.stablehlo and model.tflite of the slim net; the dense .tflite for comparison."""
    out, example = job.directory.folder, job.task.example
    atomic_write(out / "model.stablehlo", export.stablehlo(small.fn, small.variables, example))
    try:
        dense = export.tflite(job.task.fn, job.dense_variables, example)
        slimmed = export.tflite(small.fn, small.variables, example)
    except errors.MissingExtraError as error:
        job.reporter.say(f"model.tflite is left out: {error}")
        return {"bytes": [None, None]}
    except errors.ExportError as error:
        job.reporter.say(f"model.tflite is left out: {error}")
        return {"bytes": [None, None]}
    atomic_write(folder / "dense.tflite", dense)
    atomic_write(out / "model.tflite", slimmed)
    return {"bytes": [len(dense), len(slimmed)]}


def measure_stage(job: Job, small: Small, out: pathlib.Path) -> dict[str, Any]:
    """Accuracy on the test split, read once, and latency of both nets in turns."""
    task = job.task
    scores = [
        evaluator(task)(job.dense_variables, "test"),
        evaluator(task, small.fn)(small.variables, "test"),
    ]
    latency = measure.xla_latency(
        (task.fn, job.dense_variables), (small.fn, small.variables), task.example
    )
    tflite: dict[str, Any] = {"dense": None, "slim": None}
    files = sorted((out / "stages").glob("*-export/dense.tflite"))
    if files:
        models = {"dense": files[0].read_bytes(), "slim": (out / "model.tflite").read_bytes()}
        tflite = dict(measure.tflite_latency(models))
    return {"scores": scores, "xla": latency, "tflite": tflite}


def result_of(
    job: Job,
    command: str,
    first: dict[str, Any],
    slimmed: dict[str, Any],
    sizes: dict[str, Any],
    measured: dict[str, Any],
) -> dict[str, Any]:
    """All keys of `result.json`; what was not measured is None."""
    config = job.config
    ratio = lambda pair: None if None in pair else pair[1] / pair[0]
    net = {
        name: schema.measured(
            **measured["scores"][place],
            params=slimmed["params"][place],
            macs=slimmed["macs"][place],
            bytes=sizes["bytes"][place],
            tflite_b1=measured["tflite"][name],
            **measured["xla"][name],
        )
        for place, name in enumerate(("dense", "slim"))
    }
    medians = [net[name]["latency_ms"]["xla_b128"] for name in ("dense", "slim")]
    before = job.before_finetune or {}
    return {
        "schema": schema.SCHEMA,
        "commit": job.directory.common["commit"],
        "command": command,
        "method": config.method,
        "refs": survey.references_of(config.method),
        "model": config.model,
        "data": config.data,
        "seed": config.seed,
        **first,
        "wall_s": dict(job.directory.seconds),
        "requested": {config.budget.kind: float(config.budget.value)},
        "achieved": {
            "density": slimmed["density"],
            "params": ratio(slimmed["params"]),
            "macs": ratio(slimmed["macs"]),
            "bytes": ratio(sizes["bytes"]),
            "latency": ratio([entry and entry["median"] for entry in medians]),
        },
        "law_max_rel_err": slimmed["law_max_rel_err"],
        "dense": net["dense"],
        "before_finetune": schema.measured(
            accuracy=before.get("accuracy"),
            loss=before.get("loss"),
            params=slimmed["params"][1],
            macs=slimmed["macs"][1],
        ),
        "pruned": net["slim"],
    }

"""Whether two finished runs are the same, bit for bit, times aside."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jprune.runs import checkpoint, inside
from jprune.runs.files import read_json, read_lines

TIMED = ("measure",)
"""Stages whose records are times."""


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs of the same settings.

    Compared are the exported files, the plan with its masks, the slim and the newest whole net,
    the records and the result; seconds, latencies and the command are left out.

    Args:
        one: folder of a run.
        other: folder of another run.

    Returns:
        Names of what differs; empty where the runs are the same.
    """
    names = ("model.stablehlo", "model.tflite")
    wrong = [name for name in names if _read(one / name) != _read(other / name)]
    wrong += [name for name in ("config.json", "plan.json") if _differ(read_json, one, other, name)]
    if not equal(checkpoint.load_tree(one / "params"), checkpoint.load_tree(other / "params")):
        wrong.append("params")
    if not equal(newest_net(one), newest_net(other)):
        wrong.append("state")
    if timeless_result(read_json(one / "result.json")) != timeless_result(
        read_json(other / "result.json")
    ):
        wrong.append("result.json")
    if timeless_records(one) != timeless_records(other):
        wrong.append("records.jsonl")
    return wrong


def _read(path: Path) -> bytes:
    # A net may have no .tflite form: then neither run has the file.
    return path.read_bytes() if path.exists() else b""


def _differ(read: Any, one: Path, other: Path, name: str) -> bool:
    return read(one / name) != read(other / name)


def equal(one: Any, other: Any) -> bool:
    """Whether two trees have the same structure and the same bits."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other))
    return all(_bits(a) == _bits(b) for a, b in pairs)


def _bits(leaf: Any) -> tuple[Any, ...]:
    array = np.asarray(leaf)
    return array.shape, str(array.dtype), array.tobytes()


def newest_net(run: Path) -> Any:
    """The net after the last stage that changed it: variables, masks, what was saved."""
    states = [stage / inside.STATE for stage in inside.stages(run)]
    saved = checkpoint.load([state for state in states if state.exists()][-1])
    assert saved is not None
    return saved.state


def timeless_records(run: Path) -> list[str]:
    """The records without their seconds, and without the run's name."""
    records = read_lines(run / "records.jsonl").records
    return [
        json.dumps({**record, "wall_s": None, "run": None})
        for record in records
        if record["stage"] not in TIMED
    ]


def timeless_result(result: dict[str, Any]) -> dict[str, Any]:
    """The result without seconds, latencies and command."""
    timeless = {**result, "wall_s": [*result["wall_s"]], "command": None}
    timeless["achieved"] = {**result["achieved"], "latency": None}
    for name in ("dense", "before_finetune", "pruned"):
        timeless[name] = {**result[name], "latency_ms": None}
    return timeless

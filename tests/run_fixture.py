"""A finished run directory as `jprune prune` leaves it: ResNet-8 on digits, made up."""

import json
from pathlib import Path
from typing import Any

import numpy as np

COMMAND = "jprune prune --model resnet8 --data digits --method taylor --macs 0.5 --seed 0 --out a"
COMMIT = "2f02d7d1c0ffee00c0ffee00c0ffee00c0ffee00"
VERSIONS = {
    "python": "3.11.7",
    "jprune": "0.1.0",
    "jax": "0.10.2",
    "jaxlib": "0.10.2",
    "flax": "0.12.8",
    "optax": "0.2.8",
    "orbax-checkpoint": "0.12.8",
    "numpy": "2.4.6",
    "ai-edge-litert": None,
}
DEVICE = {"platform": "cpu", "kind": "Some Processor @ 2.70GHz", "threads": 2}
GROUPS = {
    "params/conv1/kernel": (16, 8, ("params/block1/conv2/kernel",)),
    "params/block1/conv1/kernel": (16, 8, ()),
    "params/block2/conv1/kernel": (32, 24, ()),
    "params/block2/conv2/kernel": (16, 8, ("params/block3/conv2/kernel",)),
    "params/block3/conv1/kernel": (64, 48, ()),
    "params/block3/conv2/kernel": (32, 32, ()),
}


def latency(median: float) -> dict[str, float]:
    return {"median": median, "p10": 0.96 * median, "p90": 1.21 * median}


def state(accuracy, loss, params, macs, size, latencies) -> dict[str, Any]:
    keys = ("xla_b1", "xla_b128", "tflite_b1")
    return {
        "accuracy": accuracy,
        "loss": loss,
        "params": params,
        "macs": macs,
        "bytes": size,
        "latency_ms": {key: ms and latency(ms) for key, ms in zip(keys, latencies)},
    }


def result() -> dict[str, Any]:
    return {
        "schema": 1,
        "commit": COMMIT,
        "command": COMMAND,
        "method": "taylor",
        "refs": [18],
        "model": "resnet8",
        "data": "digits",
        "seed": 0,
        "versions": VERSIONS,
        "device": DEVICE,
        "wall_s": {
            "train": 62.4,
            "prune": 3.21,
            "finetune": 48.9,
            "slim": 0.8,
            "law": 2.6,
            "measure": 9.7,
            "export": 1.9,
        },
        "requested": {"macs": 0.5},
        "achieved": {
            "density": 0.727,
            "params": 0.566,
            "macs": 0.497,
            "bytes": 0.571,
            "latency": 0.642,
        },
        "law_max_rel_err": 4.1e-7,
        "dense": state(0.9833, 0.0612, 75_002, 747_136, 305_844, (0.213, 4.82, None)),
        "before_finetune": state(0.7667, 0.8431, 42_419, None, None, (None, None, None)),
        "pruned": state(0.9767, 0.0794, 42_419, 371_520, 174_560, (0.161, 3.09, None)),
    }


def plan(groups: dict[str, Any] | None = None) -> dict[str, Any]:
    def entry(name, size, kept, tied):
        leaves = (name, *tied)
        places = [{"leaf": leaf, "axis": 3, "roles": ["kernel"]} for leaf in leaves]
        places.append({"leaf": "params/norm1/scale", "axis": 0, "roles": ["scale"]})
        return {"size": size, "exact": True, "keep": list(range(0, kept)), "places": places}

    def frozen(leaf, axis, positions, reason, primitive, equation, source="", remedy=""):
        names = "leaf axis positions reason primitive equation source remedy".split()
        values = (leaf, axis, positions, reason, primitive, equation, source, remedy)
        return dict(zip(names, values))

    output = "tied to a network output"
    add = "add float32[1,10] float32[1,10] -> float32[1,10]"
    return {
        "schema": 1,
        "sha256": "ab" * 32,
        "primitives": {"add": 2, "conv_general_dilated": 6},
        "groups": {name: entry(name, *rest) for name, rest in (groups or GROUPS).items()},
        "branches": [],
        "leaf_types": {},
        "leaves": {},
        "frozen": [
            frozen(
                "params/conv1/kernel",
                2,
                1,
                "tied to the network input args/0",
                "conv_general_dilated",
                "conv_general_dilated float32[1,8,8,1] float32[3,3,1,16] -> float32[1,8,8,16]",
            ),
            frozen("params/fc/bias", 0, 10, output, "add", add, "resnet.py:128 (__call__)"),
            frozen("params/fc/kernel", 1, 10, output, "add", add, "resnet.py:128 (__call__)"),
        ],
    }


def records(steps: int = 120) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    lines = []

    def line(stage, step, metrics):
        lines.append(
            {
                "run": "a",
                "data": "digits",
                "model": "resnet8",
                "method": "taylor",
                "budget": {"macs": 0.5},
                "seed": 0,
                "stage": stage,
                "step": step,
                "wall_s": 0.2 * step,
                "metrics": metrics,
                "commit": COMMIT,
            }
        )

    for stage, first, last, steps_of in (
        ("train", 2.3, 0.05, steps),
        ("finetune", 0.84, 0.06, steps // 2),
    ):
        for step in range(0, steps_of + 1, 4):
            loss = last + (first - last) * np.exp(-5 * step / steps_of)
            loss *= 1 + 0.12 * rng.normal()
            metrics = {"loss": float(loss), "accuracy": float(np.exp(-0.4 * abs(loss)))}
            if step % 20 == 0:
                metrics["validation_loss"] = float(1.1 * loss + 0.02)
                metrics["validation_accuracy"] = float(np.exp(-0.5 * abs(loss)))
            line(stage, step, metrics)
    line("evaluate", 0, {"seconds": 1.2})
    lines[0] |= {"versions": VERSIONS, "device": DEVICE}
    return lines


def config() -> dict[str, Any]:
    return {
        "model": "resnet8",
        "data": "digits",
        "method": "taylor",
        "budget": {"macs": 0.5, "multiple_of": 8, "min_units": 8},
        "seed": 0,
        "train": {"epochs": 30, "learning_rate": 0.1, "batch_size": 64},
        "finetune": {"epochs": 15, "learning_rate": 0.02},
        "options": {},
        "dtype": "float32",
        "weights": None,
    }


def write(folder: Path, **changes: Any) -> Path:
    """Writes the run; `changes` replace whole files: result, plan, records, config."""
    files = {"result": result(), "plan": plan(), "records": records(), "config": config()}
    files |= changes
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("result", "plan", "config"):
        (folder / f"{name}.json").write_text(json.dumps(files[name], indent=1))
    lines = [json.dumps(record) + "\n" for record in files["records"]]
    (folder / "records.jsonl").write_text("".join(lines))
    return folder

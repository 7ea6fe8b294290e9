"""Rows of a made-up comparison: LeNet-5 on MNIST, seven methods, two budgets, three seeds."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jprune.compare import Row
from tests import run_fixture

METHODS = ("random", "l1", "l2", "taylor", "scratch_e", "scratch_b")
COMMIT = run_fixture.COMMIT


def net(accuracy: float, kept: float, time: float = 1.0) -> dict[str, Any]:
    params, macs = round(431_080 * kept), round(2_293_000 * kept)
    times = (0.08 * time, 2.9 * time, 0.05 * time)
    return run_fixture.state(accuracy, 4 * (1 - accuracy), params, macs, 4 * params, times)


def row(
    method: str = "l1",
    seed: int = 0,
    macs: float | None = 0.5,
    accuracy: float = 0.9,
    **changes: Any,
) -> Row:
    """One row; `changes` replace its keys."""
    kept = 1.0 if macs is None else macs
    made: Row = {
        "schema": 1,
        "id": f"{method}-{macs}-{seed}",
        "config": "made_up",
        "method": method,
        "refs": [],
        "model": "lenet5",
        "data": "mnist",
        "train_images": None,
        "budget": None if macs is None else {"macs": macs},
        "seed": seed,
        "settings": {},
        "commit": COMMIT,
        "command": f"python -m experiments.run made_up --method {method} --seed {seed}",
        "versions": run_fixture.VERSIONS,
        "device": run_fixture.DEVICE,
        "date": "2026-11-25T08:00:00+00:00",
        "wall_s": {"train": 20.0, "prune": 1.5, "finetune": 10.0},
        "achieved": {
            "density": kept,
            "params": kept,
            "macs": kept,
            "bytes": kept,
            "latency": 0.2 + 0.8 * kept,
        },
        "dense": net(0.99, 1.0),
        "before_finetune": net(accuracy - 0.3, kept),
        "pruned": net(accuracy, kept, 0.2 + 0.8 * kept),
        "validation": {"dense": 0.985, "pruned": accuracy - 0.01},
        "finetune": {"epochs": 10, "learning_rate": 0.05, "steps": 4210},
        "prune_s": 1.5,
    }
    return made | changes


def rows(seeds: int = 3, methods: tuple[str, ...] = METHODS, **changes: Any) -> list[Row]:
    """A whole comparison; at 50 % random beats nothing, at 25 % it beats L2."""
    rng = np.random.default_rng(0)
    level = dict(random=0.955, l1=0.968, l2=0.966, taylor=0.975, scratch_e=0.96, scratch_b=0.972)
    made = []
    for macs in (0.5, 0.25):
        for seed in range(seeds):
            for method in methods:
                lost = 0 if macs == 0.5 else 0.04 if method == "l2" else 0.02
                accuracy = round(level.get(method, 0.97) - lost + 0.002 * rng.normal(), 4)
                found = row(method, seed, macs, accuracy, **changes)
                if method.startswith("scratch"):
                    found |= {"before_finetune": net(0.1, macs), "prune_s": 0.0}
                made.append(found)
    return made


def write(path: Path, made: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in made))
    return path

"""How long XLA takes to compile the slim net, against the dense one.

    python -m experiments.benchmarks.compile

Expected: at most as long, in the geometric mean over the nets.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import jprune
from experiments import rows
from experiments.benchmarks.trace import MASKED, TWINS
from experiments.keras_nets import build
from experiments.zoos import random_masks

OUT = rows.RESULTS / "engine" / "compile.jsonl"


def main(nets: tuple[str, ...] = tuple(TWINS), repeats: int = 5, out: Path = OUT) -> None:
    """Times both in turns, and adds a row per net and one with the geometric mean.

    Args:
        nets: names in torchvision, of which the twins in keras.applications are compiled.
        repeats: rounds.
        out: file of the rows.
    """
    # Compiled functions from earlier runs would make every compilation look free.
    jax.config.update("jax_enable_compilation_cache", False)
    found = [compiled(name, repeats) for name in nets]
    mean = float(np.exp(np.mean([np.log(row["slim_of_dense"]) for row in found])))
    found.append({"name": "geometric_mean", "nets": list(nets), "slim_of_dense": mean})
    print(json.dumps(found[-1]))
    source = rows.provenance("keras")
    rows.append(out, *({**row, "repeats": repeats, **source} for row in found))


def compiled(name: str, repeats: int) -> rows.Row:
    """Medians for one net."""
    twin, side = TWINS[name]
    net = build(twin, side, batch=1)
    groups = jprune.trace(net.fn, net.shapes, net.example)
    masks = random_masks(groups, 0, MASKED)
    small = jax.eval_shape(lambda tree: jprune.slim_params(groups, masks, tree), net.shapes)
    slim_fn = jprune.slim(net.fn, groups, masks)
    times = []
    for _ in range(repeats):
        dense_s = compile_s(net.fn, net.shapes, net.example)
        times.append((dense_s, compile_s(slim_fn, small, net.example)))
    dense, slim = np.median(times, axis=0).tolist()
    row = {"name": name, "net": twin, "dense_s": dense, "slim_s": slim}
    row["slim_of_dense"] = slim / dense
    print(json.dumps(row), flush=True)
    return row


def compile_s(fn: Callable[..., Any], *shapes: Any) -> float:
    """Seconds to compile a function, its tracing not counted."""
    lowered = jax.jit(lambda *args: fn(*args)).lower(*shapes)
    start = time.perf_counter()
    lowered.compile()
    return time.perf_counter() - start


if __name__ == "__main__":
    tyro.cli(main)

"""How long XLA takes to compile the slim net, against the dense one.

    python -m experiments.benchmarks.compile

Expected: at most as long, in the geometric mean over the nets. Two fractions are kept: half of the
channels leaves widths that fill vector registers, six tenths leaves odd ones, for whose rests LLVM
has more code to make.
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
from experiments.benchmarks.trace import TWINS, medians
from experiments.keras_nets import KerasNet, build
from experiments.zoos import random_masks

OUT = rows.RESULTS / "engine" / "compile.jsonl"
KEPT = (0.5, 0.6)


def main(nets: tuple[str, ...] = tuple(TWINS), repeats: int = 3, out: Path = OUT) -> None:
    """Times both in turns, and adds a row per net and one with the geometric mean.

    Args:
        nets: names in torchvision, of which the twins in keras.applications are compiled.
        repeats: rounds.
        out: file of the rows.
    """
    # Compiled functions from earlier runs would make every compilation look free.
    jax.config.update("jax_enable_compilation_cache", False)
    found = [compiled(name, repeats) for name in nets]
    ratios = np.log([[*row["slim_of_dense"].values()] for row in found])
    means = dict(zip(map(str, KEPT), np.exp(ratios.mean(axis=0)).tolist()))
    found.append({"name": "geometric_mean", "nets": list(nets), "slim_of_dense": means})
    print(json.dumps(found[-1]))
    source = rows.provenance("keras")
    rows.append(out, *({**row, "repeats": repeats, **source} for row in found))


def compiled(name: str, repeats: int) -> rows.Row:
    """Medians for one net."""
    twin, side = TWINS[name]
    net = build(twin, side, batch=1)
    nets = {"dense": (net.fn, net.shapes), **{str(kept): slimmed(net, kept) for kept in KEPT}}
    rounds = [
        {part: compile_s(fn, shapes, net.example) for part, (fn, shapes) in nets.items()}
        for _ in range(repeats)
    ]
    slim_s = medians(rounds)
    dense_s = slim_s.pop("dense")
    ratios = {kept: seconds / dense_s for kept, seconds in slim_s.items()}
    row = {"name": name, "net": twin, "dense_s": dense_s, "slim_s": slim_s}
    row["slim_of_dense"] = ratios
    print(json.dumps(row), flush=True)
    return row


def slimmed(net: KerasNet, kept: float) -> tuple[Callable[..., Any], Any]:
    """The net with a random fraction of every group's units, and shapes of its variables."""
    groups = jprune.trace(net.fn, net.shapes, net.example)
    masks = random_masks(groups, 0, 1 - kept)
    small = jax.eval_shape(lambda tree: jprune.slim_params(groups, masks, tree), net.shapes)
    return jprune.slim(net.fn, groups, masks), small


def compile_s(fn: Callable[..., Any], *shapes: Any) -> float:
    """Seconds to compile a function, its tracing not counted."""
    lowered = jax.jit(lambda *args: fn(*args)).lower(*shapes)
    start = time.perf_counter()
    lowered.compile()
    return time.perf_counter() - start


if __name__ == "__main__":
    tyro.cli(main)

"""How the time to find and remove channels grows with depth, and how much memory it takes.

    python -m experiments.benchmarks.linear

Expected: over ResNets of 50 to 302 layers, time grows with an exponent of at most 1.15; ResNet-152
takes under 3 s, the net's own Python included, and under 300 MB beyond what JAX itself takes.
"""

import json
import multiprocessing
import sys
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np
import tyro

import jprune
from experiments import rows
from experiments.benchmarks.trace import medians, prune_once, zeros
from experiments.keras_nets import KerasNet, bottlenecks

OUT = rows.RESULTS / "engine" / "linear.jsonl"
NETS = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnet302": (3, 24, 70, 3),
}
"""{name with the number of layers: bottlenecks of the four stages}."""


def main(nets: tuple[str, ...] = tuple(NETS), repeats: int = 10, out: Path = OUT) -> None:
    """Measures a process per net, and adds a row for each and one with the exponent.

    Args:
        nets: which ResNets.
        repeats: timed rounds.
        out: file of the rows.
    """
    context = multiprocessing.get_context("spawn")
    found = []
    for name in nets:
        with ProcessPoolExecutor(1, context) as pool:
            found.append(pool.submit(measured, name, repeats).result())
        print(json.dumps(found[-1]), flush=True)
    if len(found) > 1:
        found.append({"name": "exponent", "nets": list(nets), "exponent": exponent(found)})
        print(json.dumps(found[-1]))
    source = rows.provenance("keras")
    rows.append(out, *({**row, "repeats": repeats, **source} for row in found))


def measured(name: str, repeats: int) -> rows.Row:
    """Medians of the seconds and peaks of the memory for one net; the first round is left out."""
    sys.setrecursionlimit(10_000)  # Keras walks a model recursively while it is built
    net = bottlenecks(name, NETS[name])
    variables = zeros(net)
    seconds = medians([prune_once(net, variables, seed) for seed in range(repeats + 1)][1:])
    return {
        "name": name,
        "layers": int(name.removeprefix("resnet")),
        "ours_s": seconds,
        "memory_mb": peaks(net),
    }


def peaks(net: KerasNet) -> dict[str, float]:
    """Peak memory of a trace, JAX's own included, and of JAX's own tracing alone.

    Apart from the timed rounds, since counting allocations slows everything down. The process's own
    peak would not do: importing the libraries takes more than any trace.
    """
    fresh = lambda: lambda variables, x: net.fn(variables, x)  # JAX keeps what it traced once
    calls = {
        "library": lambda: jax.make_jaxpr(fresh())(net.shapes, net.example),
        "trace": lambda: jprune.trace(fresh(), net.shapes, net.example),
    }
    found = {}
    for part, call in calls.items():
        tracemalloc.start()
        kept = call()
        found[part] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        del kept
    return found


def exponent(found: list[rows.Row]) -> float:
    """Slope of log(our seconds) over log(layers)."""
    layers = np.log([row["layers"] for row in found])
    seconds = np.log([row["ours_s"]["ours"] for row in found])
    return float(np.polyfit(layers, seconds, 1)[0])


if __name__ == "__main__":
    tyro.cli(main)

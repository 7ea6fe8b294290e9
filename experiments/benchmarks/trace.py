"""How long finding and removing channels takes, against Torch-Pruning, and how it grows.

    JPRUNE_BENCH_PYTHON=PYTHON python -m experiments.benchmarks.trace

`PYTHON` belongs to an environment of its own, `pip install torch torchvision torch-pruning`;
without it only our side runs. Expected: in the geometric mean at least 1.5 times faster than the
peer, the net's own Python (which is traced, not ours) apart; all of ours under 0.15 s for ResNet-50
and MobileNetV2; time over 50 to 302 layers with an exponent of at most 1.15, ResNet-152 under 3 s
and 300 MB; slim nets compile in at most the time of the dense ones.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jprune
from experiments import rows
from experiments.keras_nets import KerasNet, bottlenecks, build
from experiments.zoos import random_masks, timed_trace

OUT = rows.RESULTS / "benchmarks" / "trace.jsonl"
MASKED = 0.4
TWINS = {
    "resnet50": ("ResNet50", 224),
    "densenet121": ("DenseNet121", 224),
    "mobilenet_v2": ("MobileNetV2", 224),
    "efficientnet_b0": ("EfficientNetB0", 224),
    "inception_v3": ("InceptionV3", 299),
    "vgg16": ("VGG16", 224),
}
"""{name in torchvision: (name in keras.applications, side of the images)}."""
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 302: (3, 24, 70, 3)}
"""{layers: bottlenecks of the four stages}."""


def main(
    nets: tuple[str, ...] = tuple(TWINS),
    rounds: int = 10,
    depths: tuple[int, ...] = tuple(DEPTHS),
    out: Path = OUT,
) -> None:
    """Measures, prints and keeps a row for every comparison.

    Args:
        nets: names in torchvision.
        rounds: repetitions of both sides, in turns.
        depths: layers of the ResNets whose time shows the growth.
        out: file of the rows.
    """
    # Compiled functions from earlier runs would make every compilation look free.
    jax.config.update("jax_enable_compilation_cache", False)
    found = []
    for row in (*against_peer(nets, rounds), *growth(depths, rounds), *compilation(nets, rounds)):
        print(json.dumps(row), flush=True)
        found.append({**row, "rounds": rounds, **rows.provenance("keras")})
    rows.keep(out, found, "name")


class Peer:
    """The process that runs Torch-Pruning; idle while our side runs."""

    def __init__(self, python: str):
        script = Path(__file__).with_name("torch_pruning_peer.py")
        self.process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def against_peer(nets: Iterable[str], rounds: int) -> list[rows.Row]:
    """Both sides in turns, net by net, and a last row with the geometric means."""
    python = os.environ.get("JPRUNE_BENCH_PYTHON")
    peer = Peer(python) if python else None
    versions = peer.ask() if peer else None
    found = []
    for name in nets:
        twin, side = TWINS[name]
        net = build(twin, side, batch=1)
        variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), net.shapes)
        ours, theirs = [], []
        for seed in range(rounds):
            ours.append(prune_once(net, variables, seed))
            if peer:
                theirs.append(peer.ask(net=name, side=side, masked=MASKED)["seconds"])
        medians = {part: float(np.median([each[part] for each in ours])) for part in ours[0]}
        row = {"name": f"prune/{name}", "ours_s": medians, "first_ours_s": ours[0]}
        if peer:
            peer_s = float(np.median(theirs))
            row |= {"peer_s": peer_s, "first_peer_s": theirs[0]}
            row |= {"times_faster": peer_s / medians["ours"], "peer_versions": versions}
            row["times_faster_with_library"] = peer_s / medians["total"]
        found.append(row)
    if peer:
        peer.close()
        mean = lambda key: float(np.exp(np.mean([np.log(row[key]) for row in found])))
        keys = ("times_faster", "times_faster_with_library")
        found.append({"name": "prune/geometric_mean", **{key: mean(key) for key in keys}})
    return found


def prune_once(net: KerasNet, variables: Any, seed: int) -> dict[str, float]:
    """Seconds to trace, to draw masks and to make the small parameters, the library's apart."""
    groups, seconds = timed_trace(net)
    start = time.perf_counter()
    masks = random_masks(groups, seed, MASKED)
    jax.block_until_ready(jprune.slim_params(groups, masks, variables))
    slim_params = time.perf_counter() - start
    ours = seconds["ours"] + slim_params
    return {**seconds, "trace": seconds["ours"], "slim_params": slim_params} | {
        "ours": ours,
        "total": ours + seconds["library"],
    }


def growth(depths: Iterable[int], rounds: int) -> list[rows.Row]:
    """Our time and memory for ResNets of several depths, a process each, and the exponent."""
    context = multiprocessing.get_context("spawn")
    found = []
    for depth in depths:
        with ProcessPoolExecutor(1, context) as pool:
            found.append(pool.submit(traced_depth, depth, rounds).result())
    if len(found) > 1:
        layers, seconds = (np.log([row[key] for row in found]) for key in ("layers", "ours_s"))
        exponent = float(np.polyfit(layers, seconds, 1)[0])
        found.append({"name": "depth/exponent", "exponent": exponent})
    return found


def traced_depth(depth: int, rounds: int) -> rows.Row:
    """Median of our seconds, and peak memory while tracing, JAX's own included."""
    sys.setrecursionlimit(10_000)  # Keras walks a model recursively while it is built
    net = bottlenecks(f"resnet{depth}", DEPTHS[depth])
    seconds = [timed_trace(net)[1] for _ in range(rounds)]
    medians = {part: float(np.median([each[part] for each in seconds])) for part in seconds[0]}
    # Apart from the timed rounds, since counting allocations slows everything down. The process's
    # own peak would not do: importing the libraries takes more than any trace.
    tracemalloc.start()
    jprune.trace(net.fn, net.shapes, net.example)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "name": f"depth/{depth}",
        "layers": depth,
        "ours_s": medians["ours"],
        "library_s": medians["library"],
        "memory_mb": peak / 1e6,
    }


def compilation(nets: Iterable[str], rounds: int) -> list[rows.Row]:
    """Seconds that XLA takes to compile the dense net and the slim one, in turns."""
    return [compiled(name, rounds) for name in nets]


def compiled(name: str, rounds: int) -> rows.Row:
    """Medians for one net."""
    net = build(*TWINS[name], batch=1)
    groups = jprune.trace(net.fn, net.shapes, net.example)
    masks = random_masks(groups, 0, MASKED)
    small = jax.eval_shape(lambda tree: jprune.slim_params(groups, masks, tree), net.shapes)
    slim_fn = jprune.slim(net.fn, groups, masks)
    times = [
        (compile_s(net.fn, net.shapes, net.example), compile_s(slim_fn, small, net.example))
        for _ in range(rounds)
    ]
    dense, slim = np.median(times, axis=0).tolist()
    return {"name": f"compile/{name}", "dense_s": dense, "slim_s": slim}


def compile_s(fn: Callable[..., Any], *shapes: Any) -> float:
    """Seconds to compile a function, its tracing not counted."""
    lowered = jax.jit(lambda *args: fn(*args)).lower(*shapes)
    start = time.perf_counter()
    lowered.compile()
    return time.perf_counter() - start


if __name__ == "__main__":
    tyro.cli(main)

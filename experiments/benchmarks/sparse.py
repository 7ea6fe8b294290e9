"""Layers and nets of single weights: the compiled sparse kernels and XLA's dense convolution.

    python -m experiments.benchmarks.sparse
    taskset -c 0 python -m experiments.benchmarks.sparse --clock cpu

The first is for an idle machine, the second for one thread of a busy one. Patterns are random, not
learned. Expected: at 90 % zeros at least 2 times as fast on each layer and 4 in the geometric mean,
at 95 % 6.5; the roofline right in 80 % of the pairs; VGG-16 at 95 % 10 times as fast as XLA as is.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jprune
from experiments import rows
from jprune import execute, measure, zoo
from jprune.cost import Machine, works
from jprune.forms import CSR

OUT = rows.RESULTS / "engine" / "sparse.jsonl"
LAYERS = {
    # name: (side of the map, window, inputs, outputs, groups)
    "alexnet_conv2": (27, 5, 96, 256, 2),
    "alexnet_conv3": (13, 3, 256, 384, 1),
    "alexnet_conv4": (13, 3, 384, 384, 2),
    "alexnet_conv5": (13, 3, 384, 256, 2),
    "vgg_conv3": (56, 3, 256, 256, 1),
    "vgg_conv4_first": (28, 3, 256, 512, 1),
    "vgg_conv4": (28, 3, 512, 512, 1),
}
ZEROS = (0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def timed(
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]], repeats: int, clock: str
) -> dict[str, float]:
    """Milliseconds of each call, the tenth percentile, in turns."""
    if clock == "wall":
        return {name: of["p10"] for name, of in measure.latency(calls, repeats).items()}
    ready = {name: jax.jit(fn).lower(*args).compile() for name, (fn, args) in calls.items()}
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 2):
        for name, (_, args) in calls.items():
            start = time.process_time()
            jax.block_until_ready(ready[name](*args))
            if turn > 1:
                spent[name].append(1e3 * (time.process_time() - start))
    return {name: float(np.percentile(times, 10)) for name, times in spent.items()}


def layer(name: str, batch: int, zeros: float, machine: Machine, settings: Any) -> dict[str, Any]:
    """One layer at one density: a row."""
    side, window, inputs, outputs, groups = LAYERS[name]
    rng = np.random.default_rng(0)
    shape = (window, window, inputs // groups, outputs)
    mask = rng.random(shape) >= zeros
    kernel = jnp.asarray(rng.normal(size=shape) * mask, jnp.float32)
    x = jnp.asarray(rng.normal(size=(batch, side, side, inputs)), jnp.float32)

    def fn(v: Any, x: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, v["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    variables = {"kernel": kernel}
    found = jprune.trace(fn, variables, x)
    run, held = jprune.slim(fn, found, {}), {"kernel": CSR.of(kernel, mask)}
    times = timed({"dense": (fn, (variables, x)), "sparse": (run, (held, x))}, *settings)
    expected, result = jax.jit(fn)(variables, x), jax.jit(run)(held, x)
    work = works(fn, variables, x, groups=found)["kernel"]
    said = execute.verdict(work, machine, float(mask.mean()))
    ratio = times["dense"] / times["sparse"]
    return {
        "layer": name,
        "batch": batch,
        "zeros": zeros,
        "ms": times,
        "times_faster": ratio,
        "gflops": {
            "dense": 2e-6 * work.macs / times["dense"],
            "sparse": 2e-6 * work.macs * float(mask.mean()) / times["sparse"],
        },
        "promised": said.speedup["csr"],
        "verdict_right": (said.form == "csr") == (ratio > 1),
        "max_rel_err": float(jnp.abs(expected - result).max() / jnp.abs(expected).max()),
    }


def net(name: str, batch: int, zeros: float, machine: Machine, settings: Any) -> dict[str, Any]:
    """A whole net through `jprune.compact`: a row."""
    dense = zoo.build(name, classes=10, shape=(32, 32, 3), dtype=jnp.float32)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(dense.init, jax.random.key(0))
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.05 + 0.05, leaf.dtype)
    variables = jax.tree.map(draw, shapes)
    x = jnp.asarray(rng.normal(size=(batch, 32, 32, 3)), jnp.float32)
    groups = jprune.trace(dense.fn, shapes, x)
    kernels = {path for path, one in groups.layers.items() if len(one.shape) == 4}

    def masked(path: Any, leaf: Any) -> Any:
        inside = jax.tree_util.keystr(path, simple=True, separator="/") in kernels
        return rng.random(leaf.shape) >= zeros if inside else None

    masks = jax.tree_util.tree_map_with_path(masked, variables)
    variables = jprune.apply_masks(variables, masks)
    fast, held = jprune.compact(dense.fn, variables, masks, x, machine=machine)
    closed = lambda fn, tree: lambda x: fn(tree, x)
    calls = {"dense": (closed(dense.fn, variables), (x,)), "sparse": (closed(fast, held), (x,))}
    times = timed(calls, *settings)
    expected, result = (jax.jit(call[0])(x) for call in calls.values())
    return {
        "net": name,
        "batch": batch,
        "zeros": zeros,
        "ms": times,
        "times_faster": times["dense"] / times["sparse"],
        "max_rel_err": float(jnp.abs(expected - result).max() / jnp.abs(expected).max()),
    }


def main(
    layers: tuple[str, ...] = tuple(LAYERS),
    nets: tuple[str, ...] = ("vgg16",),
    batches: tuple[int, ...] = (1, 16),
    zeros: tuple[float, ...] = ZEROS,
    repeats: int = 20,
    clock: Literal["wall", "cpu"] = "wall",
    out: Path = OUT,
) -> None:
    """Times dense and sparse in turns, compares the answers, and adds a row for each.

    Args:
        layers: names in `LAYERS`.
        nets: names of the zoo, run at the first batch size with 95 % zeros.
        batches: images at a time.
        zeros: fractions of weights that are 0.
        repeats: timed rounds, at least 10.
        clock: "wall" on an idle machine, or "cpu" time, for one thread on a busy one.
        out: file of the rows.
    """
    machine, settings = execute.this_machine(), (repeats, clock)
    about = {"repeats": repeats, "clock": clock, **rows.provenance("numba")}
    ratios: dict[tuple[int, float], list[float]] = {}
    right = []
    for batch in batches:
        for share in zeros if layers else ():
            for name in layers:
                row = layer(name, batch, share, machine, settings)
                rows.append(out, {**row, **about})
                ratios.setdefault((batch, share), []).append(row["times_faster"])
                right.append(row["verdict_right"])
                print(
                    f"{name} batch {batch} {share:.0%} zeros: {row['times_faster']:.2f}", flush=True
                )
            mean = math.exp(np.log(ratios[batch, share]).mean())
            least = min(ratios[batch, share])
            print(
                f"batch {batch}, {share:.0%} zeros: mean {mean:.2f}, least {least:.2f}", flush=True
            )
    if right:
        print(f"the roofline is right in {np.mean(right):.0%} of {len(right)} cases")
    for name in nets:
        row = net(name, batches[0], 0.95, machine, settings)
        rows.append(out, {**row, **about})
        print(f"{name}: {row['times_faster']:.2f} times as fast, {row['ms']}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)

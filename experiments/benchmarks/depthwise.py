"""Depthwise convolutions as XLA runs them and as shifted multiply-adds, in one interleaved run.

    python -m experiments.benchmarks.depthwise

Expected: MobileNetV2 and EfficientNet forward, batch 32, at least 3 times faster on a CPU.
"""

from pathlib import Path

import jax
import numpy as np
import tyro

from experiments import rows
from experiments.keras_nets import build, draw
from jprune import measure
from jprune.graph.shrink.depthwise import shift_depthwise

OUT = rows.RESULTS / "engine" / "depthwise.jsonl"
NETS = ("MobileNetV2", "EfficientNetB0")


def main(
    nets: tuple[str, ...] = NETS,
    batch: int = 32,
    side: int = 224,
    repeats: int = 10,
    out: Path = OUT,
) -> None:
    """Times both, compares what they compute, and adds a row per net.

    Args:
        nets: names in keras.applications.
        batch: images at a time.
        side: height and width of the images.
        repeats: timed rounds, at least 10.
        out: file of the rows.
    """
    found = []
    for name in nets:
        net = build(name, side, batch)
        variables, x = draw(net)
        shifted = shift_depthwise(net.fn)
        plain_out, shifted_out = (jax.jit(fn)(variables, x) for fn in (net.fn, shifted))
        difference = np.abs(plain_out - shifted_out).max() / np.abs(plain_out).max()
        calls = {"plain": (net.fn, (variables, x)), "shifted": (shifted, (variables, x))}
        times = measure.latency(calls, repeats, warmup=1)
        ratio = times["plain"]["median"] / times["shifted"]["median"]
        print(f"{name}: {ratio:.1f} times faster, largest difference {difference:.1e}", flush=True)
        row = {"net": name, "batch": batch, "side": side, "repeats": repeats, "ms": times}
        row |= {"times_faster": ratio, "max_rel_err": float(difference)}
        found.append({**row, **rows.provenance("keras")})
    rows.append(out, *found)


if __name__ == "__main__":
    tyro.cli(main)

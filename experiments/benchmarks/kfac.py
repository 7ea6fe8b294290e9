"""EigenDamage's curvature: all Kronecker factors of ResNet-56 over 1,024 images.

Expected: under 4 minutes and 4 GB, compilation included. Command:
python -m experiments.benchmarks.kfac
"""

import resource
import time
from pathlib import Path

import jax
import numpy as np
import tyro

import jprune
from experiments import rows
from jprune import curvature, zoo
from jprune.train.task import cross_entropy

OUT = rows.RESULTS / "benchmarks" / "kfac.jsonl"


def main(
    model: str = "resnet56",
    images: int = 1024,
    batch_size: int = 64,
    inputs: tuple[str, ...] = ("channels", "patches"),
    out: Path = OUT,
) -> None:
    """Times both kinds of input factors and keeps a row for each.

    Args:
        model: of the zoo.
        images: that the factors are made of.
        batch_size: of them at once.
        inputs: "channels" (EigenDamage) and "patches" (the filter methods).
        out: file of rows.
    """
    net = zoo.build(model, shape=(32, 32, 3))
    variables = net.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(batch_size, 32, 32, 3)).astype(np.float32),
        "label": np.zeros(batch_size, np.int32),
    }
    found = []
    for kind in inputs:
        began = time.perf_counter()
        groups = jprune.trace(net.fn, variables, net.example)
        layers = curvature.layers_of(net.fn, groups, variables, net.example)
        criterion = curvature.kfac(
            net.fn, cross_entropy, groups, layers, key=jax.random.key(1), inputs=kind
        )
        state = jax.block_until_ready(criterion.update(criterion.init(variables), variables, batch))
        compiled = time.perf_counter() - began
        for _ in range(images // batch_size - 1):
            state = criterion.update(state, variables, batch)
        jax.block_until_ready(state)
        row = {
            "id": f"{model}, {kind}",
            "model": model,
            "inputs": kind,
            "images": images,
            "batch_size": batch_size,
            "layers": len(layers),
            "seconds": time.perf_counter() - began,
            "first_batch_seconds": compiled,
            # Of the whole process so far, in bytes: Linux counts in kilobytes.
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        found.append({**row, **rows.provenance()})
        print(f"{row['id']}: {row['seconds']:.1f} s, peak {row['peak_bytes'] / 2**30:.2f} GB")
    rows.keep(out, found, "id")


if __name__ == "__main__":
    tyro.cli(main)

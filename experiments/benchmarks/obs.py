"""What surgery costs: 1,000 deletions by OBS from a layer of 2,000 weights, in float64.

    python -m experiments.benchmarks.obs

Expected: under 10 s for the deletions; the inverse of the Hessian is timed apart.
"""

import time
from itertools import islice
from pathlib import Path

import numpy as np
import tyro

from experiments import rows
from jprune.curvature import deletions, identity, with_rows

OUT = rows.RESULTS / "engine" / "obs.jsonl"


def main(
    weights: int = 2000, count: int = 1000, examples: int = 4000, repeats: int = 5, out: Path = OUT
) -> None:
    """Times both, and adds a row.

    Args:
        weights: of the layer.
        count: deletions.
        examples: rows of the Hessian.
        repeats: of the deletions.
        out: file of the rows.
    """
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(examples, weights)) / np.sqrt(examples)
    began = time.perf_counter()
    inverse = with_rows(identity(weights, 1e-4), gradients)
    inverted = time.perf_counter() - began
    start = rng.normal(size=weights)
    seconds = []
    for _ in range(repeats):
        values, own = start.copy(), inverse.copy()
        began = time.perf_counter()
        # The iterator is one ahead: asking for another carries out the last one.
        for _ in islice(deletions(values, own), count + 1):
            pass
        seconds.append(time.perf_counter() - began)
    row = {
        "weights": weights,
        "count": count,
        "examples": examples,
        "repeats": repeats,
        "seconds": {"deletions": sorted(seconds), "inverse": inverted},
        **rows.provenance(),
    }
    print(f"{count} deletions of {weights}: {min(seconds):.2f} s; inverse {inverted:.2f} s")
    rows.append(out, row)


if __name__ == "__main__":
    tyro.cli(main)

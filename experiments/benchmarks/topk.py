"""The largest half of 25 million scores, exactly and with ties by index: on the host and jitted.

    python -m experiments.benchmarks.topk

Expected: 0.5 s on the host and 2 s jitted (a sort by XLA takes 9 s), with less extra memory than
three times the scores.
"""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments import rows
from jprune.masks import best

OUT = rows.RESULTS / "benchmarks" / "topk.jsonl"


def seconds(call: Callable[[], Any], repeats: int) -> tuple[list[float], float]:
    """Sorted times, and the memory that all calls took beyond what was there, in bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - began)
    # Linux counts in kilobytes, and only ever upwards.
    return sorted(found), 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main(size: int = 25_000_000, repeats: int = 5, out: Path = OUT) -> None:
    """Times both, and adds a row.

    Args:
        size: scores.
        repeats: calls of each.
        out: file of the rows.
    """
    scores = np.random.default_rng(0).normal(size=size).astype(np.float32)
    scores[: size // 4] = scores[size // 2]  # ties
    count, ties = size // 2, scores == scores[size // 2]
    on_device = jax.device_put(scores)
    jitted = jax.jit(best).lower(on_device, count).compile()
    memory = jitted.memory_analysis()
    assert memory is not None  # no backend of JAX leaves it out
    host, host_bytes = seconds(lambda: best(scores, count), repeats)
    traced, traced_bytes = seconds(lambda: jitted(on_device, count), repeats)
    kept = best(scores, count)
    lowest = scores[kept].min()
    right = (
        kept.sum() == count
        and scores[~kept].max() <= lowest
        and np.array_equal(kept, np.asarray(jitted(on_device, count)))
        and not (lowest == scores[size // 2] and np.any(np.diff(kept[ties].astype(int)) > 0))
    )
    row = {
        "size": size,
        "count": count,
        "repeats": repeats,
        "seconds": {"host": host, "jitted": traced},
        "extra_over_scores": {
            "host": host_bytes / scores.nbytes,
            "jitted": traced_bytes / scores.nbytes,
            "jitted_temporary": memory.temp_size_in_bytes / scores.nbytes,
        },
        "right": bool(right),
        **rows.provenance(),
    }
    print(f"host {min(host):.2f} s, jitted {min(traced):.2f} s, extra {row['extra_over_scores']}")
    rows.append(out, row)


if __name__ == "__main__":
    tyro.cli(main)

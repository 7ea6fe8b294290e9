"""What the Hessian's diagonal costs: 16 probes against gradients, in one interleaved run.

    python -m experiments.benchmarks.hutchinson

Expected: a probe costs at most four gradients.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments import rows
from experiments.benchmarks.hold import NETS, task_of
from jprune import curvature, measure

OUT = rows.RESULTS / "benchmarks" / "hutchinson.jsonl"


def calls_of(model: str, batch_size: int, probes: int) -> dict[str, Callable[[], Any]]:
    """{"gradient": of a batch, "hutchinson": all probes}."""
    task, batch = task_of(model, batch_size)
    variables, key = task.init(jax.random.key(0)), jax.random.key(1)
    params, rest = task.split(variables)
    loss = lambda p, b: curvature.mean_loss(task.fn, task.loss, task.merge(p, rest), b)
    gradient = jax.jit(jax.grad(loss))
    diagonal = curvature.mean_diagonal(task.fn, task.loss, curvature.hutchinson(probes), key)
    start = diagonal.init(variables)
    return {
        "gradient": lambda: jax.block_until_ready(gradient(params, batch)),
        "hutchinson": lambda: jax.block_until_ready(diagonal.update(start, variables, batch)),
    }


def main(
    nets: tuple[str, ...] = tuple(NETS),
    probes: int = 16,
    repeats: int = 20,
    batch_size: int = 128,
    out: Path = OUT,
) -> None:
    """Times both, and adds a row per net.

    Args:
        nets: names in the zoo.
        probes: of Hutchinson's estimate.
        repeats: timed rounds, at least 10.
        batch_size: images in a batch.
        out: file of the rows.
    """
    found = []
    for model in nets:
        times = measure.interleaved(calls_of(model, batch_size, probes), repeats=repeats)
        gradients = times["hutchinson"]["median"] / times["gradient"]["median"] / probes
        row = {"net": model, "batch_size": batch_size, "probes": probes, "repeats": repeats}
        row |= {"ms": times, "gradients_a_probe": gradients}
        found.append({**row, **rows.provenance()})
        print(f"{model}: {gradients:.2f} gradients a probe (at most 4 expected)")
    rows.append(out, *found)


if __name__ == "__main__":
    tyro.cli(main)

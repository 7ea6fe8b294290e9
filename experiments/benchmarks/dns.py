"""What moving masks cost: a step of surgery against a dense one, in one interleaved run.

`every` revises the masks in every step, `fixed` in none any more; `amortised` is the mean over the
authors' schedule for LeNet-5 (gamma 1e-4, 14,000 of 16,000 steps). Expected: `amortised` at most
1.05 of the dense step. Command: python -m experiments.benchmarks.dns
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments import rows
from experiments.benchmarks.hold import NETS, step_of, task_of
from jprune import measure
from jprune.base import Budget, Pruned
from jprune.stages.surgery import DynamicSurgery
from jprune.stages.train import Train

OUT = rows.RESULTS / "benchmarks" / "dns.jsonl"


def steps_of(model: str, batch_size: int) -> dict[str, Any]:
    """{name: call}: one training step each."""
    task, batch = task_of(model, batch_size)
    dense, key = Pruned(task.init(jax.random.key(0)), None), jax.random.key(1)
    plain = Train(epochs=1000, learning_rate=1e-3, batch_size=batch_size, schedule="constant")
    every = DynamicSurgery(plain, Budget(density=0.1), gamma=0.0)
    fixed = dataclasses.replace(every, gamma=1e9)
    stages = {"dense": plain, "every": every, "fixed": fixed}
    return {name: step_of(stage.learner(dense, task, key), batch) for name, stage in stages.items()}


def revised() -> float:
    """The fraction of steps in which a layer's mask is revised.

    Example:
        >>> round(revised(), 3)
        0.547
    """
    return float(
        np.mean(np.where(np.arange(16_000) < 14_000, 1 / (1 + 1e-4 * np.arange(16_000)), 0))
    )


def main(
    nets: tuple[str, ...] = tuple(NETS), repeats: int = 50, batch_size: int = 128, out: Path = OUT
) -> None:
    """Times the steps, and adds a row per net.

    Args:
        nets: names in the zoo.
        repeats: timed rounds, at least 10.
        batch_size: images in a step.
        out: file of the rows.
    """
    found = []
    for model in nets:
        times = measure.interleaved(steps_of(model, batch_size), repeats=repeats)
        ratios = {
            name: times[name]["median"] / times["dense"]["median"] for name in ("every", "fixed")
        }
        ratios["amortised"] = ratios["fixed"] + revised() * (ratios["every"] - ratios["fixed"])
        row = {"net": model, "batch_size": batch_size, "repeats": repeats, "ms": times}
        found.append({**row, "ratio_of_medians": ratios, **rows.provenance()})
        said = ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
        print(f"{model}: {said} (dense {times['dense']['median']:.2f} ms)")
    rows.append(out, *found)


if __name__ == "__main__":
    tyro.cli(main)

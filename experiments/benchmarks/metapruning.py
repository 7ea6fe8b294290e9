"""Candidates that MetaPruning's search scores in a second, all by one compiled function.

A candidate is generated, its norms' statistics are taken anew, and it is scored on held-out images.
Expected: LeNet-5 on 1,000 images 8 a second; ResNet-8 on 500 images 0.7 with 20 batches of
re-calibration and 2 with 4. Command: python -m experiments.benchmarks.metapruning
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from experiments import rows
from jprune import data, train, zoo
from jprune.base import Budget, Task
from jprune.learners import scorer
from jprune.search.widths import Widths
from jprune.train.net import Net

OUT = rows.RESULTS / "benchmarks" / "metapruning.jsonl"


class Case(NamedTuple):
    """What is timed."""

    model: str
    shape: tuple[int, int, int]
    images: int
    recalibrate: int
    expected: float
    """Candidates a second, at least."""


CASES = (
    Case("lenet5", (28, 28, 1), 1000, 0, 8.0),
    Case("resnet8", (32, 32, 3), 500, 20, 0.7),
    Case("resnet8", (32, 32, 3), 500, 4, 2.0),
)


def task_of(case: Case) -> Task:
    """A net for images of noise: what is in them does not matter."""
    digits = data.load("digits")
    return train.task(zoo.build(case.model, shape=case.shape), digits._replace(shape=case.shape))


def per_second(case: Case, batch_size: int, candidates: int) -> tuple[float, int]:
    """Candidates a second, and how often they were compiled."""
    task, key = task_of(case), jax.random.key(0)
    widths = Widths(Budget(macs=0.5), window=0.2)
    groups, cost = Net(task).groups, Net(task).cost
    hyper, (space, of_genes) = widths.hypernetwork(task, groups), widths.space(groups, cost)
    variables = task.init(key)
    params = hyper.init(key, variables)
    rng = np.random.default_rng(0)
    noise = lambda *sizes: rng.normal(size=(*sizes, *case.shape)).astype(np.float32)
    held_out = {
        "image": noise(1, case.images),
        "label": rng.integers(0, 10, (1, case.images)).astype(np.int32),
        "weight": np.ones((1, case.images), np.float32),
    }
    traces = []

    def fn(variables: Any, x: Any) -> Any:
        traces.append(x.shape)
        return task.fn(variables, x)

    images = noise(case.recalibrate, batch_size)
    score = scorer(task._replace(fn=fn), hyper.net, images, held_out, key)
    genes = rng.integers(0, space.options, (candidates + 1, len(space.options)))
    first, *rest = of_genes(genes)
    score(params, variables, first).block_until_ready()
    began = time.perf_counter()
    for row in rest:
        score(params, variables, row).block_until_ready()
    return candidates / (time.perf_counter() - began), len(traces)


def main(candidates: int = 20, repeats: int = 3, batch_size: int = 128, out: Path = OUT) -> None:
    """Times the candidates, and adds a row per case.

    Args:
        candidates: in one repetition.
        repeats: of which the fastest counts, and all are kept.
        batch_size: images in a batch of re-calibration.
        out: file of the rows.
    """
    found = []
    for case in CASES:
        measured = [per_second(case, batch_size, candidates) for _ in range(repeats)]
        rates = [rate for rate, _ in measured]
        row = {**case._asdict(), "batch_size": batch_size, "candidates": candidates}
        row |= {"per_second": rates, "compilations": max(count for _, count in measured)}
        found.append({**row, **rows.provenance()})
        print(
            f"{case.model}, {case.images} images, {case.recalibrate} batches: {max(rates):.2f} a "
            f"second (expected {case.expected}), {row['compilations']} compilation"
        )
    rows.append(out, *found)


if __name__ == "__main__":
    tyro.cli(main)

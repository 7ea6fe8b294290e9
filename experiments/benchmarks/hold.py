"""What masks cost in training: a step with `hold` against a dense one, in one interleaved run.

    python -m experiments.benchmarks.hold

Expected: at most 1.05 of the dense step.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments import rows
from jprune import data, measure, train, zoo
from jprune.base import Batch, Learner, Pruned, Task
from jprune.stages.train import Train
from jprune.train.net import Net

OUT = rows.RESULTS / "engine" / "hold.jsonl"
NETS = {"lenet5": (28, 28, 1), "resnet8": (32, 32, 3)}


def task_of(model: str, batch_size: int) -> tuple[Task, Batch]:
    """A net's task, and a batch of its shape: what is in the images does not matter to a clock."""
    shape = NETS[model]
    task = train.task(zoo.build(model, shape=shape), data.load("digits")._replace(shape=shape))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(batch_size, *shape)).astype(np.float32),
        "label": rng.integers(0, 10, batch_size).astype(np.int32),
        "weight": np.ones(batch_size, np.float32),
    }
    return task, jax.device_put(batch)


def step_of(learner: Learner, batch: Batch) -> Callable[[], None]:
    """A training step as a call, on states of its own."""
    state = [learner.init()]

    def call() -> None:
        state[0], seen = learner.step(state[0], batch)
        jax.block_until_ready((state[0], seen))

    return call


def steps_of(model: str, batch_size: int) -> dict[str, Any]:
    """{"dense": call, "held": call}: one training step each."""
    task, batch = task_of(model, batch_size)
    rng = np.random.default_rng(0)
    masks = {name: rng.random(size) < 0.5 for name, size in Net(task).groups.sizes.items()}
    for mask in masks.values():
        mask[0] = True
    variables, key = task.init(jax.random.key(0)), jax.random.key(1)
    stage = Train(epochs=1, learning_rate=0.01, batch_size=batch_size)
    learner = lambda chosen: stage.learner(Pruned(variables, chosen), task, key)
    return {
        name: step_of(learner(chosen), batch)
        for name, chosen in {"dense": None, "held": masks}.items()
    }


def main(
    nets: tuple[str, ...] = tuple(NETS), repeats: int = 50, batch_size: int = 128, out: Path = OUT
) -> None:
    """Times both steps, and adds a row per net.

    Args:
        nets: names in the zoo.
        repeats: timed rounds, at least 10.
        batch_size: images in a step.
        out: file of the rows.
    """
    found = []
    for model in nets:
        times = measure.interleaved(steps_of(model, batch_size), repeats=repeats)
        ratio = times["held"]["median"] / times["dense"]["median"]
        row = {"net": model, "batch_size": batch_size, "repeats": repeats, "ms": times}
        found.append({**row, "ratio_of_medians": ratio, **rows.provenance()})
        print(f"{model}: {ratio:.3f} (dense {times['dense']['median']:.2f} ms)")
    rows.append(out, *found)


if __name__ == "__main__":
    tyro.cli(main)

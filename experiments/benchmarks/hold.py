"""What masks cost in training: a step with `hold` against a dense one, in one interleaved run.

    python -m experiments.benchmarks.hold

Expected: at most 1.05 of the dense step.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import jprune
from experiments import rows
from jprune import data, measure, train, zoo
from jprune.base import Pruned
from jprune.recipes.stages import Train

OUT = rows.RESULTS / "engine" / "hold.jsonl"
NETS = {"lenet5": (28, 28, 1), "resnet8": (32, 32, 3)}


def steps_of(model: str, batch_size: int) -> dict[str, Any]:
    """{"dense": call, "held": call}: one training step each, from states of their own."""
    digits = data.load("digits")
    # Timing needs batches of the net's shape only; what is in them does not matter.
    net = zoo.build(model, shape=NETS[model])
    task = train.task(net, digits._replace(shape=NETS[model]))
    groups = jprune.trace(net.fn, jax.eval_shape(net.init, jax.random.key(0)), net.example)
    rng = np.random.default_rng(0)
    masks = {name: rng.random(size) < 0.5 for name, size in groups.sizes.items()}
    for mask in masks.values():
        mask[0] = True
    batch = {
        "image": rng.normal(size=(batch_size, *NETS[model])).astype(np.float32),
        "label": rng.integers(0, 10, batch_size).astype(np.int32),
        "weight": np.ones(batch_size, np.float32),
    }
    batch = jax.device_put(batch)
    variables = net.init(jax.random.key(0))

    def call_of(chosen: dict[str, np.ndarray] | None):
        stage = Train(epochs=1, learning_rate=0.01, batch_size=batch_size)
        learner = stage.learner(Pruned(variables, chosen), task, jax.random.key(1))
        state = [learner.init()]

        def call() -> None:
            state[0], seen = learner.step(state[0], batch)
            jax.block_until_ready((state[0], seen))

        return call

    return {"dense": call_of(None), "held": call_of(masks)}


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

"""Latency tables: how well they predict nets that were not measured, and what a budget delivers.

    python -m experiments.benchmarks.latency

Expected, on an idle machine: every prediction within 15 % of what is measured at 20 random width
settings, and a ResNet-20 at `Budget(latency=0.65)` at 0.60 to 0.70 of the dense net's time. On a
busy machine `--cpu-time` counts the work of this process instead; write
`XLA_FLAGS=--xla_cpu_multi_thread_eigen=false` before it.
"""

import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jprune
from experiments import rows
from jprune import allocate, measure, zoo
from jprune.base import Budget
from jprune.measure.sampling import random_widths, small, stopwatch

OUT = rows.RESULTS / "engine" / "latency.jsonl"
NETS = ("resnet20", "vgg16", "mobilenetv2")
OTHERS = 17
"""A seed that no table is measured with."""


def of_net(
    name: str, target: Literal["xla", "tflite"], batch: int, settings: int, share: float, clock: Any
) -> dict[str, Any]:
    """A net's row: errors of the predictions, and what a budget's net takes."""
    net = zoo.build(name, shape=(32, 32, 3))
    variables = jax.eval_shape(net.init, jax.random.key(0))
    groups = jprune.trace(net.fn, variables, net.example)
    watch, start = stopwatch(target, clock), time.perf_counter()
    table = measure.latency_table(
        net.fn, variables, net.example, groups, target, batch, watch=watch, note=print
    )
    seconds = time.perf_counter() - start
    model = jprune.cost_model(net.fn, variables, net.example, groups=groups, latency=table)
    drawn = list(random_widths(groups, settings + 1, seed=OTHERS))[1:]
    # Scores that differ from unit to unit: the budget is met by widths of all kinds.
    rng = np.random.default_rng(OTHERS)
    scores = {group: rng.uniform(size=size) for group, size in groups.sizes.items()}
    budget = Budget(latency=share, multiple_of=table.multiple_of)
    nets = [{}, allocate.uniform(scores, budget, model), *drawn]
    example = jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.float32)
    times = watch(
        {str(n): (small(net.fn, variables, groups, of), example) for n, of in enumerate(nets)}
    )
    measured = np.array([times[str(n)] for n in range(len(nets))])
    predicted = np.array([float(model(masks).latency) for masks in nets])
    return {
        "net": name,
        "target": target,
        "batch": batch,
        "seconds_to_measure": seconds,
        "multiple_of": table.multiple_of,
        "predicted_ms": predicted[2:].tolist(),
        "measured_ms": measured[2:].tolist(),
        "largest_error": float(np.abs(predicted / measured - 1)[2:].max()),
        "budget": share,
        "budget_predicted": float(predicted[1] / predicted[0]),
        "budget_measured": float(measured[1] / measured[0]),
    }


def main(
    nets: tuple[str, ...] = NETS,
    target: Literal["xla", "tflite"] = "xla",
    batch: int | None = None,
    settings: int = 20,
    share: float = 0.65,
    cpu_time: bool = False,
    out: Path = OUT,
) -> None:
    """Measures tables (or reads them from the cache), and adds a row per net.

    Args:
        nets: names in the zoo.
        target: runtime.
        batch: images in a call; None: 128 under XLA, 1 under TFLite.
        settings: random width settings.
        share: budget in latency.
        cpu_time: count the work of this process instead of time; for a busy machine.
        out: file of the rows.
    """
    clock = time.process_time_ns if cpu_time else None
    for name in nets:
        row = of_net(name, target, batch or measure.TARGETS[target], settings, share, clock)
        said = f"{name}: errors up to {row['largest_error']:.3f} at {settings} settings; "
        kept = f"{row['budget_predicted']:.3f} predicted, {row['budget_measured']:.3f} measured"
        print(f"{said}{share} asked for, {kept}")
        rows.append(out, {**row, "cpu_time": cpu_time, **rows.provenance()})


if __name__ == "__main__":
    tyro.cli(main)

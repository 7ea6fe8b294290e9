"""What widths in multiples of 8 cost and bring: MACs that are kept, and latencies, in turns.

    python -m experiments.benchmarks.multiples

At each budget in MACs every net is cut evenly, by the L2 norm of drawn weights: times depend on
widths alone. Expected: with `multiple_of=1` the budget is met within half a point; under XLA, on a
CPU, widths in eights are faster by more than the MACs that they keep fewer.
"""

from pathlib import Path

import jax
import numpy as np
import tyro

import jprune
from experiments import rows
from jprune import allocate, criteria, export, measure, zoo
from jprune.base import Budget

OUT = rows.RESULTS / "engine" / "multiples.jsonl"
SHAPES = {"resnet8": (8, 8, 1), "resnet20": (32, 32, 3), "vgg16": (32, 32, 3)}
MULTIPLES = (1, 2, 4, 8)


def main(
    nets: tuple[str, ...] = ("resnet8", "resnet20"),
    budgets: tuple[float, ...] = (0.5, 0.25),
    batch: int = 128,
    repeats: int = 20,
    out: Path = OUT,
) -> None:
    """Times the dense net and the small ones, and adds a row per net and budget.

    Args:
        nets: of `SHAPES`.
        budgets: fractions of the MACs to keep.
        batch: images at a time, beside a single one.
        repeats: timed rounds, at least 10.
        out: file of the rows.
    """
    for name in nets:
        net = zoo.build(name, shape=SHAPES[name])
        variables = net.init(jax.random.key(0))
        groups = jprune.trace(net.fn, variables, net.example)
        model = jprune.cost_model(net.fn, variables, net.example, groups=groups)
        scores = jprune.run_criterion(criteria.magnitude(2), variables, ())
        scores = jprune.to_units(groups, scores)
        for budget in budgets:
            cut = {"dense": (net.fn, variables, 1.0)}
            for multiple in MULTIPLES:
                asked = Budget(macs=budget, multiple_of=multiple)
                masks = allocate.uniform(scores, asked, model)
                fn = jprune.slim(net.fn, groups, masks)
                small = jprune.slim_params(groups, masks, variables)
                kept = float(model(masks).macs) / float(model({}).macs)
                cut[str(multiple)] = (fn, small, kept)
            row = {"net": name, "budget": {"macs": budget}, "batch": batch, "repeats": repeats}
            row |= {"macs": {width: kept for width, (_, _, kept) in cut.items()}}
            row |= {"ms": _times(cut, net.example, batch, repeats)}
            _print(row)
            rows.append(out, {**row, **rows.provenance()})


def _times(cut, example, batch: int, repeats: int) -> dict[str, dict[str, measure.Latency]]:
    """{way to run: {width: time}}."""
    one, many = (np.zeros((size, *example.shape[1:]), np.float32) for size in (1, batch))
    calls = lambda x: {width: (fn, (small, x)) for width, (fn, small, _) in cut.items()}
    files = {width: export.tflite(fn, small, example) for width, (fn, small, _) in cut.items()}
    return {
        "xla_b1": measure.latency(calls(one), repeats),
        f"xla_b{batch}": measure.latency(calls(many), repeats),
        "tflite_b1": measure.tflite_latency(files, repeats),
    }


def _print(row) -> None:
    print(row["net"], row["budget"], {width: round(kept, 3) for width, kept in row["macs"].items()})
    for way, times in row["ms"].items():
        # The fast tenth: what else runs on the machine only makes calls slower.
        dense = times["dense"]["p10"]
        print(f"  {way:<10}", {w: round(time["p10"] / dense, 2) for w, time in times.items()})


if __name__ == "__main__":
    tyro.cli(main)

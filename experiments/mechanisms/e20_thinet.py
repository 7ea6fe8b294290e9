"""E20 [20]: ThiNet's greedy choice and its scales, against other choices.

Luo, Wu, Lin (arXiv 1707.06342), single layers of VGG-16: the greedy choice by what the next layer
makes of channels beats weight sums, APoZ and random, and the least-squares scales help before
fine-tuning; after fine-tuning the differences shrink. Here ResNet-8 on 10,000 images of CIFAR-10:
the inner channels of its three blocks and, by samplers, their first layers' inputs.

    python -m experiments.mechanisms.e20_thinet --seeds 0 1 2

writes lines into `experiments/results/mechanisms/e20.jsonl`. `part` is layer (one layer pruned, no
training), net (the inner channels of all blocks halved; `finetuned` is the accuracy after one
epoch) or dense; `arm` is thinet, thinet_unscaled, omp, weights (largest L1 norm), apoz (fewest
zeros) or random.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from statistics import fmean as mean
from statistics import stdev
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.axes import Axes

from experiments import rows
from experiments.claims import Claim, Finding, collect, shown
from experiments.mechanisms._layers import (
    Layers,
    Settings,
    accuracy,
    at_random,
    by_weights,
    by_zeros,
    layer_name,
    layerwise,
    of,
    rows_of,
)
from jprune.base import Pruned, Task
from jprune.recipes import Train
from jprune.report.figures import PRINT
from jprune.stages.layer_wise import ByThiNet, Choose, Refit

RESULTS = rows.RESULTS / "mechanisms" / "e20.jsonl"
KEPT = (0.8, 0.5, 0.2)
GREEDY, PURSUIT = ByThiNet(), ByThiNet("omp")
ARMS: dict[str, tuple[Choose, Refit | None]] = {
    "thinet": (GREEDY, GREEDY.scales),
    "thinet_unscaled": (GREEDY, None),
    "omp": (PURSUIT, PURSUIT.scales),
    "weights": (by_weights, None),
    "apoz": (by_zeros, None),
    "random": (at_random, None),
}
NAMES = {
    "thinet": ("ThiNet", "slim", "-"),
    "thinet_unscaled": ("ThiNet, no scales", "slim", "--"),
    "omp": ("matching pursuit", "slim", ":"),
    "weights": ("weight sum", "ink", "-"),
    "apoz": ("APoZ", "second", "-"),
    "random": ("random", "muted", "-"),
}
TUNED = ("thinet", "weights", "random")


def layers(settings: Settings, task: Task, dense: Pruned, key: jax.Array) -> Iterator[rows.Row]:
    """One row a layer, choice and width."""
    walk = Layers(settings, task, dense, key)
    for number, (step, problem) in enumerate(walk):
        here = jax.random.fold_in(key, number)
        whole = np.ones(step.units, bool)
        for kept in KEPT[1:2] if settings.smoke else KEPT:
            for arm, (choose, refit) in ARMS.items():
                mask = choose([problem], round(kept * step.units), here)
                scales = None if refit is None else refit(whole, here)
                variables, error = walk.with_weights(step, problem, mask, scales)
                yield {
                    "part": "layer",
                    "layer": layer_name(step),
                    "arm": arm,
                    "kept": kept,
                    "error": error,
                    "accuracy": accuracy(settings, task, variables),
                }


def nets(settings: Settings, task: Task, dense: Pruned, key: jax.Array) -> Iterator[rows.Row]:
    """One row a net with half of its inner channels, before and after an epoch."""
    most, size = (2, 64) if settings.smoke else (None, 128)
    finetune = Train(1, 0.1 * settings.learning_rate, size, max_steps=most, name="finetune")
    for arm in TUNED[:1] if settings.smoke else TUNED:
        stage = layerwise(settings, *ARMS[arm])
        stage = dataclasses.replace(stage, targets="now", stream="whole", bias=False)
        pruned, (seen,) = stage(dense, task, key)
        before = accuracy(settings, task, pruned.variables)
        tuned, _ = finetune(pruned, task, key)
        yield {
            "part": "net",
            "arm": arm,
            "kept": seen["metrics"]["macs"],
            "error": seen["metrics"]["reconstruction_error"],
            "accuracy": before,
            "finetuned": accuracy(settings, task, tuned.variables),
        }


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """Points of accuracy, mean over layers, seed by seed."""

    def points(what: str, arm: str, other: str, **where: Any) -> list[float]:
        pairs = zip(of(found, what, arm=arm, **where), of(found, what, arm=other, **where))
        return [100 * (a - b) for a, b in pairs]

    listed = []
    asked = (
        ("thinet", "thinet_unscaled", "above 0", 0),
        ("thinet_unscaled", "random", "above 0", 5),
        ("thinet", "weights", "above 0", 2),
        ("thinet", "apoz", "above 0", 0),
        ("omp", "random", "above 0", 0),
    )
    for kept in (0.5, 0.2):
        for arm, other, paper, least in asked:
            ahead = points("accuracy", arm, other, part="layer", kept=kept)
            claim = f"{100 * kept:.0f} % of one layer's inputs: {arm} - {other} >= {least}, points"
            listed.append(Finding(claim, paper, shown(ahead, 1), mean(ahead) >= least))
    for other in ("random", "weights"):
        before = points("accuracy", "thinet", other, part="net")
        claim = f"all blocks halved, no training: thinet - {other} >= 0, points"
        listed.append(Finding(claim, "above 0", shown(before, 1), mean(before) >= 0))
    after = points("finetuned", "thinet", "random", part="net")
    claim = "all blocks halved, an epoch of training: thinet - random >= -0.5, points"
    listed.append(Finding(claim, "above 0", shown(after, 1), mean(after) >= -0.5))
    return listed


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """Accuracy over the width, mean over layers, an arm a line."""
    for arm, (name, colour, line) in NAMES.items():
        values = [of(found, "accuracy", part="layer", arm=arm, kept=kept) for kept in KEPT]
        axes.errorbar(
            [100 * kept for kept in KEPT],
            [100 * mean(each) for each in values],
            [100 * stdev(each) if each[1:] else 0 for each in values],
            color=getattr(PRINT, colour), linestyle=line, marker="o", markersize=3, capsize=2,
            linewidth=1.2, label=name,
        )  # fmt: skip
    dense = 100 * mean(of(found, "accuracy", part="dense"))
    axes.axhline(dense, color=PRINT.line, linewidth=0.8, label="dense")
    axes.invert_xaxis()
    axes.set_xlabel("inputs of one layer kept, %, without training")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, fontsize=8)


CLAIM = Claim(
    "E20: ThiNet [20]",
    findings,
    draw,
    "ResNet-8 on 10,000 images of CIFAR-10, accuracy on 1,000 test images, where the paper has "
    "VGG-16 on ImageNet; layers are those of E19.",
)


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(
        RESULTS, {"claim": "E20", "refs": [20]}, settings, rows_of(settings, (layers, nets))
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))

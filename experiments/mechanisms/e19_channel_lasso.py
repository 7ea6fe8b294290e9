"""E19 [19]: channels chosen by LASSO and layers refitted, against other choices and no refit.

He, Zhang, Sun (arXiv 1707.06168), single layers of VGG-16 without fine-tuning: LASSO with least
squares loses less than the first k channels or those of largest weights, the more so the fewer are
kept; refitting is what matters most; a whole net is better pruned against the outputs of the dense
net than against those of the net as pruned so far. Here ResNet-8 on 10,000 images of CIFAR-10: the
inner channels of its three blocks and, by samplers, their first layers' inputs.

    python -m experiments.mechanisms.e19_channel_lasso --seeds 0 1 2

writes lines into `experiments/results/mechanisms/e19.jsonl`. `part` is layer (one layer pruned:
`error` of what it says over its size, on the
calibration images; `accuracy` at half), net (all layers pruned to half of the
MACs) or dense; `arm` is lasso, first, weights (largest L1 norm) or random; `refit` says whether
layers are refitted.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from statistics import fmean as mean
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
    first,
    layer_name,
    layerwise,
    of,
    rows_of,
)
from jprune.base import Budget, Pruned, Task
from jprune.reconstruct import least_squares
from jprune.report.figures import PRINT
from jprune.stages.layer_wise import ByLasso, Choose, by_least_squares

RESULTS = rows.RESULTS / "mechanisms" / "e19.jsonl"
KEPT = (0.75, 0.5, 0.25)
ARMS: dict[str, Choose] = {
    "lasso": ByLasso(),
    "first": first,
    "weights": by_weights,
    "random": at_random,
}
STYLES = {"lasso": "slim", "first": "second", "weights": "ink", "random": "muted"}
NETS: dict[str, tuple[Choose, bool, str]] = {
    "lasso": (ByLasso(), True, "dense"),
    "lasso, targets of now": (ByLasso(), True, "now"),
    "lasso, no refit": (ByLasso(), False, "dense"),
    "weights": (by_weights, True, "dense"),
    "weights, no refit": (by_weights, False, "dense"),
    "random": (at_random, True, "dense"),
    "random, no refit": (at_random, False, "dense"),
}
"""{arm of whole nets: (choice, refit, targets)}."""


def layers(settings: Settings, task: Task, dense: Pruned, key: jax.Array) -> Iterator[rows.Row]:
    """One row a layer, choice, refit and width."""
    walk = Layers(settings, task, dense, key)
    for number, (step, problem) in enumerate(walk):
        here = jax.random.fold_in(key, number)
        for kept in KEPT[1:2] if settings.smoke else KEPT:
            for arm, choose in ARMS.items():
                mask = choose([problem], round(kept * step.units), here)
                for refit in (True, False):
                    variables, error = walk.with_weights(
                        step, problem, mask, least_squares if refit else None
                    )
                    yield {
                        "part": "layer",
                        "layer": layer_name(step),
                        "arm": arm,
                        "refit": refit,
                        "kept": kept,
                        "error": error,
                        "accuracy": accuracy(settings, task, variables) if kept == 0.5 else None,
                    }


def nets(settings: Settings, task: Task, dense: Pruned, key: jax.Array) -> Iterator[rows.Row]:
    """One row a net of half of the MACs."""
    some = list(NETS.items())[:1] if settings.smoke else NETS.items()
    for arm, (choose, refit, targets) in some:
        stage = dataclasses.replace(
            layerwise(settings, choose, by_least_squares if refit else None),
            budget=Budget(macs=0.5),
            targets=targets,
        )
        pruned, (seen,) = stage(dense, task, key)
        yield {
            "part": "net",
            "arm": arm,
            "refit": refit,
            "kept": seen["metrics"]["macs"],
            "error": seen["metrics"]["reconstruction_error"],
            "accuracy": accuracy(settings, task, pruned.variables),
        }


def cells(found: Sequence[rows.Row], kept: float, arm: str, refit: bool) -> dict[Any, rows.Row]:
    """{(seed, layer): row}."""
    return {
        (row["seed"], row["layer"]): row
        for row in found
        if row["part"] == "layer" and (row["kept"], row["arm"], row["refit"]) == (kept, arm, refit)
    }


def share(left: dict[Any, rows.Row], right: dict[Any, rows.Row]) -> float:
    """Percentage of (layer, seed) cells whose error is no larger on the left."""
    return 100 * float(np.mean([left[k]["error"] <= right[k]["error"] for k in left]))


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """Errors cell by cell, accuracies seed by seed."""
    listed = []
    for arm in ARMS:
        helped = share(cells(found, 0.5, arm, True), cells(found, 0.5, arm, False))
        claim = f"half kept, {arm}: layers whose error the refit lowers"
        listed.append(Finding(claim, "all", f"{helped:.0f} %", helped == 100))
    for other in ("first", "weights", "random"):
        won = share(cells(found, 0.5, "lasso", True), cells(found, 0.5, other, True))
        claim = f"half kept, refitted: layers where LASSO's error is at most that of {other}"
        listed.append(Finding(claim, "all", f"{won:.0f} %", won >= 80))
    ratios = {
        kept: [
            a / b
            for a, b in zip(
                of(found, "error", part="layer", kept=kept, arm="first", refit=True),
                of(found, "error", part="layer", kept=kept, arm="lasso", refit=True),
            )
        ]
        for kept in KEPT
    }
    text = ", ".join(f"{100 * kept:.0f} %: {shown(ratio)}" for kept, ratio in ratios.items())
    wider = mean(ratios[0.25]) - 1 >= mean(ratios[0.5]) - 1 >= 0
    listed.append(Finding("error of first k over LASSO's, by width", "grows", text, wider))
    dense = of(found, "accuracy", part="dense")
    drops, gains = [], []
    with_refit = cells(found, 0.5, "lasso", True)
    for cell, row in cells(found, 0.5, "lasso", False).items():
        if dense[sorted({r["seed"] for r in found}).index(cell[0])] - row["accuracy"] > 0.1:
            drops.append(cell)
            gains.append(100 * (with_refit[cell]["accuracy"] - row["accuracy"]))
    claim = "LASSO at half: points gained by the refit, layers that lose 10 points without"
    text = f"{shown(gains, 1)} ({len(drops)} layers)" if gains else "no such layer"
    listed.append(Finding(claim, "at least 5 (ours)", text, bool(gains) and mean(gains) >= 5))

    def ahead(arm: str, other: str, paper: str) -> Finding:
        left = of(found, "accuracy", part="net", arm=arm)
        right = of(found, "accuracy", part="net", arm=other)
        points = [100 * (a - b) for a, b in zip(left, right)]
        claim = f"half of the MACs: accuracy of ({arm}) - ({other}), points"
        return Finding(claim, paper, shown(points, 1), mean(points) >= 0)

    lost = [100 * (a - b) for a, b in zip(dense, of(found, "accuracy", part="net", arm="lasso"))]
    claim = "half of the MACs: points lost without training"
    return [
        *listed,
        ahead("lasso", "lasso, targets of now", "above 0"),
        ahead("lasso", "lasso, no refit", "large"),
        ahead("lasso", "weights", "above 0"),
        ahead("lasso", "random", "above 0"),
        ahead("lasso, no refit", "random, no refit", "above 0"),
        Finding(claim, "8.0 (ResNet-50, top-5, 2x)", shown(lost, 1), mean(lost) <= 10),
    ]


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """Error over the width, mean over layers and seeds; dashed without refit."""
    for arm, colour in STYLES.items():
        for refit in (True, False):
            values = [
                mean(of(found, "error", part="layer", kept=kept, arm=arm, refit=refit))
                for kept in KEPT
            ]
            axes.plot(
                [100 * kept for kept in KEPT], values, color=getattr(PRINT, colour), marker="o",
                markersize=3, linewidth=1.2, linestyle="-" if refit else "--",
                label=arm if refit else f"{arm}, no refit",
            )  # fmt: skip
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("inputs kept, %")
    axes.set_ylabel("relative error of one layer's outputs")
    axes.legend(frameon=False, fontsize=8, ncols=2)


CLAIM = Claim(
    "E19: channel pruning by LASSO and least squares [19]",
    findings,
    draw,
    "ResNet-8 on 10,000 images of CIFAR-10, accuracy on 1,000 test images, where the paper has "
    "VGG-16 on ImageNet; nothing is trained after pruning. In blocks the last layer aims at the "
    "sum, the first one reads a part of the stream.",
)


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(
        RESULTS, {"claim": "E19", "refs": [19]}, settings, rows_of(settings, (layers, nets))
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))

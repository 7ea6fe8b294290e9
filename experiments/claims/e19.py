"""E19 [19]: channels chosen by LASSO and layers refitted, against other choices and no refit.

He, Zhang, Sun (arXiv 1707.06168), single layers of VGG-16 without fine-tuning: LASSO with least
squares loses less than the first k channels or those of largest weights, the more so the fewer are
kept; refitting is what matters most; a whole net is better pruned against the outputs of the dense
net than against those of the net as pruned so far. Here ResNet-8 on 10,000 images of CIFAR-10: the
inner channels of its three blocks and, by samplers, their first layers' inputs.

Of a row, `part` is layer (one layer pruned: `error` of its outputs over their size, on the
calibration images; `accuracy` at half), net (all layers pruned to half of the MACs) or dense; `arm`
is lasso, first, weights (largest L1 norm) or random; `refit` says whether layers are refitted.
"""

import dataclasses
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes

from experiments.claims.claim import Case, Claim, Made
from experiments.claims.layers import (
    Layers,
    Settings,
    accuracy,
    arms_of,
    at_random,
    by_weights,
    first,
    layer_name,
    layerwise,
    nets,
)
from experiments.claims.plots import Style, finish, line
from experiments.claims.statements import (
    Finding,
    Rows,
    Statement,
    Value,
    at_least,
    at_most,
    each,
    gap,
    shown,
)
from experiments.rows import Row
from jprune.base import Budget, Pruned
from jprune.reconstruct import least_squares
from jprune.stages.layer_wise import ByLasso, Choose, by_least_squares

KEPT = (0.75, 0.5, 0.25)
CHOICES: dict[str, Choose] = {
    "lasso": ByLasso(),
    "first": first,
    "weights": by_weights,
    "random": at_random,
}
COLOURS = {"lasso": "slim", "first": "second", "weights": "ink", "random": "muted"}
WHOLE: dict[str, tuple[Choose, bool, str]] = {
    "lasso": (ByLasso(), True, "dense"),
    "lasso, targets of now": (ByLasso(), True, "now"),
    "lasso, no refit": (ByLasso(), False, "dense"),
    "weights": (by_weights, True, "dense"),
    "weights, no refit": (by_weights, False, "dense"),
    "random": (at_random, True, "dense"),
    "random, no refit": (at_random, False, "dense"),
}
"""{arm of whole nets: (choice, refit, targets)}."""


def one_layer(case: Case[Settings], dense: Pruned, key: jax.Array) -> Iterator[Made]:
    """One row a layer, choice, refit and width."""
    layers = Layers(case, dense, key)
    for number, (step, problem) in enumerate(layers):
        drawn = jax.random.fold_in(key, number)
        for kept in KEPT[1:2] if case.smoke else KEPT:
            for arm, choose in CHOICES.items():
                mask = choose([problem], round(kept * step.units), drawn)
                for refit in (True, False):
                    variables, error = layers.with_weights(
                        step, problem, mask, least_squares if refit else None
                    )
                    row = {"part": "layer", "layer": layer_name(step), "arm": arm, "refit": refit}
                    reached = accuracy(case, variables) if kept == 0.5 else None
                    yield {**row, "kept": kept, "error": error, "accuracy": reached}, None


def whole_nets(case: Case[Settings], dense: Pruned, key: jax.Array) -> Iterator[Made]:
    """One row a net of half of the MACs."""
    for arm, (choose, refit, targets) in case.first(list(WHOLE.items())):
        stage = layerwise(case, choose, by_least_squares if refit else None)
        stage = dataclasses.replace(stage, budget=Budget(macs=0.5), targets=targets)
        pruned, (record,) = stage(dense, case.task, key)
        yield (
            {
                "part": "net",
                "arm": arm,
                "refit": refit,
                "kept": record["metrics"]["macs"],
                "error": record["metrics"]["reconstruction_error"],
                "accuracy": accuracy(case, pruned.variables),
            },
            None,
        )


def cells(rows: Rows, arm: str, refit: bool) -> dict[Any, Row]:
    """{(seed, layer): row} where half is kept."""
    return {
        (row["seed"], row["layer"]): row
        for row in rows
        if row["part"] == "layer" and (row["kept"], row["arm"], row["refit"]) == (0.5, arm, refit)
    }


def lower_errors(rows: Rows) -> Iterator[Finding]:
    """Errors cell by cell."""

    def share(one: tuple[str, bool], other: tuple[str, bool]) -> float:
        left, right = cells(rows, *one), cells(rows, *other)
        return 100 * float(np.mean([left[k]["error"] <= right[k]["error"] for k in left]))

    for arm in CHOICES:
        lower = share((arm, True), (arm, False))
        text = f"half kept, {arm}: layers whose error the refit lowers"
        yield Finding(text, "all", f"{lower:.0f} %", lower == 100)
    for other in ("first", "weights", "random"):
        lower = share(("lasso", True), (other, True))
        text = f"half kept, refitted: layers where LASSO's error is at most that of {other}"
        yield Finding(text, "all", f"{lower:.0f} %", lower >= 80)


def error(arm: str, kept: float, refit: bool = True) -> Value:
    """Of single layers, mean over them."""
    return each("error", part="layer", arm=arm, kept=kept, refit=refit)


def wider(rows: Rows) -> Iterator[Finding]:
    """The first k channels against LASSO's, by width."""
    ratios = {kept: (error("first", kept) / error("lasso", kept)) for kept in KEPT}
    text = ", ".join(f"{100 * kept:.0f} %: {ratio.shown(rows)}" for kept, ratio in ratios.items())
    grows = ratios[0.25].mean(rows) - 1 >= ratios[0.5].mean(rows) - 1 >= 0
    yield Finding("error of first k over LASSO's, by width", "grows", text, grows)


def refitted(rows: Rows) -> Iterator[Finding]:
    """What the refit brings where a layer loses much without."""
    dense = each("accuracy", part="dense").of(rows)
    refit, gains = cells(rows, "lasso", True), []
    for (seed, layer), row in cells(rows, "lasso", False).items():
        if dense[seed] - row["accuracy"] > 0.1:
            gains.append(100 * (refit[seed, layer]["accuracy"] - row["accuracy"]))
    text = "LASSO at half: points gained by the refit, layers that lose 10 points without"
    ours = f"{shown(gains, 1)} ({len(gains)} layers)" if gains else "no such layer"
    yield Finding(text, "at least 5 (ours)", ours, bool(gains) and fmean(gains) >= 5)


def ahead(arm: str, other: str, paper: str = "above 0") -> Statement:
    """Two ways to prune a whole net."""
    text = f"half of the MACs: accuracy of ({arm}) - ({other}), points"
    return at_least(text, paper, gap("accuracy", arm, other, part="net"), 0, digits=1)


def plot(rows: Rows, axes: Axes) -> None:
    """Error over the width, mean over layers and seeds; dashed without refit."""
    for arm, colour in COLOURS.items():
        for refit in (True, False):
            values = [error(arm, kept, refit).mean(rows) for kept in KEPT]
            name, mark = (arm, "-") if refit else (f"{arm}, no refit", "--")
            line(axes, [100 * kept for kept in KEPT], values, Style(name, colour, mark))
    axes.set_yscale("log")
    axes.invert_xaxis()
    finish(axes, "inputs kept, %", "relative error of one layer's outputs", ncols=2)


LOST = gap("accuracy", {"part": "dense"}, {"part": "net", "arm": "lasso"})
CLAIM = Claim(
    "e19",
    "E19: channel pruning by LASSO and least squares [19]",
    refs=(19,),
    settings=Settings(),
    nets=nets,
    arms=arms_of(one_layer, whole_nets),
    statements=(
        lower_errors,
        wider,
        refitted,
        ahead("lasso", "lasso, targets of now"),
        ahead("lasso", "lasso, no refit", "large"),
        ahead("lasso", "weights"),
        ahead("lasso", "random"),
        ahead("lasso, no refit", "random, no refit"),
        at_most("half of the MACs: points lost without training", "8.0 (ResNet-50, top-5, 2x)",
                LOST, 10, digits=1),
    ),
    plot=plot,
    remarks="ResNet-8 on 10,000 images of CIFAR-10, accuracy on 1,000 test images, where the paper "
    "has VGG-16 on ImageNet; nothing is trained after pruning. In blocks the last layer aims at "
    "the sum, the first one reads a part of the stream.",
)  # fmt: skip

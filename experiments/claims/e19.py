"""E19 [19]: channels chosen by LASSO and layers refitted, against other choices and no refit.

He, Zhang, Sun (arXiv 1707.06168), single layers of VGG-16 without fine-tuning: LASSO with least
squares loses less than the first k channels or those of largest weights, the more so the fewer are
kept; refitting is what matters most; a whole net is better pruned against the outputs of the dense
net than of the net as pruned so far. Here ResNet-8: blocks' inner channels, and inputs by samplers.

Of a row, `part` is layer (one layer pruned: `error` of its outputs over their size, `accuracy` at
half), net (all layers, half of the MACs) or dense; `refit` says whether layers are refitted.
"""

import dataclasses
from collections.abc import Iterator
from statistics import fmean

import jax

from experiments.claims import layers
from experiments.claims import statements as say
from experiments.claims.claim import Case, Claim, Made
from experiments.claims.layers import Settings, at_random, by_weights
from experiments.claims.plots import Curve, Style, curves
from experiments.claims.statements import Finding, Rows, Value, at_least, at_most, each, gap
from experiments.rows import Row
from jprune.base import Budget, Pruned
from jprune.reconstruct import least_squares
from jprune.stages.layer_wise import ByLasso, Choose, by_least_squares

KEPT = (0.75, 0.5, 0.25)
CHOICES: dict[str, Choose] = {
    "lasso": ByLasso(), "first": layers.first, "weights": by_weights, "random": at_random,
}  # fmt: skip
COLOURS = {"lasso": "slim", "first": "second", "weights": "ink", "random": "muted"}
WHOLE = ("lasso", "lasso, targets of now", "lasso, no refit", "weights", "weights, no refit",
         "random", "random, no refit")  # fmt: skip


def one_layer(case: Case[Settings], dense: Pruned, key: jax.Array) -> Iterator[Made]:
    """One row a layer, choice, width and refit."""
    for cell in layers.cells(case, dense, key, KEPT, CHOICES):
        for refit in (True, False):
            yield cell.row(least_squares if refit else None, cell.kept == 0.5, refit=refit)


def whole_nets(case: Case[Settings], dense: Pruned, key: jax.Array) -> Iterator[Made]:
    """One row a net of half of the MACs."""
    for arm in case.first(WHOLE):
        refit, targets = "no refit" not in arm, "now" if "targets of now" in arm else "dense"
        choose = CHOICES[arm.partition(",")[0]]
        stage = layers.layerwise(case, choose, by_least_squares if refit else None)
        stage = dataclasses.replace(stage, budget=Budget(macs=0.5), targets=targets)
        yield layers.whole_net(case, dense, key, arm, stage, refit=refit)


def no_higher(arm: str, refit: bool, other: str, other_refit: bool) -> Value:
    """Percentage of the layers, halved, whose error is at most that of another arm."""

    def share(rows: list[Row]) -> float:
        errors = {(row["arm"], row["refit"], row["layer"]): row["error"] for row in rows}
        names = {row["layer"] for row in rows}
        return 100 * fmean(errors[arm, refit, n] <= errors[other, other_refit, n] for n in names)

    return say.of_seed(share, part="layer", kept=0.5).average(0, " %")


def refitted(rows: Rows) -> Iterator[Finding]:
    """What the refit brings where a layer loses much without."""
    dense, gains = each("accuracy", part="dense").of(rows), []
    of = lambda refit: say.select(rows, part="layer", arm="lasso", kept=0.5, refit=refit)
    for with_, without in zip(of(True), of(False)):
        if dense[without["seed"]] - without["accuracy"] > 0.1:
            gains.append(100 * (with_["accuracy"] - without["accuracy"]))
    text = "LASSO at half: points gained by the refit, layers that lose 10 points without"
    ours = f"{say.shown(gains, 1)} ({len(gains)} layers)" if gains else "no such layer"
    yield Finding(text, "at least 5 (ours)", ours, bool(gains) and fmean(gains) >= 5)


error = lambda arm, kept, refit=True: each("error", part="layer", arm=arm, kept=kept, refit=refit)
AHEAD = (("lasso", "lasso, targets of now"), ("lasso", "lasso, no refit"), ("lasso", "weights"),
         ("lasso", "random"), ("lasso, no refit", "random, no refit"))  # fmt: skip
CLAIM = Claim(
    "e19", "E19: channel pruning by LASSO and least squares [19]", refs=(19,), settings=Settings(),
    nets=layers.nets, arms=layers.arms_of(one_layer, whole_nets),
    statements=(
        *(say.several(f"half kept, {arm}: layers whose error the refit lowers", "all",
                      lambda shares: fmean(shares) == 100, no_higher(arm, True, arm, False))
          for arm in CHOICES),
        *(say.several(f"half kept, refitted: layers where LASSO's error is at most that of {arm}",
                      "all", lambda all_: fmean(all_) >= 80, no_higher("lasso", True, arm, True))
          for arm in ("first", "weights", "random")),
        say.listing("error of first k over LASSO's, by width", "grows",
                {f"{100 * kept:.0f} %: ": error("first", kept) / error("lasso", kept)
                 for kept in KEPT}, lambda _, half, quarter: quarter >= half >= 1),
        refitted,
        *(at_least(f"half of the MACs: accuracy of ({arm}) - ({other}), points",
                   "large" if (arm, other) == AHEAD[1] else "above 0",
                   gap("accuracy", arm, other, part="net"), 0, digits=1) for arm, other in AHEAD),
        at_most("half of the MACs: points lost without training", "8.0 (ResNet-50, top-5, 2x)",
                gap("accuracy", {"part": "dense"}, {"part": "net", "arm": "lasso"}), 10, digits=1),
    ),
    plot=curves(
        [Curve(Style(arm if refit else f"{arm}, no refit", colour, "-" if refit else "--"),
               [100 * kept for kept in KEPT], [error(arm, kept, refit) for kept in KEPT], False)
         for arm, colour in COLOURS.items() for refit in (True, False)],
        "inputs kept, %", "relative error of one layer's outputs", log="y", falls=True, ncols=2,
    ),
    remarks="ResNet-8 on {train_images:,} images of CIFAR-10, accuracy on {test_images:,} test "
    "images, where the paper has VGG-16 on ImageNet; nothing is trained after pruning. In blocks "
    "the last layer aims at the sum, the first one reads a part of the stream.",
)  # fmt: skip

"""E20 [20]: ThiNet's greedy choice and its scales, against other choices.

Luo, Wu, Lin (arXiv 1707.06342), single layers of VGG-16: the greedy choice by what the next layer
makes of channels beats weight sums, APoZ and random, and the least-squares scales help before
fine-tuning; after fine-tuning the differences shrink. Here ResNet-8 on 10,000 images of CIFAR-10:
the inner channels of its three blocks and, by samplers, their first layers' inputs.

Of a row, `part` is layer (one layer pruned, no training), net (the inner channels of all blocks
halved; `finetuned` is the accuracy after one epoch) or dense; `arm` is thinet, thinet_unscaled,
omp, weights (largest L1 norm), apoz (fewest zeros) or random.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from experiments.claims.claim import Case, Claim, Made
from experiments.claims.layers import (
    Settings,
    arms_of,
    at_random,
    by_weights,
    by_zeros,
    cells,
    layerwise,
    nets,
    whole_net,
)
from experiments.claims.plots import Curve, Level, Style, curves
from experiments.claims.statements import at_least, gap, percent
from jprune.base import Pruned
from jprune.stages.layer_wise import ByThiNet, Choose, Refit

KEPT = (0.8, 0.5, 0.2)
GREEDY, PURSUIT = ByThiNet(), ByThiNet("omp")
CHOICES: dict[str, tuple[Choose, Refit | None, Style]] = {
    "thinet": (GREEDY, GREEDY.scales, Style("ThiNet", "slim")),
    "thinet_unscaled": (GREEDY, None, Style("ThiNet, no scales", "slim", "--")),
    "omp": (PURSUIT, PURSUIT.scales, Style("matching pursuit", "slim", ":")),
    "weights": (by_weights, None, Style("weight sum", "ink")),
    "apoz": (by_zeros, None, Style("APoZ", "second")),
    "random": (at_random, None, Style("random", "muted")),
}
TUNED = ("thinet", "weights", "random")


def one_layer(case: Case[Settings], dense: Pruned, key: jax.Array) -> Iterator[Made]:
    """One row a layer, choice and width."""
    choices = {arm: choose for arm, (choose, _, _) in CHOICES.items()}
    for cell in cells(case, dense, key, KEPT, choices):
        refit = CHOICES[cell.arm][1]
        yield cell.row(refit and refit(np.ones(cell.step.units, bool), cell.key))


def whole_nets(case: Case[Settings], dense: Pruned, key: jax.Array) -> Iterator[Made]:
    """One row a net with half of its inner channels, before and after an epoch."""
    size, rate = 64 if case.smoke else 128, 0.1 * case.settings.learning_rate
    finetune = case.train(1, rate, size, name="finetune")
    for arm in case.first(TUNED):
        stage = layerwise(case, *CHOICES[arm][:2])
        stage = dataclasses.replace(stage, targets="now", stream="whole", bias=False)
        yield whole_net(case, dense, key, arm, stage, finetune)


ASKED = (
    ("thinet", "thinet_unscaled", 0),
    ("thinet_unscaled", "random", 5),
    ("thinet", "weights", 2),
    ("thinet", "apoz", 0),
    ("omp", "random", 0),
)
CLAIM = Claim(
    "e20", "E20: ThiNet [20]", refs=(20,), settings=Settings(), nets=nets,
    arms=arms_of(one_layer, whole_nets),
    statements=(
        *(at_least(f"{100 * kept:.0f} % of one layer's inputs: {arm} - {other} >= {least}, points",
                   "above 0", gap("accuracy", arm, other, part="layer", kept=kept), least, digits=1)
          for kept in (0.5, 0.2) for arm, other, least in ASKED),
        *(at_least(f"all blocks halved, no training: thinet - {other} >= 0, points", "above 0",
                   gap("accuracy", "thinet", other, part="net"), 0, digits=1)
          for other in ("random", "weights")),
        at_least(
            "all blocks halved, an epoch of training: thinet - random >= -0.5, points", "above 0",
            gap("finetuned", "thinet", "random", part="net"), -0.5, digits=1,
        ),
    ),
    plot=curves(
        [Curve(style, [100 * kept for kept in KEPT],
               [percent("accuracy", part="layer", arm=arm, kept=kept) for kept in KEPT])
         for arm, (_, _, style) in CHOICES.items()],
        "inputs of one layer kept, %, without training", "test accuracy, %", falls=True,
        across=[Level(percent("accuracy", part="dense"))],
    ),
    remarks="ResNet-8 on {train_images:,} images of CIFAR-10, accuracy on {test_images:,} test "
    "images, where the paper has VGG-16 on ImageNet; layers are those of E19.",
)  # fmt: skip

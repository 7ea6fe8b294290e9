"""Fidelity: how well criteria tell what the loss does when a filter goes, or many at once.

No paper shows it. For every single filter of LeNet-5 (MNIST) and ResNet-8 (CIFAR-10) the loss on
500 training images is measured with the filter gated away, and so is that of 100 random sets of
10 % of all filters; a criterion predicts the first by its score and the second by the sum of its
scores, but EigenDamage by its curvature of the whole set: filters act together. No net is trained
afterwards.

Of a row, `rank` is Spearman's rank correlation over all filters, `within` its mean over groups of
filters, `sets` that of the sets; `predicted` and `measured` are of the single filters.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from statistics import fmean

import jax
import numpy as np
from matplotlib.axes import Axes

from experiments.claims.claim import Case, Claim, Made, named
from experiments.claims.damages import CRITERIA, CURVED, Dense, increases, predicted
from experiments.claims.plots import finish, logarithmic
from experiments.claims.settings import CommonSettings
from experiments.claims.statements import Finding, Rows, each, rank, select
from jprune.report.figures import PRINT
from jprune.train.net import Net as TaskNet

TRAINING = {"lenet5": (2.0, 0.02), "resnet8": (3.0, 0.1)}
"""{net: (epochs, largest learning rate)}."""
TRAINED_ON = 10_000
"""Images."""
SETS, FRACTION = 100, 0.1
WORDS = {"rank": "all filters", "within": "filters of a group", "sets": "sets of 10 %"}


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    images: int = 500


def arms(case: Case[Settings]) -> Iterator[Made]:
    """What every criterion predicts beside what is measured."""
    epochs, rate = (1.0, 0.1) if case.smoke else TRAINING[case.net.name]
    size = 100 if case.smoke else 250
    images = case.batches("train", size, case.settings.images, case.seed)
    variables = case.dense(case.train(epochs, rate, 64)).variables
    dense = Dense(case.task, TaskNet(case.task).groups, variables, images, case.fold(2))
    sizes = list(dense.groups.sizes.values())
    count, ends = sum(sizes), np.cumsum(sizes)[:-1]
    rng = np.random.default_rng(int(jax.random.bits(dense.key)))
    sets = [rng.permutation(count) < FRACTION * count for _ in range(8 if case.smoke else SETS)]
    without = np.concatenate([np.eye(count, dtype=bool), np.stack(sets)])
    true, of_sets = np.split(increases(dense, without), [count])
    for arm, damages_of in CRITERIA.items():
        scores, sums = predicted(dense, damages_of(dense), np.stack(sets))
        row = {
            "rank": rank(scores, true),
            "within": fmean(map(rank, np.split(scores, ends), np.split(true, ends))),
            "sets": rank(sums, of_sets),
            "predicted": [float(f"{value:.3g}") for value in scores],
            "measured": [float(f"{value:.3g}") for value in true],
        }
        yield {"arm": arm, **row}, None


def nets_of(rows: Rows) -> list[str]:
    """In the order of the rows."""
    return list(dict.fromkeys(row["net"] for row in rows))


def best(rows: Rows) -> Iterator[Finding]:
    """Rank correlations, each beside that of the other criteria."""
    for net, what in itertools.product(nets_of(rows), WORDS):
        values = {arm: each(what, net=net, arm=arm) for arm in CRITERIA}
        order = sorted(CRITERIA, key=lambda arm: -values[arm].mean(rows))
        text = f"{net}, {WORDS[what]}: a criterion of curvature ranks best"
        ours = ", ".join(f"{arm} {values[arm].shown(rows)}" for arm in order)
        yield Finding(text, "-", ours, order[0] in CURVED)


def plot(rows: Rows, axes: Axes) -> None:
    """Single filters of the first seed: what OBD predicts and what is measured."""
    for net, colour in zip(nets_of(rows), (PRINT.slim, PRINT.second)):
        row, *_ = select(rows, net=net, arm="OBD")
        x, y = np.maximum(row["predicted"], 1e-9), np.maximum(row["measured"], 1e-6)
        text = f"{net}, rank {row['rank']:.2f}"
        axes.scatter(x, y, s=8, color=colour, alpha=0.6, linewidths=0, label=text)
    axes.axline((1e-3, 1e-3), slope=1, color=PRINT.line, linewidth=0.8)
    logarithmic(axes, "xy", plain=True)
    x_name = "increase of the loss that OBD predicts, nats"
    finish(axes, x_name, "measured (at least 1e-6)", 9)


CLAIM = Claim(
    "fidelity", "Fidelity: predicted and measured losses without a filter", refs=(1, 18),
    settings=Settings(),
    nets=lambda settings: [named("lenet5", images=TRAINED_ON),
                           named("resnet8", "cifar10", TRAINED_ON)],
    arms=arms, statements=(best,), plot=plot, smoke=(named("resnet8", "cifar10"),),
    label="fidelity",
    remarks="Spearman's rank correlation over single filters and over random sets of them, on the "
    "images that the criteria saw; training is not part of it. A filter that goes takes its bias "
    "and what its norm adds with it, of which OBD, C-OBS and EigenDamage know nothing: theirs is "
    "the change of the kernel alone. C-OBS is the damage that is left if the other weights make up "
    "for it, which here they do not.",
)  # fmt: skip

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
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from experiments.claims.claim import Case, Claim, Made, Net
from experiments.claims.damages import CRITERIA, CURVED, Dense, increases
from experiments.claims.plots import finish
from experiments.claims.statements import Finding, Rows, each, select
from jprune.report.figures import PRINT
from jprune.train.net import Net as TaskNet

TRAINING = {"lenet5": (2.0, 0.02), "resnet8": (3.0, 0.1)}
"""{net: (epochs, largest learning rate)}."""
TRAINED_ON = 10_000
"""Images."""
SETS, FRACTION = 100, 0.1
WORDS = {"rank": "all filters", "within": "filters of a group", "sets": "sets of 10 %"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        images: that losses are measured on.
    """

    images: int = 500


def net(name: str, data: str) -> Net:
    """A net, as its rows name it."""
    return Net(name, data, TRAINED_ON, says={"net": name})


def rank(predicted: np.ndarray, true: np.ndarray) -> float:
    """Spearman's correlation."""
    result: Any = stats.spearmanr(predicted, true)
    return float(result.statistic)


def arms(case: Case[Settings]) -> Iterator[Made]:
    """What every criterion predicts beside what is measured."""
    epochs, rate = (1.0, 0.1) if case.smoke else TRAINING[case.net.name]
    size = 100 if case.smoke else 250
    batches = case.task.data.batches("train", size, seed=case.seed)
    dense = Dense(
        case.task,
        TaskNet(case.task).groups,
        case.dense(case.train(epochs, rate, 64)).variables,
        list(itertools.islice(batches, 1 if case.smoke else case.settings.images // size)),
        case.fold(2),
    )
    sizes = list(dense.groups.sizes.values())
    count, ends = sum(sizes), np.cumsum(sizes)[:-1]
    rng = np.random.default_rng(int(jax.random.bits(dense.key)))
    sets = [rng.permutation(count) < FRACTION * count for _ in range(8 if case.smoke else SETS)]
    without = np.concatenate([np.eye(count, dtype=bool), np.stack(sets)])
    true, of_sets = np.split(increases(dense, without), [count])
    for arm, damages_of in CRITERIA.items():
        damages = damages_of(dense)
        units = [np.asarray(damages[group], float) for group in dense.groups.names]
        blocks = [np.diag(each) if each.ndim == 1 else each for each in units]
        scores = np.concatenate([np.diag(block) for block in blocks])
        # A set's damage: the sum of its block over all pairs of its units.
        parts = zip(np.split(np.stack(sets).astype(float), ends, axis=1), blocks)
        predicted = [np.einsum("su,uv,sv->s", gone, block, gone) for gone, block in parts]
        yield (
            {
                "arm": arm,
                "rank": rank(scores, true),
                "within": fmean(map(rank, np.split(scores, ends), np.split(true, ends))),
                "sets": rank(np.sum(predicted, axis=0), of_sets),
                "predicted": [float(f"{value:.3g}") for value in scores],
                "measured": [float(f"{value:.3g}") for value in true],
            },
            None,
        )


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
        axes.scatter(
            np.maximum(row["predicted"], 1e-9), np.maximum(row["measured"], 1e-6), s=8,
            color=colour, alpha=0.6, linewidths=0, label=f"{net}, rank {row['rank']:.2f}",
        )  # fmt: skip
    axes.axline((1e-3, 1e-3), slope=1, color=PRINT.line, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    finish(
        axes, "increase of the loss that OBD predicts, nats", "measured (at least 1e-6)", 9
    )  # fmt: skip


CLAIM = Claim(
    "fidelity",
    "Fidelity: predicted and measured losses without a filter",
    refs=(1, 18),
    label="fidelity",
    settings=Settings(),
    nets=lambda settings: [net("lenet5", "mnist"), net("resnet8", "cifar10")],
    smoke=(net("resnet8", "cifar10"),),
    arms=arms,
    statements=(best,),
    plot=plot,
    remarks="Spearman's rank correlation over single filters and over random sets of them, on the "
    "images that the criteria saw; training is not part of it. A filter that goes takes its bias "
    "and what its norm adds with it, of which OBD, C-OBS and EigenDamage know nothing: theirs is "
    "the change of the kernel alone. C-OBS is the damage that is left if the other weights make up "
    "for it, which here they do not.",
)

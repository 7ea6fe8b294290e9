"""P39 [39]: what a hypernetwork says of widths, and what the widths that it finds reach.

Liu et al. (arXiv 1903.10258) gain most over uniform widths at small budgets (MobileNetV1 at a
quarter of its width: 50.6 -> 57.2 %), and take the norms' statistics of every candidate anew. Here
ResNet-8 on 5,000 images of CIFAR-10 at a quarter of its MACs.

Of a row, `part` is rank (random widths, whatever they cost: `score` by the hypernetwork,
`unsettled` the same with old statistics, `accuracy` of the net from scratch), search (`arm`
evolution or random, equal evaluations, best score) or net (`arm` searched or uniform, from scratch;
`accuracy` on the test set).
"""

import dataclasses
from collections.abc import Iterator

from matplotlib.axes import Axes

from experiments.claims.claim import Case, Claim, Made, Net
from experiments.claims.hypernets import MACS, WIDTHS, ranks, searches, trained_hypernetwork
from experiments.claims.plots import Style, finish, line
from experiments.claims.settings import CommonSettings
from experiments.claims.statements import Rows, at_least, gap, percent, ranks_alike, select


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    """Those of P39.

    Attributes:
        meta_epochs: of the hypernetwork.
        epochs: of the searched and the uniform net, from scratch.
        rank_epochs: of the random nets, from scratch.
        generations: of the search.
        population: candidates in one.
        images: of the validation split, that candidates are scored on.
        rank_images: the same for the random nets.
    """

    meta_epochs: float = 16.0
    epochs: float = 20.0
    rank_epochs: float = 5.0
    learning_rate: float = 0.1
    train_images: int = 5_000
    generations: int = 6
    population: int = 20
    images: int = 500
    rank_images: int = 2_000


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The hypernetwork, and what it says."""
    meta = trained_hypernetwork(case)
    for part in (ranks, searches):
        for row, _ in part(case, meta):
            yield {"budget": {"macs": MACS}, **row}, None


def plot(rows: Rows, axes: Axes) -> None:
    """From scratch over the hypernetwork's score, a seed a colour."""
    seeds = sorted({row["seed"] for row in rows})
    for seed, colour in zip(seeds, ("slim", "second", "ink")):
        tried = select(rows, part="rank", seed=seed)
        score, accuracy = ([100 * row[name] for row in tried] for name in ("score", "accuracy"))
        style = Style(f"seed {seed}", colour, "")
        line(axes, score, accuracy, style, markersize=4)
    x = "accuracy with the hypernetwork's weights, %"
    finish(axes, x, "accuracy from scratch, %")


CLAIM = Claim(
    "p39", "P39: MetaPruning [39]", refs=(39,), settings=Settings(),
    nets=lambda settings: [Net("resnet8", "cifar10", settings.train_images)], arms=arms, plot=plot,
    statements=(
        at_least("rank correlation, hypernetwork's score and from scratch > 0.4", "-",
                 ranks_alike("score", "accuracy", part="rank"), 0.4),
        at_least("candidates without new statistics lose > 20 points", "near chance",
                 percent("score", part="rank") - percent("unsettled", part="rank"), 20, digits=1),
        at_least("search - random search, equal evaluations, points of the score >= 0", "-",
                 gap("score", "evolution", "random", part="search"), 0, digits=1),
        at_least("searched - uniform, from scratch, points of test accuracy >= 0.5",
                 "6.6 (MobileNetV1 at 0.25)", gap("accuracy", "searched", "uniform", part="net"),
                 0.5, digits=1),
    ),
    remarks="ResNet-8 on {train_images:,} images of CIFAR-10 at {low:.1f} to {high:.1f} % of the "
    "MACs, {options} widths a group; validation accuracy but for the last line, where the paper "
    "has ImageNet nets. Random nets cost what they like. {meta_epochs:g} epochs of the "
    "hypernetwork, {generations} generations of {population}, {rank_epochs:g} epochs of random "
    "nets and {epochs:g} of the searched and the uniform one; longer trainings were not tried.",
    figures={"low": 100 * MACS * (1 - WIDTHS.window), "high": 100 * MACS,
             "options": WIDTHS.options},
    tried="Of ten at the budget (seed 0, 500 images) scores lie within 3 points, and say nothing "
    "of the accuracy from scratch (rank correlation -0.2): the search finds better scores there, "
    "not better nets.",
)  # fmt: skip

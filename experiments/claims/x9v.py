"""X9 [43]: channels whose scale is surely zero go, and nothing is trained afterwards.

Zhao et al. (CVPR 2019): 62 % of VGG-16's channels go on CIFAR-10 for 0.1 points, without
fine-tuning. Here LeNet-5 with batch norms on MNIST, with both priors.

Of a row, `arm` is dense (trained without gates), gated (with gates, all channels there), rule
(without the channels that the thresholds prune) or half (half of the MACs, in the order of
sureness); `prior` is gaussian or log_uniform, `kept` the fraction of gated channels, `kl_kept` and
`kl_pruned` mean divergences in nats.
"""

import dataclasses
from collections.abc import Iterator
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes

from experiments.claims.claim import Case, Claim, Made, Net, accuracy, sizes
from experiments.claims.nets import normed
from experiments.claims.plots import Style, finish, level, spread
from experiments.claims.statements import Finding, Rows, Statement, at_least, gap, listed, shown
from jprune.base import Budget
from jprune.learners.variational import PRIORS, Rule
from jprune.learners.variational import Settings as GateSettings
from jprune.stages.variational import Gate, Select

FLOORS = {"params/fc1/kernel": 500}
"""Channels of convolutions are pruned, the units of the dense layer are not."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        epochs: of every training.
        learning_rate: the largest one.
        warmup: fraction of the steps in which the weight of the divergence grows.
        train_images: of MNIST; None: all. With fewer sigma begins above the threshold of the rule.
        batch_size: of every training.
    """

    epochs: float = 2.0
    learning_rate: float = 0.1
    warmup: float = 0.5
    train_images: int | None = None
    batch_size: int = 64


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, and with both priors the gated net, pruned by the rule and to the budget."""
    settings, start = case.settings, case.start
    training = case.train(settings.epochs, settings.learning_rate, settings.batch_size)
    yield {"arm": "dense", "prior": None, "kept": 1.0}, case.apply(start, 1, training)
    for prior in PRIORS:
        whole = Budget(macs=1.0, floors=FLOORS)
        # Nothing is masked in training, so that what removal does can be seen.
        gate = Gate(training, whole, GateSettings(prior, masks=False), settings.warmup)
        gated, (record,) = gate(start, case.task, case.fold(1))
        kl = record["metrics"]["kl"]
        yield {"arm": "gated", "prior": prior, "kept": 1.0, "kl": kl}, gated
        for arm, select in (
            ("rule", Select(whole, prior, Rule(), "rule")),
            ("half", Select(Budget(macs=0.5, floors=FLOORS), prior, Rule())),
        ):
            pruned, (record,) = select(gated, case.task, case.key)
            row = {name: record["metrics"][name] for name in ("kl_kept", "kl_pruned", "forced")}
            masks = np.concatenate([np.asarray(pruned.masks[name]) for name in gated.extra["mu"]])
            yield {"arm": arm, "prior": prior, **row, "kept": float(masks.mean())}, pruned


def ruled(prior: str) -> Statement:
    """What the rule prunes, and what that costs."""

    def findings(rows: Rows) -> Iterator[Finding]:
        gone = listed(rows, lambda row: 100 * (1 - row["kept"]), arm="rule", prior=prior)
        text = f"{prior}: channels that the rule prunes, %"
        yield Finding(text, "some (VGG-16: 62)", shown(gone, 1), min(gone) > 0)
        tested = any(gone)  # of a net that lost nothing, both of these hold by construction
        lost = gap("accuracy", {"arm": "rule", "prior": prior}, "dense").list(rows)
        text = f"{prior}: pruned - dense, no fine-tuning, points"
        yield Finding(text, "-0.1", shown(lost), fmean(lost) >= -0.5 if tested else None)
        moved = gap("accuracy", "rule", "gated", prior=prior).list(rows)
        most, text = max(map(abs, moved)), f"{prior}: what removal itself changes, points"
        yield Finding(text, "about 0", shown(moved), most < 0.2 if tested else None)
        kept, pruned = (
            listed(rows, what, arm="half", prior=prior) for what in ("kl_kept", "kl_pruned")
        )
        text = f"{prior}, half of the MACs: mean KL of kept and of pruned channels, nats"
        apart = all(a > b for a, b in zip(kept, pruned))
        yield Finding(text, "apart", f"{shown(kept)}; {shown(pruned)}", apart)

    return findings


def halved(prior: str) -> Statement:
    """What half of the MACs cost."""
    lost = gap("accuracy", {"arm": "half", "prior": prior}, "dense")
    text = f"{prior}, half of the MACs: pruned - dense, points"
    return at_least(text, "not known", lost, -0.5)


def plot(rows: Rows, axes: Axes) -> None:
    """Accuracy over the channels kept, a prior a colour."""
    for prior, colour in zip(PRIORS, ("slim", "second")):
        arms = ("gated", "rule", "half")
        kept = [100 * fmean(listed(rows, "kept", arm=arm, prior=prior)) for arm in arms]
        percent = lambda row: 100 * row["accuracy"]
        values = [listed(rows, percent, arm=arm, prior=prior) for arm in arms]
        style = Style(prior.replace("_", "-"), colour)
        spread(axes, kept, values, style, markersize=4, linewidth=0, elinewidth=1)
    level(axes, 100 * fmean(listed(rows, "accuracy", arm="dense")), colour="ink")
    finish(axes, "gated channels kept, %, without fine-tuning", "test accuracy, %")


CLAIM = Claim(
    "x9v",
    "X9: variational pruning [43]",
    refs=(43,),
    settings=Settings(),
    nets=lambda settings: [Net("lenet5_bn", images=settings.train_images, build=normed)],
    arms=arms,
    measures=(accuracy, sizes),
    statements=[make(prior) for prior in PRIORS for make in (ruled, halved)],
    plot=plot,
    remarks="LeNet-5 with batch norms on MNIST for 2 epochs, where the paper has CIFAR-10 and 300. "
    "The prior and the thresholds are those of a re-implementation (the authors' are not known); "
    "log sigma^2 begins at log(2.5 / N), and its learning rate with the log-uniform prior is such "
    "that the divergence alone would add 40. The latter hardly moves a mean (by 1 / (mu N) "
    "a step), so that by its algebra a channel goes only where the loss bends by less than "
    "1 / (20 N) over log mu: after two epochs none is so idle.",
)

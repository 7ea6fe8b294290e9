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

from experiments.claims import statements as say
from experiments.claims.claim import Case, Claim, Made, Net, accuracy, sizes
from experiments.claims.nets import normed
from experiments.claims.plots import Curve, Level, Style, curves
from experiments.claims.settings import CommonSettings
from experiments.claims.statements import Statement, each, gap, percent
from jprune.base import Budget
from jprune.learners.variational import PRIORS, Rule
from jprune.learners.variational import Settings as GateSettings
from jprune.stages.variational import Gate, Select

FLOORS = {"params/fc1/kernel": 500}  # channels of convolutions are pruned, not its units


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    epochs: float = 2.0
    learning_rate: float = 0.1
    warmup: float = 0.5
    train_images: int | None = None  # with fewer sigma begins above the threshold of the rule
    batch_size: int = 64


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, and with both priors the gated net, pruned by the rule and to the budget."""
    used, start = case.settings, case.start
    training = case.train(used.epochs, used.learning_rate, used.batch_size)
    yield {"arm": "dense", "prior": None, "kept": 1.0}, case.apply(start, 1, training)
    for prior in PRIORS:
        whole = Budget(macs=1.0, floors=FLOORS)
        # Nothing is masked in training, so that what removal does can be seen.
        gate = Gate(training, whole, GateSettings(prior, masks=False), used.warmup)
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


def of_prior(prior: str) -> Iterator[Statement]:
    """What the rule prunes, what that costs, and what half of the MACs cost."""
    rule, half = {"arm": "rule", "prior": prior}, {"arm": "half", "prior": prior}
    gone = each(lambda row: 100 * (1 - row["kept"]), **rule).to(1)
    yield say.several(f"{prior}: channels that the rule prunes, %", "some (VGG-16: 62)",
                      lambda gone: min(gone) > 0, gone)  # fmt: skip
    # Of a net that lost nothing, both of these hold by construction.
    cheap = lambda lost, gone: fmean(lost) >= -0.5 if any(gone) else None
    yield say.several(f"{prior}: pruned - dense, no fine-tuning, points", "-0.1", cheap,
                      gap("accuracy", rule, "dense"), beside=[gone])  # fmt: skip
    still = lambda moved, gone: max(map(abs, moved)) < 0.2 if any(gone) else None
    yield say.several(f"{prior}: what removal itself changes, points", "about 0", still,
                      gap("accuracy", "rule", "gated", prior=prior), beside=[gone])  # fmt: skip
    yield say.several(
        f"{prior}, half of the MACs: mean KL of kept and of pruned channels, nats", "apart",
        lambda kept, pruned: all(a > b for a, b in zip(kept, pruned)),
        each("kl_kept", **half), each("kl_pruned", **half),
    )  # fmt: skip
    yield say.at_least(f"{prior}, half of the MACs: pruned - dense, points", "not known",
                       gap("accuracy", half, "dense"), -0.5)  # fmt: skip


ARMS = ("gated", "rule", "half")
CLAIM = Claim(
    "x9v", "X9: variational pruning [43]", refs=(43,), settings=Settings(),
    nets=lambda settings: [Net("lenet5_bn", images=settings.train_images, build=normed)], arms=arms,
    measures=(accuracy, sizes), statements=[s for prior in PRIORS for s in of_prior(prior)],
    plot=curves(
        [Curve(Style(prior.replace("_", "-"), colour),
               [percent("kept", arm=arm, prior=prior) for arm in ARMS],
               [percent("accuracy", arm=arm, prior=prior) for arm in ARMS],
               more={"markersize": 4, "linewidth": 0, "elinewidth": 1})
         for prior, colour in zip(PRIORS, ("slim", "second"))],
        "gated channels kept, %, without fine-tuning", "test accuracy, %",
        across=[Level(percent("accuracy", arm="dense"), colour="ink")],
    ),
    remarks="LeNet-5 with batch norms on MNIST for {epochs:g} epochs, where the paper has CIFAR-10 "
    "and 300. The prior and the thresholds are those of a re-implementation (the authors' are not "
    "known); log sigma^2 begins at log(2.5 / N), and its learning rate with the log-uniform prior "
    "is such that the divergence alone would add 40. The latter hardly moves a mean (by 1 / (mu N) "
    "a step), so that by its algebra a channel goes only where the loss bends by less than "
    "1 / (20 N) over log mu: after {epochs:g} epochs none is so idle.",
)  # fmt: skip

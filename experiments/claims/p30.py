"""P30 [30]: GAL's masks, with and without its adversary.

Lin et al. (arXiv 1903.09291): soft masks under an L1 penalty, a discriminator and no labels remove
whole structures; fine-tuning brings the accuracy back. Here LeNet-5 on 10,000 images of MNIST,
channels of all three layers: a sweep of the penalty, the budget of 30 % of the MACs with and
without discriminator, and the same number of channels removed at random.

Of a row, `arm` is dense, sweep (a `strength`, no budget), gal, mse (no discriminator), random, or
labels (gal with permuted labels while it prunes: `same` says whether masks and weights are those of
gal, bit for bit).
"""

from collections.abc import Iterator

import numpy as np

from experiments.claims import gal
from experiments.claims import statements as say
from experiments.claims.claim import Case, Claim, Made, Net
from experiments.claims.plots import Curve, Level, Style, curves
from experiments.claims.statements import Finding, Rows, at_least, each, gap, percent, select, told
from jprune.base import Budget, Pruned
from jprune.learners import Terms

STRENGTHS = (0.1, 0.3, 1.0)
BUDGET = Budget(macs=0.3)


def arms(case: Case[gal.GalSettings]) -> Iterator[Made]:
    """The dense net, a sweep of the penalty, and the budget in four ways."""
    dense = gal.dense_net(case)

    def row(arm: str, net: Pruned, strength: float | None = None, same: bool = False) -> Made:
        zeros = int(sum((~np.asarray(mask)).sum() for mask in (net.masks or {}).values()))
        before = case.score(net)
        after = before if arm == "labels" else gal.tuned(case, net)
        about = {"arm": arm, "strength": strength, "same": same, "kept": case.macs(net)}
        return {**about, "zeros": zeros, "accuracy": before, "finetuned": after}, None

    yield row("dense", dense)
    for strength in STRENGTHS[1:2] if case.smoke else STRENGTHS:
        yield row("sweep", gal.adversarial(case, dense, None, Terms(), strength=strength), strength)
    pruned = gal.adversarial(case, dense, BUDGET, Terms())
    yield row("gal", pruned)
    yield row("mse", gal.adversarial(case, dense, BUDGET, Terms(adversarial=0.0)))
    yield row("random", gal.random_like(case, dense, pruned))
    again = gal.adversarial(case, dense, BUDGET, Terms(), task=gal.permuted(case.task))
    yield row("labels", again, same=gal.equal(pruned, again))


def same(rows: Rows) -> Iterator[Finding]:
    """What labels change."""
    equal = [row["same"] for row in select(rows, arm="labels")]
    text = "permuted labels: the same masks and weights"
    yield Finding(text, "yes", f"{sum(equal)} of {len(equal)}", all(equal))


ARMS = [("sweep", "second", strength) for strength in STRENGTHS]
ARMS += [("gal", "slim", None), ("mse", "ink", None), ("random", "muted", None)]
CLAIM = Claim(
    "p30", "P30: GAL [30]", refs=(30,), settings=gal.GalSettings(),
    nets=lambda settings: [Net("lenet5", images=settings.train_images)], arms=arms,
    smoke=(Net("lenet300"),),
    statements=(
        say.listing(f"channels at 0 with lambda {', '.join(map(str, STRENGTHS))}: more with more",
                    "rising", [each("zeros", arm="sweep", strength=s).to(0) for s in STRENGTHS],
                    say.rising),
        same,
        at_least("70 % of the MACs removed: gal - dense >= -0.5, points", "about 0",
                 gap("finetuned", "gal", "dense"), -0.5),
        told("gal - without discriminator, points", "above 0", gap("finetuned", "gal", "mse")),
        at_least("gal - random channels >= 0, points", "-", gap("finetuned", "gal", "random"), 0),
    ),
    plot=curves(
        [Curve(Style("_" if strength in STRENGTHS[1:] else arm, colour),
               [percent("kept", arm=arm, strength=strength)],
               [percent("finetuned", arm=arm, strength=strength)],
               more={"markersize": 4, "linewidth": None}) for arm, colour, strength in ARMS],
        "MACs kept, %", "test accuracy after fine-tuning, %",
        across=[Level(percent("finetuned", arm="dense"))],
    ),
    remarks="LeNet-5 on {train_images:,} images of MNIST, {pruning_epochs:g} epochs for GAL and "
    "{finetune_epochs:g} of fine-tuning; masks start at 1, and with a budget the penalty rises "
    "until it is met. The rate of the adversarial part is {pruning_rate:g}.",
    tried="The authors' rate of 0.01 diverges on LeNet-5, 0.003 with one seed of three. With 2 "
    "epochs of fine-tuning GAL lost 0.55 +- 0.07 points at its budget.",
)  # fmt: skip

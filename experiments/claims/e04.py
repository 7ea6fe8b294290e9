"""E4 [4]: a twelfth of the weights is enough, if what is left is trained again, in rounds.

Han, Pool, Tran, Dally, arXiv 1506.02626: LeNet-300-100 and LeNet-5 keep a twelfth of their weights
without loss (their table 1); without retraining accuracy falls beyond half of them, and pruning in
rounds goes further than pruning at once (figure 5). An L1 penalty is better before retraining, L2
after it. The surviving weights of the first layer see the middle of the image (figure 4).

Of a row, `arm` is dense, iterative (after every round), longer (the dense net, trained on for as
many epochs as all rounds have), cut (at once, not trained again), one_shot (at once, then as many
epochs), reinit (the masks of the last round, from new initial values), or l1 and l2 (a dense net
with that penalty, pruned at once); `before` is the test accuracy before retraining, `accuracy` that
after it, `middle` the fraction of the first layer's weights that see the central 20 x 20 pixels.
"""

import dataclasses
from collections.abc import Iterator
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes

from experiments.claims.claim import Case, Claim, Made, Net, accuracy
from experiments.claims.plots import Style, finish, level, spread
from experiments.claims.statements import Rows, above, at_least, at_most, below, each, gap, listed
from experiments.claims.thresholds import thresholds
from experiments.rows import Row
from jprune.base import Budget, Pruned
from jprune.recipes import Save, Train
from jprune.recipes.han import han
from jprune.stages.dead_units import RemoveDead
from jprune.stages.prune import fractions
from jprune.stages.reinitialise import Reinitialise
from jprune.stages.sensitivity import Sensitivity
from jprune.stages.std_rule import StdPrune
from jprune.train.numbers import Numbers

KEPT = {"lenet300": (0.5, 0.3, 0.18, 0.12, 0.083, 0.04), "lenet5": (0.5, 0.3, 0.18, 0.12, 0.083)}
"""Fractions kept after each round: 12 times fewer is 0.083, 25 times 0.04."""
BY_LAYER = {
    "lenet300": {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26},
    "lenet5": {"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19},
}
"""What the paper keeps of every layer, of 8.3 % of all."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        epochs: of the dense nets.
        again: epochs of retraining after a round; of LeNet-5 half as many.
        learning_rate: the largest one of the dense nets' training.
        retraining_rate: the same of retraining.
    """

    epochs: float = 5.0
    again: float = 3.0
    learning_rate: float = 0.05
    retraining_rate: float = 0.02


def training(case: Case[Settings], epochs: float, rate: float) -> Train:
    """So many epochs; of LeNet-5, whose step takes ten times as long, 0.4 of the steps."""
    shorter, size = (0.2, 64) if case.net.name == "lenet5" else (1.0, 128)
    return case.train(shorter * epochs, rate, size)


def retraining(case: Case[Settings], rounds: int = 1, rate: float | None = None) -> Train:
    """As many epochs as so many rounds have."""
    again = case.settings.again / (2 if case.net.name == "lenet5" else 1)
    return training(case, rounds * again, rate or case.settings.retraining_rate)


def cut(case: Case[Settings], pruned: Pruned, kept: float, number: int) -> Pruned:
    """Pruned by the paper's share of every layer, without units that nothing reads or feeds."""
    budget, q = Budget(density=kept), quality(case, pruned, kept)
    return case.apply(pruned, 10 * number, Sensitivity(budget, q), StdPrune(budget), RemoveDead())


def quality(case: Case[Settings], pruned: Pruned, kept: float) -> Numbers:
    """The q of every layer at which it keeps its share."""
    if case.smoke:
        return 1.0
    values = []
    for name, least in thresholds(pruned.variables, BY_LAYER[case.net.name], kept).items():
        weights = np.asarray(pruned.variables["params"][name]["kernel"])
        values.append(round(float(max(least / weights[weights != 0].std(), 1e-3)), 4))
    return tuple(values)


def row(arm: str, kept: float, before: float | None = None) -> Row:
    """What a row says of a net."""
    return {"arm": arm, "kept": kept, "before": before}


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, rounds, and the dense net trained on; of LeNet-300-100 the other arms."""
    train = training(case, case.settings.epochs, case.settings.learning_rate)
    dense = case.apply(case.start, 10, train, Save("dense"))
    yield row("dense", 1.0), dense
    pruned, fractions_kept = dense, case.first(KEPT[case.net.name])
    for number, kept in enumerate(fractions_kept, start=1):
        small = cut(case, pruned, kept, 10 + number)
        pruned = case.apply(small, 10 * (20 + number), retraining(case))
        yield row("iterative", kept, case.score(small)), pruned
    rounds = len(fractions_kept)
    yield row("longer", 1.0), case.apply(dense, 700, retraining(case, rounds))
    if case.net.name == "lenet300":
        small = dense
        for number, kept in enumerate(fractions_kept, start=1):
            small = cut(case, dense, kept, 30 + number)
            yield row("cut", kept), small
        last = fractions_kept[-1]
        yield row("one_shot", last), case.apply(small, 400, retraining(case, rounds))
        anew = retraining(case, rounds, case.settings.learning_rate)
        yield row("reinit", last), case.apply(pruned, 500, Reinitialise(), anew)
        # One strength out of a few by hand: that with about the accuracy of L2.
        l1 = han(Budget(density=1.0), train, retraining(case), l1=2e-5)[0]
        for arm, penalised in (("l1", l1), ("l2", train)):
            whole = case.apply(case.start, 600, penalised, Save("dense"))
            small = cut(case, whole, 0.1, 62)
            again = case.apply(small, 630, retraining(case))
            yield row(arm, 0.1, case.score(small)), again


def masked(case: Case, pruned: Pruned) -> Row:
    """The fraction kept, and that of the first layer on the central 20 x 20 of 28 x 28 pixels."""
    if pruned.masks is None:
        return {"density": 1.0, "middle": None}
    mask, middle = pruned.masks["params"].get("fc1", {}).get("kernel"), None
    if case.net.name == "lenet300" and mask is not None and len(mask) == 784:
        by_pixel = np.asarray(mask).sum(axis=1).reshape(28, 28)
        middle = float(by_pixel[4:24, 4:24].sum() / by_pixel.sum())
    return {"density": fractions(case.task, pruned.masks)["density"], "middle": middle}


def plot(rows: Rows, axes: Axes) -> None:
    """Accuracy lost over the weights kept, after retraining and before it."""
    for net, arm, style in (
        ("lenet300", "iterative", Style("LeNet-300-100, rounds", "slim")),
        ("lenet5", "iterative", Style("LeNet-5, rounds", "second")),
        ("lenet300", "cut", Style("LeNet-300-100, at once, not retrained", "slim", ":")),
    ):
        percent = lambda row: 100 * row["accuracy"]
        dense = fmean(listed(rows, percent, net=net, arm="dense"))
        values = [listed(rows, percent, net=net, arm=arm, kept=kept) for kept in KEPT[net]]
        lost = [[value - dense for value in values_] for values_ in values]
        spread(axes, [100 * kept for kept in KEPT[net]], lost, style)
    level(axes, 0, colour="ink")
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks([50, 30, 18, 12, 8.3, 4], ["50", "30", "18", "12", "8.3", "4"])
    axes.xaxis.set_minor_formatter("")
    axes.set_ylim(-4, 0.5)  # what is cut and not retrained soon leaves it
    finish(axes, "weights kept, %", "test accuracy over that of the dense net, points", 9)


LAST = {"arm": "iterative", "kept": 0.04}
CLAIM = Claim(
    "e04",
    "E4: learning both weights and connections [4]",
    refs=(4,),
    settings=Settings(),
    nets=lambda settings: [Net(net, says={"net": net}) for net in KEPT],
    smoke=(Net("lenet300", says={"net": "lenet300"}),),
    arms=arms,
    measures=(masked, accuracy),
    statements=(
        *(
            at_most(
                f"{net}, 12 times fewer weights in rounds: points lost to {name}", paper,
                gap("accuracy", arm, {"arm": "iterative", "kept": 0.083}, net=net), most,
            )
            for net, paper, most in (("lenet300", "-0.05", 0.15), ("lenet5", "-0.03", 0.1))
            for arm, name in (("dense", "the dense net"), ("longer", "it, trained on for as long"))
        ),
        above("12 times at once, not retrained: points lost", "large",
              gap("accuracy", "dense", {"arm": "cut", "kept": 0.083}, net="lenet300"), 10,
              digits=1),
        at_least("25 times: rounds - one shot with as many epochs", "above 0",
                 gap("accuracy", LAST, "one_shot", net="lenet300"), 0.1),
        above("25 times: trained values - new initial values", "above 0",
              gap("accuracy", LAST, "reinit", net="lenet300"), 0),
        above("90 % pruned, before retraining: L1 - L2", "above 0", gap("before", "l1", "l2"), 0,
              digits=1),
        below("90 % pruned, after retraining: L1 - L2", "below 0", gap("accuracy", "l1", "l2"), 0),
        at_least("weights of the first layer on the central 20 x 20 pixels (51 % of all)", "most",
                 each("middle", net="lenet300", arm="iterative", kept=0.083), 0.8),
    ),
    plot=plot,
    remarks="Training is short: 2,150 steps for LeNet-300-100, 860 for LeNet-5, 1,290 and 258 "
    "after a round, all with a one-cycle schedule. The q of a layer, which the paper does not "
    "give, is that at which it keeps the paper's share of it, scaled to the budget. Tried before "
    "(seed 0, half of the retraining, 12 times fewer weights): q by one scan of single layers, "
    "multiplied by one factor from round to round, keep 3 % of LeNet-300-100's last layer where "
    "the paper keeps 26 %, and end at 96.5 %; by a scan in every round, as `han` has it now, 97.2 "
    "%; by the paper's shares, 97.5 %. L1 is 2e-5; of 5e-5, 1e-4, 2e-4 and 4e-4 (seed 0) the last "
    "does what the paper says: 87.7 % before retraining where L2 has 83.3, 97.1 after it where L2 "
    "has 97.2.",
)  # fmt: skip

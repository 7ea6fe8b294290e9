"""E4 [4]: a twelfth of the weights is enough, if what is left is trained again, in rounds.

Han, Pool, Tran, Dally, arXiv 1506.02626: LeNet-300-100 and LeNet-5 keep a twelfth of their weights
without loss (table 1); without retraining accuracy falls beyond half of them, and pruning in rounds
goes further than at once (figure 5). An L1 penalty is better before retraining, L2 after it. The
surviving weights of the first layer see the middle of the image (figure 4).

Of a row, `arm` is dense, iterative (after every round), longer (dense, trained on for as long as
all rounds), cut (at once, not trained again), one_shot (at once, then trained as long), reinit (the
last masks, new initial values), or l1 and l2 (with that penalty, pruned at once); `before` is the
accuracy before retraining, `middle` what of the first layer sees the central pixels.
"""

import dataclasses
from collections.abc import Iterator

from experiments.claims.claim import Case, Claim, Made, accuracy, named
from experiments.claims.plots import Curve, Level, Style, curves
from experiments.claims.settings import CommonSettings
from experiments.claims.statements import above, at_least, below, each, gap, percent
from experiments.claims.thresholds import cut, middle, points_lost, shorter
from jprune.base import Budget
from jprune.recipes import Save
from jprune.recipes.han import han
from jprune.stages.reinitialise import Reinitialise

KEPT = {"lenet300": (0.5, 0.3, 0.18, 0.12, 0.083, 0.04), "lenet5": (0.5, 0.3, 0.18, 0.12, 0.083)}
TWELFTH, AT_ONCE = {"arm": "iterative", "kept": 0.083}, {"arm": "cut", "kept": 0.083}
LAST, PERCENT = {"arm": "iterative", "kept": 0.04}, [100 * kept for kept in KEPT["lenet300"]]
L1 = 2e-5  # one strength out of a few by hand: that with about the accuracy of L2


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    epochs: float = 5.0
    again: float = 3.0
    learning_rate: float = 0.05
    retraining_rate: float = 0.02


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, rounds, and the dense net trained on; of LeNet-300-100 the other arms."""
    used, levels = case.settings, case.first(KEPT[case.net.name])
    row = lambda arm, kept, before=None: {"arm": arm, "kept": kept, "before": before}
    train = shorter(case, used.epochs, used.learning_rate, 64, 0.2)
    anew = shorter(case, len(levels) * used.again, used.learning_rate, 64, 0.1)
    again = lambda rounds=1: shorter(case, rounds * used.again, used.retraining_rate, 64, 0.1)
    dense = pruned = small = case.apply(case.start, 10, train, Save("dense"))
    yield row("dense", 1.0), dense
    for number, kept in enumerate(levels, start=1):
        small = cut(case, pruned, kept, 10 + number)
        pruned = case.apply(small, 10 * (20 + number), again())
        yield row("iterative", kept, case.score(small)), pruned
    yield row("longer", 1.0), case.apply(dense, 700, again(len(levels)))
    if case.net.name == "lenet5":
        return
    for number, kept in enumerate(levels, start=1):
        small = cut(case, dense, kept, 30 + number)
        yield row("cut", kept), small
    yield row("one_shot", levels[-1]), case.apply(small, 400, again(len(levels)))
    yield row("reinit", levels[-1]), case.apply(pruned, 500, Reinitialise(), anew)
    l1 = han(Budget(density=1.0), train, again(), l1=L1)[0]
    for arm, penalised in (("l1", l1), ("l2", train)):
        whole = case.apply(case.start, 600, penalised, Save("dense"))
        small = cut(case, whole, 0.1, 62)
        yield row(arm, 0.1, case.score(small)), case.apply(small, 630, again())


CLAIM = Claim(
    "e04", "E4: learning both weights and connections [4]", refs=(4,), settings=Settings(),
    nets=lambda settings: [*map(named, KEPT)], arms=arms, measures=(middle, accuracy),
    smoke=(named("lenet300"),),
    statements=(
        *(s for net, paper, most in (("lenet300", "-0.05", 0.15), ("lenet5", "-0.03", 0.1))
          for s in points_lost(f"{net}, 12 times fewer weights in rounds", TWELFTH, paper, most,
                               net)),
        above("12 times at once, not retrained: points lost", "large",
              gap("accuracy", "dense", AT_ONCE, net="lenet300"), 10, digits=1),
        at_least("25 times: rounds - one shot with as many epochs", "above 0",
                 gap("accuracy", LAST, "one_shot", net="lenet300"), 0.1),
        above("25 times: trained values - new initial values", "above 0",
              gap("accuracy", LAST, "reinit", net="lenet300"), 0),
        above("90 % pruned, before retraining: L1 - L2", "above 0",
              gap("before", "l1", "l2"), 0, digits=1),
        below("90 % pruned, after retraining: L1 - L2", "below 0", gap("accuracy", "l1", "l2"), 0),
        at_least("weights of the first layer on the central 20 x 20 pixels (51 % of all)", "most",
                 each("middle", net="lenet300", arm="iterative", kept=0.083), 0.8),
    ),
    plot=curves(
        [Curve(Style(name, colour, mark), PERCENT,
               [percent("accuracy", net=net, arm=arm, kept=kept).over(
                   percent("accuracy", net=net, arm="dense")) for kept in KEPT[net]])
         for net, arm, name, colour, mark in (
             ("lenet300", "iterative", "LeNet-300-100, rounds", "slim", "-"),
             ("lenet5", "iterative", "LeNet-5, rounds", "second", "-"),
             ("lenet300", "cut", "LeNet-300-100, at once, not retrained", "slim", ":"))],
        "weights kept, %", "test accuracy over that of the dense net, points",
        across=[Level(0, colour="ink")], log="x", falls=True, limits=(-4, 0.5), size=9,
        ticks={place: f"{place:g}" for place in PERCENT},
    ),
    remarks="Training is short: {epochs:g} epochs and {again:g} after a round, of LeNet-5 a fifth "
    "and a tenth of that, all with a one-cycle schedule. The q of a layer, which the paper does "
    "not give, is that at which it keeps the paper's share of it, scaled to the budget. L1 is "
    "{l1:g}.", figures={"l1": L1},
    tried="Tried before (seed 0, half of the retraining, 12 times fewer weights): q by one scan of "
    "single layers, multiplied by one factor from round to round, keep 3 % of LeNet-300-100's last "
    "layer where the paper keeps 26 %, and end at 96.5 %; by a scan in every round, as `han` has "
    "it now, 97.2 %; by the paper's shares, 97.5 %. Of L1 up to 4e-4 (seed 0) the largest does "
    "what the paper says: 87.7 % before retraining, L2 83.3; 97.1 after it, L2 97.2.",
)  # fmt: skip

"""E5 [5]: neurons merged by their weights alone, against neurons deleted.

Srinivas, Babu (arXiv 1507.06149): of an MNIST net up to 85 % of the parameters can go without data
or training, of AlexNet 35 %; merging is better than deletion. Here LeNet-5 on MNIST, whose fc1 (500
neurons) has 93 % of the parameters, and LeNet-300-100, whose fc1 has 88 %, trained longer and with
ten times the weight decay; nothing is trained after pruning.

Of a row, `arm` is dense, merge, delete (the same neurons, without adding their outgoing weights),
random, cutoff (merged to the paper's rule) or twins (half of fc1 made copies of the other half,
then merged); `kept` is the fraction of neurons, `params` that of all parameters, `drift` the
largest change of a logit over the largest logit.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from experiments.claims.claim import Case, Claim, Made, Net
from experiments.claims.merging import Layer, measured, removable
from experiments.claims.plots import Curve, Style, curves
from experiments.claims.settings import CommonSettings
from experiments.claims.statements import Statement, at_least, at_most, each, gap, percent, several
from jprune.base import Pruned, Variables

KEPT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
NETS = {
    "lenet5": {"epochs": 4.0, "weight_decay": 5e-4, "neurons": 500},  # in fc1
    "lenet300": {"epochs": 10.0, "weight_decay": 5e-3, "neurons": 300},
}
ROWS = {"lenet5": ("lenet5", None), "lenet300": "lenet300"}
"""What rows say of a net; the first ones were all of LeNet-5 and do not say so."""


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    learning_rate: float = 0.02


def arms(case: Case[Settings]) -> Iterator[Made]:
    """Neurons merged, deleted in the same order, and deleted at random."""
    how, rate = NETS[case.net.name], case.settings.learning_rate
    training = case.train(how["epochs"], rate, weight_decay=how["weight_decay"])
    layer = Layer.of(case, case.dense(training).variables)

    def row(arm: str, pruned: Pruned, before: Variables = layer.dense, **more: Any) -> Made:
        return {"arm": arm, **measured(case, pruned, before, layer.name), **more}, None

    yield row("dense", Pruned(layer.dense, None))
    steps, drawn = layer.steps(layer.dense), layer.drawn(case.fold(2))
    for kept in KEPT[4:5] if case.smoke else KEPT:
        count = round((1 - kept) * layer.size)
        yield row("merge", layer.merged(layer.dense, steps[:count]))
        yield row("delete", layer.without(layer.dense, [step.gone for step in steps[:count]]))
        yield row("random", layer.without(layer.dense, drawn[:count]))
    yield row("cutoff", layer.by_the_rule(case))
    twins, merged, right = layer.twins_merged()
    yield row("twins", merged, twins, found=right)


def of_net(net: str) -> Iterator[Statement]:
    """Merging, deletion and chance at three levels; what merging can remove, and copies."""
    where, copies = {"net": ROWS[net]}, NETS[net]["neurons"] // 2
    pairs = (("merge", "delete"), ("delete", "random"), ("merge", "random"))
    for kept, (better, worse) in itertools.product((0.5, 0.3, 0.1), pairs):
        text = f"{net}, {100 * (1 - kept):.0f} % of fc1 removed: {better} - {worse}, points"
        yield at_least(text, "above 0", gap("accuracy", better, worse, kept=kept, **where), -0.02)
    early = gap("accuracy", "dense", {"arm": "merge", "kept": 0.7}, **where)
    yield at_most(f"{net}, 30 % of fc1 merged: points lost", "at most 1", early, 1)
    yield at_least(f"{net}, parameters removed for at most 2 points", "about 85 %",
                   removable(2, **where), 60, digits=1, unit=" %")  # fmt: skip
    gone = each(lambda row: 100 * (1 - row["params"]), arm="cutoff", **where).to(1, " %")
    lost = gap("accuracy", "dense", "cutoff", **where)
    yield several(f"{net}, the cut-off rule: parameters removed; points lost",
                  "about 84 %; below 1", lambda _, lost: fmean(lost) <= 1, gone, lost)  # fmt: skip
    right = each(lambda row: 100 * row["found"] / copies, arm="twins", **where).to(0, " %")
    text = f"{net}, {copies} copies in fc1: merged first; largest relative change of a logit"
    yield several(text, "all; 0", lambda right, drift: min(right) == 100 and max(drift) < 1e-5,
                  right, each("drift", arm="twins", **where).worst)  # fmt: skip


LINES = (("merge", "merged", "slim"), ("delete", "deleted, same order", "second"),
         ("random", "deleted, random", "muted"))  # fmt: skip
TITLES = (("lenet5", "LeNet-5", "-"), ("lenet300", "LeNet-300-100, much decay", "--"))
MADE = [Net(name, says={"net": name, **how}) for name, how in NETS.items()]
CLAIM = Claim(
    "e05", "E5: data-free merging [5]", refs=(5,), settings=Settings(),
    nets=lambda settings: MADE, arms=arms, smoke=MADE[1:],
    statements=[*of_net("lenet5"), *of_net("lenet300")],
    plot=curves(
        [Curve(Style(f"{title}: {name}", colour, mark), [100 * (1 - kept) for kept in KEPT],
               [percent("accuracy", net=ROWS[net], arm=arm, kept=kept) for kept in KEPT])
         for net, title, mark in TITLES for arm, name, colour in LINES],
        "neurons of fc1 removed, %, without data or training", "test accuracy, %",
    ),
    remarks="Only fc1 is pruned, as the paper prunes dense layers. Merging assumes neurons that "
    "are nearly alike. With a weight decay of {low:g} there are none: weights of pixels that are "
    "always dark stay as drawn, and a neuron is merged into one that has little to do with it; "
    "with {high:g} merging does what the paper says.",
    figures={"low": NETS["lenet5"]["weight_decay"], "high": NETS["lenet300"]["weight_decay"]},
    tried="In LeNet-300-100 (seed 0) the nearest neighbour of a neuron is at a cosine of 0.11 "
    "(median) with the former (4 epochs), at 0.85 with the latter (10). `normalize=true` changes "
    "little: half of the neurons merged, deleted 89.9, 91.1 % and 96.8, 95.3 % (without: 91.2, "
    "93.2 % and 96.9, 94.7 %).",
)  # fmt: skip

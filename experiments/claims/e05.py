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
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes

from experiments.claims.claim import Case, Claim, Made, Net
from experiments.claims.merging import Layer, measured
from experiments.claims.plots import Style, finish, spread
from experiments.claims.statements import (
    Finding,
    Rows,
    Statement,
    at_least,
    at_most,
    gap,
    listed,
    select,
    shown,
)
from jprune.base import Budget, Pruned, Variables
from jprune.stages.merge import MergeUnits
from jprune.train.net import Net as TaskNet

KEPT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)


class Trained(NamedTuple):
    """How a net is trained."""

    epochs: float
    weight_decay: float
    neurons: int
    """In fc1."""


NETS = {"lenet5": Trained(4.0, 5e-4, 500), "lenet300": Trained(10.0, 5e-3, 300)}
ROWS = {"lenet5": ("lenet5", None), "lenet300": "lenet300"}
"""What rows say of a net; the first ones were all of LeNet-5 and do not say so."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        learning_rate: the largest one.
    """

    learning_rate: float = 0.02


def net(name: str) -> Net:
    """A net, whose rows say how it is trained."""
    return Net(name, says={"net": name, **NETS[name]._asdict()})


def arms(case: Case[Settings]) -> Iterator[Made]:
    """Neurons merged, deleted in the same order, and deleted at random."""
    how, groups = NETS[case.net.name], TaskNet(case.task).groups
    training = case.train(how.epochs, case.settings.learning_rate, weight_decay=how.weight_decay)
    dense = case.dense(training).variables
    layer = Layer(groups, groups.names[-1] if case.smoke else "params/fc1/kernel", dense)

    def row(arm: str, pruned: Pruned, before: Variables = dense, **more: Any) -> Made:
        return {"arm": arm, **measured(case, pruned, before, layer.name), **more}, None

    yield row("dense", Pruned(dense, None))
    steps = layer.steps(case.task, dense)
    order = [step.gone for step in steps]
    drawn = np.asarray(jax.random.permutation(case.fold(2), layer.size))
    for kept in KEPT[4:5] if case.smoke else KEPT:
        count = round((1 - kept) * layer.size)
        yield row("merge", layer.merged(dense, steps[:count]))
        yield row("delete", layer.without(dense, order[:count]))
        yield row("random", layer.without(dense, drawn[:count]))
    whole = {name: size for name, size in groups.sizes.items() if name != layer.name}
    rule = MergeUnits(Budget(density=0.01, floors=whole), stop="cutoff")
    cut, _ = rule(Pruned(dense, None), case.task, case.key)
    yield row("cutoff", cut)
    variables, copies = layer.twins()
    first = layer.steps(case.task, variables)[: len(copies)]
    pairs = {frozenset((step.into, step.gone)) for step in first}
    right = {frozenset((copy, copy - layer.size // 2)) for copy in copies}
    yield row("twins", layer.merged(variables, first), variables, found=len(pairs & right))


def compared(net: str) -> Iterator[Statement]:
    """Merging, deletion and chance at three levels."""
    pairs = (("merge", "delete"), ("delete", "random"), ("merge", "random"))
    for kept, (better, worse) in itertools.product((0.5, 0.3, 0.1), pairs):
        text = f"{net}, {100 * (1 - kept):.0f} % of fc1 removed: {better} - {worse}, points"
        ahead = gap("accuracy", better, worse, net=ROWS[net], kept=kept)
        yield at_least(text, "above 0", ahead, -0.02)
    early = gap("accuracy", "dense", {"arm": "merge", "kept": 0.7}, net=ROWS[net])
    yield at_most(f"{net}, 30 % of fc1 merged: points lost", "at most 1", early, 1)


def limits(net: str) -> Statement:
    """What merging can remove, where the paper's rule stops, and whether it finds copies."""

    def findings(rows: Rows) -> Iterator[Finding]:
        dense = select(rows, net=ROWS[net], arm="dense")
        merged = select(rows, net=ROWS[net], arm="merge")
        good = [
            [row for row in merged if row["seed"] == whole["seed"]
             and row["accuracy"] >= whole["accuracy"] - 0.02]
            for whole in dense
        ]  # fmt: skip
        most = [max((100 * (1 - row["params"]) for row in of), default=0.0) for of in good]
        text = f"{net}, parameters removed for at most 2 points"
        yield Finding(text, "about 85 %", shown(most, 1, " %"), fmean(most) >= 60)
        gone = listed(rows, lambda row: 100 * (1 - row["params"]), net=ROWS[net], arm="cutoff")
        lost = gap("accuracy", "dense", "cutoff", net=ROWS[net])
        text = f"{net}, the cut-off rule: parameters removed; points lost"
        ours = f"{shown(gone, 1, ' %')}; {lost.shown(rows)}"
        yield Finding(text, "about 84 %; below 1", ours, lost.mean(rows) <= 1)
        copies = NETS[net].neurons // 2
        right = [100 * row["found"] / copies for row in select(rows, net=ROWS[net], arm="twins")]
        drift = max(listed(rows, "drift", net=ROWS[net], arm="twins"))
        text = f"{net}, {copies} copies in fc1: merged first; largest relative change of a logit"
        ours = f"{shown(right, 0, ' %')}; {drift:.0e}"
        yield Finding(text, "all; 0", ours, min(right) == 100 and drift < 1e-5)

    return findings


def plot(rows: Rows, axes: Axes) -> None:
    """Accuracy over the neurons removed, an arm a colour, a net a style."""
    lines = (("merge", "merged", "slim"), ("delete", "deleted, same order", "second"),
             ("random", "deleted, random", "muted"))  # fmt: skip
    nets = (("lenet5", "LeNet-5", "-"), ("lenet300", "LeNet-300-100, much decay", "--"))
    for (net, title, mark), (arm, name, colour) in itertools.product(nets, lines):
        percent = lambda row: 100 * row["accuracy"]
        values = [listed(rows, percent, net=ROWS[net], arm=arm, kept=kept) for kept in KEPT]
        if values[0]:
            style = Style(f"{title}: {name}", colour, mark)
            spread(axes, [100 * (1 - kept) for kept in KEPT], values, style)
    finish(axes, "neurons of fc1 removed, %, without data or training", "test accuracy, %")


CLAIM = Claim(
    "e05",
    "E5: data-free merging [5]",
    refs=(5,),
    settings=Settings(),
    nets=lambda settings: [net(name) for name in NETS],
    smoke=(net("lenet300"),),
    arms=arms,
    statements=[*(s for name in NETS for s in (*compared(name), limits(name)))],
    plot=plot,
    remarks="Only fc1 is pruned, as the paper prunes dense layers. Merging assumes neurons that "
    "are nearly alike. With a weight decay of 5e-4 there are none: in LeNet-300-100 (4 epochs, "
    "seed 0) the nearest neighbour of a neuron is at a cosine of 0.11 (median), since weights of "
    "pixels that are always dark stay as drawn, and a neuron is merged into one that has little to "
    "do with it; with 5e-3 (10 epochs) it is at 0.85, and merging does what the paper says. "
    "`normalize=true` changes little: half of the neurons merged, deleted 89.9, 91.1 % and 96.8, "
    "95.3 % (without: 91.2, 93.2 % and 96.9, 94.7 %).",
)

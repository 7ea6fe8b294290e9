"""E28 [28]: in the Kronecker-factored eigenbasis, pruning costs less than among filters.

Wang, Grosse, Fidler, Zhang, arXiv 1905.05934: before fine-tuning EigenDamage raises the loss far
less than C-OBD, C-OBS, Kron-OBD and Kron-OBS at the same size. Here LeNet-5 on MNIST and ResNet-8
on CIFAR-10, with all filter criteria of the library beside them; curvature from 2,000 training
images with drawn labels.

Of `part` "size", every arm has as many parameters as C-OBD keeps at a density of 0.7, 0.5, 0.3, 0.1
of all filters (`density`); of "macs", half of the MACs, the filters under both allocators; of
"layer", one layer alone is pruned by EigenDamage, and `predicted` is the sum of Theta of what went.
`loss` is that of 2,000 training images, `accuracy` that of 2,000 test images, `finetuned` (LeNet-5
at half of the MACs) after 150 steps of training. A size that no rows and columns of EigenDamage
meet has no row of it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from experiments.claims.claim import Case, Claim, Made, Net
from experiments.claims.curved import BATCH, DENSITIES, ROTATED, Curved, row
from experiments.claims.plots import Style, finish, spread
from experiments.claims.statements import (
    Finding,
    Rows,
    Statement,
    Value,
    at_least,
    at_most,
    each,
    gap,
    listed,
    says,
    select,
)
from experiments.rows import Row
from jprune.base import Batch, Pruned
from jprune.forms.opened import dense_of
from jprune.recipes.kronecker import METHODS

TRAINING = {"lenet300": (600, 0.05), "lenet5": (600, 0.02), "resnet8": (400, 0.1)}
"""{net: (steps of training, largest learning rate)}; the first is only tried out."""
TUNED = (*ROTATED, *(f"{form}, global" for form in METHODS))
"""Arms of the budget in MACs that are trained again."""
TUNING = 150
"""Steps of it."""
STYLES = {
    "eigendamage": Style("EigenDamage", "slim"),
    "kron_obs": Style("Kron-OBS", "second"),
    "kron_obd": Style("Kron-OBD", "second", "--"),
    "c_obs": Style("C-OBS", "muted"),
    "c_obd": Style("C-OBD", "muted", "--"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        images: that curvature and losses are measured on.
    """

    images: int = 2000


def first(case: Case[Settings], split: str, seed: int | None = None) -> list[Batch]:
    """So many batches of a split."""
    count = 1 if case.smoke else case.settings.images // BATCH
    return list(itertools.islice(case.task.data.batches(split, BATCH, seed=seed), count))


def arms(case: Case[Settings]) -> Iterator[Made]:
    """All nets of a seed."""
    steps, rate = TRAINING[case.net.name]
    dense = case.dense(case.train(1000.0, rate, max_steps=steps))
    curved = Curved(case, dense, first(case, "train", case.seed))
    made = itertools.chain(
        [(row("dense", "dense", None, {"params": 1.0, "macs": 1.0}), dense)],
        curved.of_half_the_macs(),
        curved.of_equal_size(),
        curved.of_single_layers(),
    )
    for said, pruned in made:
        of_macs = said["part"] == "macs" and said["arm"] in TUNED
        finetuned = None
        if case.net.name == "lenet5" and (said["part"] == "dense" or of_macs):
            stage = case.train(1.0, rate / 2, max_steps=TUNING)
            finetuned = measured(case, case.apply(pruned, 3, stage))["accuracy"]
        yield {**said, "finetuned": finetuned}, pruned


@functools.cache
def looking(fn: Callable[..., Any], metrics: Callable[..., Any]) -> Callable[..., Any]:
    """The metrics of a net on a batch, compiled once."""
    return jax.jit(lambda variables, batch: metrics(fn(variables, batch["image"]), batch))


def measured(case: Case[Settings], pruned: Pruned) -> Row:
    """Training loss and test accuracy, factored kernels multiplied out: the same function."""
    variables = dense_of(pruned.variables)
    metrics = looking(case.task.fn, case.task.metrics)
    losses = [metrics(variables, batch)["loss"] for batch in first(case, "train", case.seed)]
    test = first(case, "test")
    right = sum(float(b["weight"] @ metrics(variables, b)["accuracy"]) for b in test)
    accuracy = right / sum(float(batch["weight"].sum()) for batch in test)
    return {"loss": float(np.mean(losses)), "accuracy": accuracy}


def increase(net: str, part: str, arm: str, density: float | None = None) -> Value:
    """The loss over that of the dense net."""
    at = each("loss", net=net, part=part, arm=arm, density=density)
    return at - each("loss", net=net, part="dense")


def against_the_best(net: str) -> Statement:
    """EigenDamage at half of the MACs against the best other criterion."""

    def findings(rows: Rows) -> Iterator[Finding]:
        others = sorted({row["arm"] for row in select(rows, part="macs")} - {*ROTATED})
        best = min(others, key=lambda arm: increase(net, "macs", arm).mean(rows))
        for arm in ROTATED:
            text = (
                f"{net}, half of the MACs, {arm}: increase of the loss over that of the best of "
                f"{len(others)}, {best}"
            )
            ratio = increase(net, "macs", arm) / increase(net, "macs", best)
            yield Finding(text, "below 1", ratio.shown(rows), ratio.mean(rows) < 1)

    return lambda rows: findings(rows) if select(rows, net=net) else ()


def fidelity(net: str) -> Value:
    """Rank correlation of predicted and measured damage over layers and densities."""

    def of(rows: Rows) -> dict[int, float]:
        values = {}
        for seed, dense in each("loss", net=net, part="dense").of(rows).items():
            layers = select(rows, net=net, part="layer", seed=seed)
            increases = [row["loss"] - dense for row in layers]
            result = stats.spearmanr([row["predicted"] for row in layers], increases)
            values[seed] = float(np.asarray(result)[0])
        return values

    return Value(of)


def of_net(net: str) -> list[Statement]:
    """What is said of both nets."""
    at = lambda arm: increase(net, "size", arm, 0.5)
    return [
        against_the_best(net),
        at_most(f"{net}, size of C-OBD at 0.5: increase over that of C-OBD", "at most 0.7",
                at("eigendamage") / at("c_obd"), 0.7),
        says(f"{net}, there: accuracy above that of C-OBD, points", "above 0 in 2 of 3",
             gap("accuracy", "eigendamage", "c_obd", net=net, part="size", density=0.5),
             lambda points: sum(each > 0 for each in points) >= len(points) - 1, digits=1),
        at_most(f"{net}, there: increase of Kron-OBS over that of Kron-OBD", "at most 1",
                at("kron_obs") / at("kron_obd"), 1),
        at_least(f"{net}: rank correlation of predicted and measured damage, layers and densities",
                 "at least 0.8", fidelity(net), 0.8),
    ]  # fmt: skip


def tuned(rows: Rows) -> Iterator[Finding]:
    """How far apart all are after some training."""
    of = {arm: each("finetuned", net="lenet5", part="macs", arm=arm) for arm in TUNED}
    means = [value.mean(rows) for value in of.values() if value.list(rows)]
    if means:
        spread = 100 * (max(means) - min(means))
        text = "lenet5, half of the MACs, 150 steps later: accuracies of all six apart, points"
        yield Finding(text, "at most 1.5", f"{spread:.2f}", spread <= 1.5)


def plot(rows: Rows, axes: Axes) -> None:
    """Increase of the training loss over the size, of the last net that was run."""
    net = [name for name in TRAINING if select(rows, net=name)][-1]
    for arm, style in STYLES.items():
        where = {"net": net, "part": "size", "arm": arm}
        at = [density for density in DENSITIES if select(rows, density=density, **where)]
        size = [100 * fmean(listed(rows, "params", density=d, **where)) for d in at]
        spread(axes, size, [increase(net, "size", arm, d).list(rows) for d in at], style)
    axes.set_yscale("log")
    x = f"parameters kept, % ({net}, no fine-tuning)"
    finish(axes, x, "increase of the training loss, nats")


CLAIM = Claim(
    "e28",
    "E28: EigenDamage and its baselines [28]",
    refs=(28,),
    settings=Settings(),
    nets=lambda settings: [
        Net("lenet5", says={"net": "lenet5"}),
        Net("resnet8", "cifar10", says={"net": "resnet8"}),
    ],
    smoke=(Net("lenet300", says={"net": "lenet300"}),),
    arms=arms,
    measures=(measured,),
    statements=(*of_net("lenet5"), *of_net("resnet8"), tuned),
    plot=plot,
    remarks="Half of the MACs is a budget of ours; the paper's is of rows and columns, and at an "
    "equal number of parameters EigenDamage is ahead. Why it is not at half of the MACs: its "
    "scores are damages, not damages a MAC, and under one threshold they empty LeNet-5's fc1, with "
    "93 % of the parameters and 17 % of the MACs. Divided by what a row or column costs "
    "(`per_cost`, ours) they are first on ResNet-8 with every seed and on LeNet-5 with two of "
    "three. What is left there (seed 1): conv1 has one input, cannot be rotated for less and stays "
    "whole where filters are halved, and the rotations of conv2 and fc1 take 31 % of the MACs that "
    "are kept; with 0.6 of the MACs the loss is 0.090, where the best filters at half of them have "
    "0.113.",
)

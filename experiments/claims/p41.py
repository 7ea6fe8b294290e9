"""P41 [41]: filters that grow equal are merged without loss.

Ding, Ding, Guo, Han (arXiv 1904.03837): merging changes nothing; ResNet-56 keeps its accuracy at
5/8 of its width; C-SGD beats the narrow net trained from scratch. Here LeNet-5 on 10,000
images of MNIST with half of its filters, and ResNet-8 on 5,000 of CIFAR-10 with 5/8 of all its
channels, residual streams included.

Of a row, `arm` is dense (trained on for as long as C-SGD), csgd, l1 (smallest filters pruned, then
trained for as long) or scratch (the narrow net, trained for as long as both trainings of the
others); `strength` is C-SGD's; `deviation` the sum of the squared differences of parameters from
the means of their clusters, `drift` the largest change of an output by merging over the largest
output, `same` the fraction of test images whose class merging keeps, `before` the accuracy before
merging.
"""

import dataclasses
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes

from experiments.claims.claim import Case, Claim, Made, Net, accuracy, sizes
from experiments.claims.plots import Style, finish, level
from experiments.claims.statements import (
    Finding,
    Rows,
    at_least,
    each,
    gap,
    largest,
    listed,
    says,
    shown,
)
from jprune import allocate
from jprune.base import Budget, Pruned, Task, Variables
from jprune.recipes import Prune
from jprune.recipes.three_step import l1_of
from jprune.report.figures import PRINT
from jprune.stages.centripetal import Cluster, MergeClusters, Pull
from jprune.stages.reinitialise import BeginAnew

LENET, RESNET = "lenet5", "resnet8"
BUDGETS = {LENET: Budget(density=0.5, floors={"params/fc1/kernel": 500})}
EIGHTHS = Budget(density=5 / 8)
"""Of the other nets."""
STRENGTHS = (0.01, 1.0)
"""Of ResNet-8, whose parameters have 470 steps to meet: too weak, and enough."""
PULL = 1.0
"""Of LeNet-5, with 1,250 steps."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        lenet_epochs: of the dense LeNet-5, and of its C-SGD.
        epochs: of the dense ResNet-8, and of its C-SGD.
        learning_rate: the largest one of all trainings of ResNet-8; of LeNet-5 it is a fifth.
        lenet_images: of MNIST.
        train_images: of CIFAR-10.
        batch_size: of all trainings.
    """

    lenet_epochs: float = 8.0
    epochs: float = 6.0
    learning_rate: float = 0.1
    lenet_images: int = 10_000
    train_images: int = 5_000
    batch_size: int = 64


def nets(settings: Settings) -> list[Net]:
    """Two nets, as their rows name them."""
    return [
        Net(LENET, images=settings.lenet_images, says={"model": LENET}),
        Net(RESNET, "cifar10", settings.train_images, says={"model": RESNET}),
    ]


def merged(case: Case, dense: Pruned, budget: Budget, pull: Pull) -> tuple[Pruned, dict[str, Any]]:
    """The net of C-SGD, and what merging did."""
    task, key = case.task, case.fold(2)
    net, _ = Cluster(budget)(dense, task, key)
    net, _ = pull(net, task, key)
    done, (record,) = MergeClusters()(net, task, key)
    before, after = (classes(task, variables) for variables in (net.variables, done.variables))
    row = {name: record["metrics"][name] for name in ("deviation", "drift")}
    return done, {**row, "same": float(np.mean(before == after)), "before": case.score(net)}


def classes(task: Task, variables: Variables) -> np.ndarray:
    """The class of every test image."""
    fn = jax.jit(task.fn)
    of_batches = [
        np.asarray(fn(variables, batch["image"]).argmax(axis=-1))[batch["weight"] > 0]
        for batch in task.data.batches("test", 500)
    ]
    return np.concatenate(of_batches)


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, trained on, C-SGD, smallest filters pruned, and the narrow net."""
    settings, small = case.settings, case.net.name == LENET
    budget = BUDGETS.get(case.net.name, EIGHTHS)
    epochs = settings.lenet_epochs if small else settings.epochs
    rate = settings.learning_rate / (5 if small else 1)
    of = lambda times=1.0: case.train(times * epochs, rate, settings.batch_size)
    dense = case.dense(of())
    yield {"arm": "dense", "strength": None}, case.apply(dense, 3, of())
    for strength in (PULL,) if small else STRENGTHS[-1 if case.smoke else 0 :]:
        net, row = merged(case, dense, budget, Pull(of(), strength))
        yield {"arm": "csgd", "strength": strength, **row}, net
    cut, _ = Prune(l1_of, allocate.uniform, budget)(dense, case.task, case.key)
    yield {"arm": "l1", "strength": None}, case.apply(cut, 3, of())
    yield {"arm": "scratch", "strength": None}, case.apply(cut, 4, BeginAnew(), of(2.0))


def pulls(rows: Rows) -> Iterator[Finding]:
    """What merging does to ResNet-8 where the pull is too weak, and where it is enough."""
    for strength, paper in zip(STRENGTHS, ("a gap", "100; 0")):
        where = {"model": RESNET, "arm": "csgd", "strength": strength}
        drift = max(listed(rows, "drift", **where))
        same = listed(rows, lambda row: 100 * row["same"], **where)
        text = f"ResNet-8 at 5/8, strength {strength}: classes kept, %; largest drift"
        holds = drift > 0.01 if strength == STRENGTHS[0] else min(same) == 100
        yield Finding(text, paper, f"{shown(same)}; {drift:.0e}", holds)


def plot(rows: Rows, axes: Axes) -> None:
    """Accuracy over the strength, before and after merging."""
    for what, name, colour in (
        ("before", "C-SGD, not merged", "second"), ("accuracy", "C-SGD, merged", "slim")
    ):  # fmt: skip
        at = [each(what, model=RESNET, arm="csgd", strength=strength) for strength in STRENGTHS]
        values = [100 * value.mean(rows) for value in at]
        shade = getattr(PRINT, colour)
        axes.semilogx(STRENGTHS, values, color=shade, marker="o", markersize=4, label=name)
    for style in (
        Style("dense", "ink"),
        Style("l1", "muted", "--"),
        Style("scratch", "muted", ":"),
    ):
        height = 100 * fmean(listed(rows, "accuracy", model=RESNET, arm=style.label))
        level(axes, height, style.label, style.colour, linestyle=style.line, linewidth=0.9)
    finish(axes, "strength of the pull, ResNet-8 at 5/8 of its width", "test accuracy, %")


STRONG = {"arm": "csgd", "strength": STRENGTHS[1]}
LAW = (5 / 8) ** 2
CLAIM = Claim(
    "p41",
    "P41: centripetal SGD [41]",
    refs=(41,),
    settings=Settings(),
    nets=nets,
    smoke=(Net("lenet300", "cifar10", says={"model": "lenet300"}),),
    arms=arms,
    measures=(accuracy, sizes),
    statements=(
        largest("LeNet-5, half of the filters: squared deviation", "0",
                each("deviation", model=LENET, arm="csgd"), 1e-8),
        says("LeNet-5: classes that merging keeps, %", "100",
             each(lambda row: 100 * row["same"], model=LENET, arm="csgd"),
             lambda same: min(same) == 100),
        at_least("LeNet-5: merged - dense, points", "about 0",
                 gap("accuracy", "csgd", "dense", model=LENET), -0.3),
        pulls,
        *(
            at_least(f"ResNet-8, strength {STRENGTHS[1]}: merged - {other} >= {least}, points",
                     "about 0 or above", gap("accuracy", STRONG, other, model=RESNET), least)
            for other, least in (("scratch", -0.5), ("dense", -2.5), ("l1", 0.0))
        ),
        says("MACs over (5/8)^2", "1", each(lambda row: row["macs"] / LAW, model=RESNET, **STRONG),
             lambda ratios: abs(fmean(ratios) - 1) < 0.1),
    ),
    plot=plot,
    remarks="ResNet-8 on 5,000 images of CIFAR-10 for 6 + 6 epochs, where the paper has ResNet-56 "
    "for 600 + 600 a round. Differences shrink by exp(-sum of rates * strength / (1 - momentum)), "
    "with a tenth of the strength for scales and biases, so strengths are larger here.",
)  # fmt: skip

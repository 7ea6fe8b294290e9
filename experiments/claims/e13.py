"""E13 [13]: group lasso takes whole filters, columns, inputs and branches out of nets.

Wen, Wu, Wang, Chen, Li, arXiv 1608.03665: LeNet keeps 5-19 of 20-50 filters (3-12 for 0.1 points),
or 7-14 of 25-500 columns; an MLP loses inputs on the border of the image and neurons; ResNet-20
loses layers. Here LeNet-5 and LeNet-300-100 on 10,000 images of MNIST and, for branches, ResNet-8
on 5,000 of CIFAR-10.

Of a row, `families` and `strength` are those of the penalty, `arm` is dense (trained as long as the
others), prox, subgradient (with the authors' threshold) or subgradient_alone (without), `zeros` the
fraction of groups that are exactly 0, `kept` the groups that are left by block, `before` the
accuracy under the penalty, `accuracy` that after fine-tuning, and `validation` that on the split
that chooses a strength.
"""

import dataclasses
import math
from collections.abc import Iterator
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes

from experiments.claims.claim import Case, Claim, Made, Net, accuracy
from experiments.claims.plots import Style, finish, level, line
from experiments.claims.statements import (
    Finding,
    Rows,
    Statement,
    above,
    each,
    gap,
    listed,
    says,
    select,
    shown,
)
from experiments.rows import Row
from jprune.base import Budget, Pruned, Task
from jprune.stages.group_lasso import Penalty, ReadOff, Shrink, norms_of

WHOLE = Budget(macs=1.0)
RUNS: dict[str, dict[str, tuple[float, ...]]] = {
    "lenet5": {"filter+channel": (0.01, 0.02), "shape": (0.01, 0.02)},
    "lenet300": {"filter+shape": (0.002, 0.003)},
    "resnet8": {"depth": (0.05, 0.1)},
}
"""{net: {families: strengths}}."""
ON = {"lenet5": ("params/conv1/kernel", "params/conv2/kernel")}
"""{net: what is penalised}, where it is not everything: units of convolutions, as in the paper's
tables; the channels of conv2's units are inputs of fc1."""
COMPARED = ("lenet5", "filter+channel", 0.02)
"""Where the proximal step is compared with the subgradient."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        epochs: of the nets that the penalty begins with.
        shrink: epochs under the penalty.
        finetune: epochs under the masks.
        learning_rate: the largest one of LeNets; ResNet-8 has five times as much.
        lenet_images: of MNIST.
        train_images: of CIFAR-10.
    """

    epochs: float = 4.0
    shrink: float = 6.0
    finetune: float = 2.0
    learning_rate: float = 0.02
    lenet_images: int = 10_000
    train_images: int = 5_000


def nets(settings: Settings) -> list[Net]:
    """Those of `RUNS`."""
    lenets = [Net(n, images=settings.lenet_images, says={"net": n}) for n in ("lenet5", "lenet300")]
    return [*lenets, Net("resnet8", "cifar10", settings.train_images, {"net": "resnet8"})]


def penalties(case: Case[Settings]) -> Iterator[tuple[str, float, Penalty]]:
    """(arm, strength, penalty) of a net."""
    name = case.net.name
    for families, strengths in RUNS[name].items():
        kinds = tuple(families.split("+"))
        for strength in case.first(strengths):
            yield "prox", strength, Penalty(kinds, strength, ON.get(name))
            if (name, families, strength) == COMPARED:
                for arm, threshold in (("subgradient", 1e-4), ("subgradient_alone", 0.0)):
                    penalty = Penalty(kinds, strength, ON.get(name), "subgradient", threshold)
                    yield arm, strength, penalty


def arms(case: Case[Settings]) -> Iterator[Made]:
    """The dense net, trained on, and the net of every penalty."""
    settings, resnet = case.settings, case.net.name == "resnet8"
    rate = (5 if resnet else 1) * settings.learning_rate
    # What counts for a penalty is the number of steps.
    of = lambda epochs, rate: case.train(epochs, rate, 64 if resnet else 32)
    finetune = of(settings.finetune, rate / 2)
    dense = case.dense(of(settings.epochs, rate))
    longer = case.apply(dense, 2, of(settings.shrink, rate), finetune)
    yield {"arm": "dense", "families": "", "strength": 0.0, "zeros": 0.0}, longer
    for arm, strength, penalty in penalties(case):
        shrunk = case.apply(dense, 2, Shrink(of(settings.shrink, rate), WHOLE, penalty))
        blocks = [term.blocks for term in penalty.terms(case.task, WHOLE).values()]
        norms = norms_of(blocks, shrunk.variables)
        read, (record,) = ReadOff(WHOLE, penalty, correct=False)(shrunk, case.task, case.key)
        row = {
            "arm": arm,
            "families": "+".join(penalty.families),
            "strength": strength,
            "zeros": record["metrics"]["zeros"],
            "macs": case.macs(read),
            "kept": {
                f"{kind} {short(name)}": int(np.count_nonzero(norm))
                for kind, of_kind in norms.items()
                for name, norm in of_kind.items()
            },
            "border": border(case.task, norms) if case.net.name == "lenet300" else None,
            "before": case.score(shrunk),
        }
        yield row, case.apply(read, 3, finetune)


def validation(case: Case, pruned: Pruned) -> Row:
    """Accuracy on the split that chooses a strength."""
    return {"validation": case.score(pruned, "validation")}


def short(name: str) -> str:
    """A block's name without what all have."""
    return name.replace("params/", "").replace("/kernel", "").replace("branch/", "")


def border(task: Task, norms: dict[str, dict[str, np.ndarray]]) -> list[float]:
    """Fractions that lie within four pixels of the border: of the zero inputs, and of all."""
    (height, width, _), first = task.data.shape, norms["shape"]["params/fc1/kernel"]
    row, column = np.indices((height, width))
    away = np.minimum.reduce([row, column, height - 1 - row, width - 1 - column])
    near = (away < height / 7).ravel()
    zero = first == 0
    return [float(near[zero].mean()) if zero.any() else 0.0, float(near.mean())]


def lost(
    rows: Rows, net: str, families: str, strength: float, what: str = "accuracy"
) -> list[float]:
    """Points below dense, by seed: of test accuracy, or of `validation`."""
    arm = {"arm": "prox", "families": families, "strength": strength}
    return gap(what, "dense", arm, net=net).list(rows)


def strengths(rows: Rows, families: str) -> list[float]:
    """Those that were run, rising."""
    return sorted({row["strength"] for row in select(rows, arm="prox", families=families)})


def strongest(
    rows: Rows, net: str, families: str, most: float
) -> tuple[float, list[Row], list[float]]:
    """The largest strength that costs at most `most` points in the mean, else the smallest.

    Validation accuracy chooses. Returns (strength, its rows, points of test accuracy lost).
    """
    first, *more = strengths(rows, families)
    cheap = [s for s in more if fmean(lost(rows, net, families, s, "validation")) <= most]
    strength = max([first, *cheap])
    chosen = select(rows, net=net, arm="prox", families=families, strength=strength)
    return strength, chosen, lost(rows, net, families, strength)


def of_lenet5(rows: Rows) -> Iterator[Finding]:
    """Filters and columns that are left, told once where both limits choose one strength."""
    for families, kind, paper, most in (
        ("filter+channel", "filter", "5-19; 3-12", (6, 20)),
        ("shape", "shape", "7-14", (10, 60)),
    ):
        chosen = {strongest(rows, "lenet5", families, limit)[0]: limit for limit in (2, 0.1)}
        for strength, limit in sorted(chosen.items()):
            _, of, points = strongest(rows, "lenet5", families, limit)
            counts = [[row["kept"][f"{kind} {conv}"] for row in of] for conv in ("conv1", "conv2")]
            text = f"LeNet-5, {families} {strength}: left in conv1 and conv2 for {limit} points"
            ours = f"{shown(counts[0], 1)}; {shown(counts[1], 1)}; {shown(points)} points"
            few = all(fmean(c) <= m for c, m in zip(counts, most)) and fmean(points) <= limit
            asked = limit == 0.1
            yield Finding(text, paper if asked else "-", ours, few if asked else None)


def of_lenet300(rows: Rows) -> Iterator[Finding]:
    """Inputs that are left, and where they lie."""
    strength, chosen, points = strongest(rows, "lenet300", "filter+shape", 0.1)
    inputs = [row["kept"]["shape fc1"] for row in chosen]
    text = f"LeNet-300-100, filter+shape {strength}: inputs left of 784"
    holds = fmean(inputs) <= 500 and fmean(points) <= 0.2
    yield Finding(text, "434", f"{shown(inputs, 0)}; {shown(points)} points", holds)
    strength, chosen, points = strongest(rows, "lenet300", "filter+shape", math.inf)
    near = [row["border"][0] / row["border"][1] for row in chosen]
    inputs = [row["kept"]["shape fc1"] for row in chosen]
    text = f"strength {strength}, {shown(inputs, 0)} inputs left: zero inputs on the border"
    ours = f"{shown(near)} times the border's share; {shown(points)} points"
    yield Finding(text, "mostly", ours, fmean(near) > 1.2)


def of_resnet8(rows: Rows) -> Iterator[Finding]:
    """The smallest strength at which a branch vanishes in the mean, else the largest."""
    gone = lambda row: sum(count == 0 for count in row["kept"].values())
    at = {
        s: listed(rows, gone, arm="prox", families="depth", strength=s)
        for s in strengths(rows, "depth")
    }
    strength = next((s for s, counts in at.items() if fmean(counts) >= 1), max(at))
    points = lost(rows, "resnet8", "depth", strength)
    text = f"ResNet-8, depth {strength}: branches of three that vanish for 0.5 points"
    ours = f"{shown(at[strength], 1)}; {shown(points)} points"
    holds = fmean(at[strength]) >= 1 and fmean(points) <= 0.5
    yield Finding(text, "1 of 9", ours, holds)


def zeros(arm: str, paper: str) -> Statement:
    """The percentage of groups that are exactly 0."""
    net, families, strength = COMPARED
    where = {"net": net, "families": families, "strength": strength}
    text = f"{arm}, {families} {strength}: groups that are exactly 0, %"
    value = each(lambda row: 100 * row["zeros"], arm=arm, **where)
    if arm == "subgradient_alone":
        return says(text, paper, value, lambda shares: fmean(shares) == 0, digits=1)
    return above(text, paper, value, 20, digits=1)


def plot(rows: Rows, axes: Axes) -> None:
    """Accuracy over the MACs that are left, a family a line."""
    for net, families, colour in (
        ("lenet5", "filter+channel", "slim"), ("lenet5", "shape", "second"),
        ("lenet300", "filter+shape", "muted"), ("resnet8", "depth", "ink"),
    ):  # fmt: skip
        tried = strengths(rows, families)
        where = {"net": net, "arm": "prox", "families": families}
        percent = lambda row: 100 * row["macs"]
        macs = [fmean(listed(rows, percent, strength=strength, **where)) for strength in tried]
        points = [fmean(lost(rows, net, families, strength)) for strength in tried]
        line(axes, macs, points, Style(f"{net}, {families}", colour))
    level(axes, 0)
    finish(axes, "MACs left, %", "test accuracy lost, points")


CLAIM = Claim(
    "e13",
    "E13: structured sparsity learning [13]",
    refs=(13,),
    settings=Settings(),
    nets=nets,
    smoke=nets(Settings())[1:],
    arms=arms,
    measures=(validation, accuracy),
    statements=(
        of_lenet5,
        zeros("prox", "-"),
        zeros("subgradient", "many"),
        zeros("subgradient_alone", "none"),
        of_lenet300,
        of_resnet8,
    ),
    plot=plot,
    remarks="LeNet-300-100 stands for the paper's 784-500-300-10, ResNet-8 with three branches for "
    "ResNet-20. On LeNet-5 the penalty is on filters and channels of the convolutions' units (the "
    "channels of conv2's are inputs of fc1, which the paper's are not); with fc1's neurons in it, "
    "0.01 leaves 12 and 11 filters (and 17 of 500 neurons) for 0.9 points (seed 0). The norm of a "
    "branch has the scales of its batch norms in it: over kernels alone, as in the paper, none "
    "vanished with 0.05, 0.1 or 0.3 (seed 0; 0.3 costs 16 points), because a norm divides by the "
    "size of a kernel. LeNets take batches of 32: 1,248 steps before the penalty, 1,872 under it, "
    "624 after it; ResNet-8 takes 64.",
)

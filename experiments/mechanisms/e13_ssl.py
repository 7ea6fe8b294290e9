"""E13 [13]: group lasso takes whole filters, columns, inputs and branches out of nets.

Wen, Wu, Wang, Chen, Li, arXiv 1608.03665: LeNet keeps 5-19 of 20-50 filters (3-12 for 0.1 points),
or 7-14 of 25-500 columns; an MLP loses inputs on the border of the image and neurons; ResNet-20
loses layers. Here LeNet-5 and LeNet-300-100 on 10,000 images of MNIST and, for branches, ResNet-8
on 5,000 of CIFAR-10.

    python -m experiments.mechanisms.e13_ssl --seeds 0 1 2

writes a line a net into `experiments/results/mechanisms/e13.jsonl`: `families` and `strength` are
those of the penalty, `arm` is dense (trained as long as the others), prox, subgradient (with the
authors' threshold) or subgradient_alone (without), `zeros` the fraction of groups that are exactly
0, `kept` the groups that are left by block, `before` the accuracy under the penalty, `accuracy`
that after fine-tuning, and `validation` that on the split that chooses a strength.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from statistics import fmean as mean
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.axes import Axes

from experiments import rows
from experiments.claims import Claim, Finding, collect, seeds_of, shown
from experiments.mechanisms._nets import cifar10, mnist, task_of
from jprune.base import Budget, Pruned, Task
from jprune.recipes import Train, evaluate
from jprune.report.figures import PRINT
from jprune.stages.group_lasso import Penalty, ReadOff, Shrink, norms_of
from jprune.train.net import Net

RESULTS = rows.RESULTS / "mechanisms" / "e13.jsonl"
WHOLE = Budget(macs=1.0)
SWEEP = (0.01, 0.02)
RUNS: dict[str, dict[str, tuple[float, ...]]] = {
    "lenet5": {"filter+channel": SWEEP, "shape": SWEEP},
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
        seeds: of initial values and order of the data.
        nets: of `RUNS`.
        epochs: of the nets that the penalty begins with.
        shrink: epochs under the penalty.
        finetune: epochs under the masks.
        learning_rate: the largest one of LeNets; ResNet-8 has five times as much.
        lenet_images: of MNIST.
        train_images: of CIFAR-10.
        smoke: two steps a training, on digits; writes nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    nets: tuple[str, ...] = tuple(RUNS)
    epochs: float = 4.0
    shrink: float = 6.0
    finetune: float = 2.0
    learning_rate: float = 0.02
    lenet_images: int = 10_000
    train_images: int = 5_000
    smoke: bool = False


def penalties(settings: Settings, net: str) -> Iterator[tuple[str, Penalty]]:
    """(arm, penalty) of a net."""
    for families, strengths in RUNS[net].items():
        kinds, names = tuple(families.split("+")), ON.get(net)
        for strength in strengths[:1] if settings.smoke else strengths:
            yield "prox", Penalty(kinds, strength, names)
            if (net, families, strength) == COMPARED:
                for arm, threshold in (("subgradient", 1e-4), ("subgradient_alone", 0.0)):
                    yield arm, Penalty(kinds, strength, names, "subgradient", threshold)


def nets(settings: Settings, net: str, task: Task, seed: int) -> Iterator[rows.Row]:
    """A row a net."""
    key, most = jax.random.key(seed), 2 if settings.smoke else None
    rate = (5 if net == "resnet8" else 1) * settings.learning_rate
    start = Pruned(task.init(jax.random.fold_in(key, 0)), None)
    size = 64 if net == "resnet8" else 32  # what counts for a penalty is the number of steps
    of = lambda epochs, rate: Train(epochs, rate, size, max_steps=most)
    dense, _ = of(settings.epochs, rate)(start, task, jax.random.fold_in(key, 1))
    longer, _ = of(settings.shrink, rate)(dense, task, jax.random.fold_in(key, 2))
    longer, _ = of(settings.finetune, rate / 2)(longer, task, jax.random.fold_in(key, 3))
    seen = accuracies(task, longer)
    yield {"arm": "dense", "families": "", "strength": 0.0, "zeros": 0.0, **seen}
    for arm, penalty in penalties(settings, net):
        stage = Shrink(of(settings.shrink, rate), WHOLE, penalty)
        shrunk, _ = stage(dense, task, jax.random.fold_in(key, 2))
        blocks = [term.blocks for term in penalty.terms(task, WHOLE).values()]
        norms = norms_of(blocks, shrunk.variables)
        read, (seen,) = ReadOff(WHOLE, penalty, correct=False)(shrunk, task, key)
        tuned, _ = of(settings.finetune, rate / 2)(read, task, jax.random.fold_in(key, 3))
        yield {
            "arm": arm,
            "families": "+".join(penalty.families),
            "strength": penalty.strength,
            "zeros": seen["metrics"]["zeros"],
            "macs": float(Net(task).cost(read.masks).macs) / float(Net(task).cost({}).macs),
            "kept": {
                f"{kind} {short(name)}": int(np.count_nonzero(norm))
                for kind, of_kind in norms.items()
                for name, norm in of_kind.items()
            },
            "border": border(task, norms) if net == "lenet300" else None,
            "before": evaluate(task, shrunk.variables, "test")["accuracy"],
            **accuracies(task, tuned),
        }


def accuracies(task: Task, pruned: Pruned) -> rows.Row:
    """On the split that chooses a strength, and on that which is reported."""
    return {
        name: evaluate(task, pruned.variables, split)["accuracy"]
        for name, split in (("validation", "validation"), ("accuracy", "test"))
    }


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


def of(found: Sequence[rows.Row], net: str, **wanted: Any) -> list[rows.Row]:
    """Rows by seed."""
    mine = [r for r in found if r["net"] == net and all(r[k] == v for k, v in wanted.items())]
    return sorted(mine, key=lambda row: row["seed"])


def lost(found: Sequence[rows.Row], net: str, what: str = "accuracy", **wanted: Any) -> list[float]:
    """Points below dense, by seed: of test accuracy, or of `validation`."""
    dense = {row["seed"]: row[what] for row in of(found, net, arm="dense")}
    return [100 * (dense[row["seed"]] - row[what]) for row in of(found, net, **wanted)]


def strongest(
    found: Sequence[rows.Row], net: str, families: str, most: float
) -> tuple[float, list[rows.Row], list[float]]:
    """The largest strength that costs at most `most` points in the mean, else the smallest.

    Validation accuracy chooses. Returns (strength, its rows, points of test accuracy lost).
    """
    chosen = None
    for strength in sorted({r["strength"] for r in found if r.get("families") == families}):
        wanted = {"arm": "prox", "families": families, "strength": strength}
        if chosen is None or mean(lost(found, net, "validation", **wanted)) <= most:
            chosen = strength, of(found, net, **wanted), lost(found, net, **wanted)
    assert chosen is not None
    return chosen


def vanishing(found: Sequence[rows.Row]) -> tuple[float, list[int], list[float]]:
    """The smallest strength at which a branch vanishes in the mean, else the largest.

    Returns (strength, branches that vanish, points of test accuracy lost).
    """
    tried = []
    for strength in sorted({row["strength"] for row in of(found, "resnet8", arm="prox")}):
        wanted = {"arm": "prox", "strength": strength}
        kept = [row["kept"].values() for row in of(found, "resnet8", **wanted)]
        gone = [sum(count == 0 for count in counts) for counts in kept]
        tried.append((strength, gone, lost(found, "resnet8", **wanted)))
    return next((each for each in tried if mean(each[1]) >= 1), tried[-1])


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """Groups that are left where accuracy allows, seed by seed."""
    listed = []
    for families, blocks, paper, most in (
        ("filter+channel", ("filter conv1", "filter conv2"), "5-19; 3-12", (6, 20)),
        ("shape", ("shape conv1", "shape conv2"), "7-14", (10, 60)),
    ):
        chosen = {}  # by strength: told once where both limits choose the same
        for limit in (2, 0.1):
            strength, *seen = strongest(found, "lenet5", families, limit)
            chosen[strength] = limit, *seen
        for strength, (limit, mine, points) in sorted(chosen.items()):
            counts = [[row["kept"][block] for row in mine] for block in blocks]
            claim = f"LeNet-5, {families} {strength}: left in conv1 and conv2 for {limit} points"
            text = f"{shown(counts[0], 1)}; {shown(counts[1], 1)}; {shown(points)} points"
            few = all(mean(c) <= m for c, m in zip(counts, most)) and mean(points) <= limit
            asked = limit == 0.1
            listed.append(Finding(claim, paper if asked else "-", text, few if asked else None))
    net, families, strength = COMPARED
    for arm, paper in (("prox", "-"), ("subgradient", "many"), ("subgradient_alone", "none")):
        mine = of(found, net, arm=arm, families=families, strength=strength)
        share = [100 * row["zeros"] for row in mine]
        holds = mean(share) == 0 if arm == "subgradient_alone" else mean(share) > 20
        claim = f"{arm}, {families} {strength}: groups that are exactly 0, %"
        listed.append(Finding(claim, paper, shown(share, 1), holds))
    strength, mine, points = strongest(found, "lenet300", "filter+shape", 0.1)
    inputs = [row["kept"]["shape fc1"] for row in mine]
    text = f"{shown(inputs, 0)}; {shown(points)} points"
    claim = f"LeNet-300-100, filter+shape {strength}: inputs left of 784"
    listed.append(Finding(claim, "434", text, mean(inputs) <= 500 and mean(points) <= 0.2))
    strength, mine, points = strongest(found, "lenet300", "filter+shape", math.inf)
    near = [row["border"][0] / row["border"][1] for row in mine]
    inputs = [row["kept"]["shape fc1"] for row in mine]
    claim = f"strength {strength}, {shown(inputs, 0)} inputs left: zero inputs on the border"
    text = f"{shown(near)} times the border's share; {shown(points)} points"
    listed.append(Finding(claim, "mostly", text, mean(near) > 1.2))
    strength, gone, points = vanishing(found)
    claim = f"ResNet-8, depth {strength}: branches of three that vanish for 0.5 points"
    text = f"{shown(gone, 1)}; {shown(points)} points"
    listed.append(Finding(claim, "1 of 9", text, mean(gone) >= 1 and mean(points) <= 0.5))
    return listed


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """Accuracy over the MACs that are left, a family a line."""
    lines = (
        ("lenet5", "filter+channel", "slim"), ("lenet5", "shape", "second"),
        ("lenet300", "filter+shape", "muted"), ("resnet8", "depth", "ink"),
    )  # fmt: skip
    for net, families, colour in lines:
        strengths = sorted({r["strength"] for r in of(found, net, arm="prox", families=families)})
        wanted = [{"arm": "prox", "families": families, "strength": s} for s in strengths]
        axes.plot(
            [mean(100 * row["macs"] for row in of(found, net, **each)) for each in wanted],
            [mean(lost(found, net, **each)) for each in wanted],
            color=getattr(PRINT, colour), marker="o", markersize=3, linewidth=1.2,
            label=f"{net}, {families}",
        )  # fmt: skip
    axes.axhline(0, color=PRINT.line, linewidth=0.8, label="dense")
    axes.set_xlabel("MACs left, %")
    axes.set_ylabel("test accuracy lost, points")
    axes.legend(frameon=False, fontsize=8)


CLAIM = Claim(
    "E13: structured sparsity learning [13]",
    findings,
    draw,
    "LeNet-300-100 stands for the paper's 784-500-300-10, ResNet-8 with three branches for "
    "ResNet-20. On LeNet-5 the penalty is on filters and channels of the convolutions' units (the "
    "channels of conv2's are inputs of fc1, which the paper's are not); with fc1's neurons in it, "
    "0.01 leaves 12 and 11 filters (and 17 of 500 neurons) for 0.9 points (seed 0). The norm of a "
    "branch has the scales of its batch norms in it: over kernels alone, as in the paper, none "
    "vanished with 0.05, 0.1 or 0.3 (seed 0; 0.3 costs 16 points), because a norm divides by the "
    "size of a kernel. LeNets take batches of 32: 1,248 steps before the penalty, 1,872 under it, "
    "624 after it; ResNet-8 takes 64.",
)


def made(settings: Settings) -> Iterator[rows.Row]:
    """A row a net."""
    for seed in seeds_of(settings):
        for net in ("lenet300", "resnet8") if settings.smoke else settings.nets:
            small = mnist(settings, settings.lenet_images)
            images = cifar10(settings) if net == "resnet8" else small
            for seen in nets(settings, net, task_of(net, images), seed):
                yield {"net": net, "seed": seed, **seen}


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(RESULTS, {"claim": "E13", "refs": [13]}, settings, made(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))

"""P41 [41]: filters that grow equal are merged without loss.

Ding, Ding, Guo, Han (arXiv 1904.03837): merging changes nothing; ResNet-56 keeps its accuracy at
5/8 of its width; C-SGD beats the narrow net trained from scratch. Here LeNet-5 on 10,000
images of MNIST with half of its filters, and ResNet-8 on 5,000 of CIFAR-10 with 5/8 of all its
channels, residual streams included.

    python -m experiments.mechanisms.p41_csgd --seeds 0 1 2

writes a line a net into `experiments/results/mechanisms/p41.jsonl`: `arm` is dense (trained on for
as long as C-SGD), csgd, l1 (smallest filters pruned, then trained for as long) or scratch (the
narrow net, trained for as long as both trainings of the others); `strength` is C-SGD's; `deviation`
the sum of the squared differences of parameters from the means of their clusters, `drift` the
largest change of an output by merging over the largest output, `same` the fraction of test images
whose class merging keeps, `before` the accuracy before merging.
"""

import dataclasses
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
from jprune import allocate
from jprune.base import Budget, Pruned, Task, Variables
from jprune.recipes import Prune, Train, evaluate
from jprune.report.figures import PRINT
from jprune.stages.centripetal import Cluster, MergeClusters, Pull
from jprune.stages.frame import fractions
from jprune.stages.prune import l1_of
from jprune.stages.reinitialise import BeginAnew

RESULTS = rows.RESULTS / "mechanisms" / "p41.jsonl"
STRENGTHS = (0.01, 1.0)
"""Of ResNet-8, whose parameters have 470 steps to meet: too weak, and enough."""
PULL = 1.0
"""Of LeNet-5, with 1,250 steps."""
LENET, RESNET = "lenet5", "resnet8"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        seeds: of initial values, order of the data and clusters.
        nets: lenet5, resnet8.
        lenet_epochs: of the dense LeNet-5, and of its C-SGD.
        epochs: of the dense ResNet-8, and of its C-SGD.
        learning_rate: the largest one of all trainings of ResNet-8; of LeNet-5 it is a fifth.
        lenet_images: of MNIST.
        train_images: of CIFAR-10.
        batch_size: of all trainings.
        smoke: two steps a training, LeNet-300-100 on digits; writes nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    nets: tuple[str, ...] = (LENET, RESNET)
    lenet_epochs: float = 8.0
    epochs: float = 6.0
    learning_rate: float = 0.1
    lenet_images: int = 10_000
    train_images: int = 5_000
    batch_size: int = 64
    smoke: bool = False


class Nets:
    """The nets of one seed and one architecture."""

    def __init__(self, settings: Settings, task: Task, budget: Budget, seed: int):
        self.settings, self.task, self.budget = settings, task, budget
        self.key = jax.random.key(seed)
        self.small = task.name == LENET
        self.dense = self.trained(Pruned(task.init(jax.random.fold_in(self.key, 0)), None), 1)

    def training(self, times: float = 1.0) -> Train:
        """`times` as long as the dense net's."""
        given, most = self.settings, 2 if self.settings.smoke else None
        epochs = times * (given.lenet_epochs if self.small else given.epochs)
        rate = given.learning_rate / (5 if self.small else 1)
        return Train(epochs, rate, given.batch_size, max_steps=most)

    def trained(self, start: Pruned, number: int, times: float = 1.0) -> Pruned:
        """A net after training."""
        return self.training(times)(start, self.task, jax.random.fold_in(self.key, number))[0]

    def merged(self, strength: float) -> tuple[Pruned, dict[str, Any]]:
        """The net of C-SGD, and what was seen."""
        key = jax.random.fold_in(self.key, 2)
        net, _ = Cluster(self.budget)(self.dense, self.task, key)
        net, _ = Pull(self.training(), strength)(net, self.task, key)
        done, (said,) = MergeClusters()(net, self.task, key)
        before, after = (classes(self.task, v) for v in (net.variables, done.variables))
        seen = {name: said["metrics"][name] for name in ("deviation", "drift")}
        seen |= {"same": float(np.mean(before == after)), "strength": strength}
        return done, {**seen, "before": evaluate(self.task, net.variables, "test")["accuracy"]}

    def __iter__(self) -> Iterator[tuple[str, Pruned, dict[str, Any]]]:
        yield "dense", self.trained(self.dense, 3), {}
        for strength in (PULL,) if self.small else STRENGTHS[-1 if self.settings.smoke else 0 :]:
            yield "csgd", *self.merged(strength)
        prune = Prune(l1_of, allocate.uniform, self.budget)
        cut, _ = prune(self.dense, self.task, self.key)
        yield "l1", self.trained(cut, 3), {}
        anew, _ = BeginAnew()(cut, self.task, jax.random.fold_in(self.key, 4))
        yield "scratch", self.trained(anew, 5, times=2.0), {}


def classes(task: Task, variables: Variables) -> np.ndarray:
    """The class of every test image."""
    fn = jax.jit(task.fn)
    found = [
        np.asarray(fn(variables, batch["image"]).argmax(axis=-1))[batch["weight"] > 0]
        for batch in task.data.batches("test", 500)
    ]
    return np.concatenate(found)


def of(
    found: Sequence[rows.Row],
    what: str,
    arm: str,
    model: str = RESNET,
    strength: float | None = None,
) -> list[float]:
    """Values by seed."""
    mine = [
        row
        for row in found
        if (row["model"], row["arm"], row["strength"]) == (model, arm, strength)
    ]
    return [row[what] for row in sorted(mine, key=lambda row: row["seed"])]


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """What merging does, and points of accuracy seed by seed."""
    listed = []

    def add(claim: str, paper: str, ours: str, holds: bool) -> None:
        listed.append(Finding(claim, paper, ours, holds))

    def points(arm: str, other: str, model: str, *strengths: float | None) -> list[float]:
        one = of(found, "accuracy", arm, model, strengths[0])
        return [100 * (a - b) for a, b in zip(one, of(found, "accuracy", other, model))]

    off = of(found, "deviation", "csgd", LENET, PULL)
    add("LeNet-5, half of the filters: squared deviation", "0", f"{max(off):.0e}", max(off) < 1e-8)
    same = [100 * value for value in of(found, "same", "csgd", LENET, PULL)]
    add("LeNet-5: classes that merging keeps, %", "100", shown(same), min(same) == 100)
    lost = points("csgd", "dense", LENET, PULL)
    add("LeNet-5: merged - dense, points", "about 0", shown(lost), mean(lost) >= -0.3)
    weak, strong = STRENGTHS
    gaps = {s: max(of(found, "drift", "csgd", strength=s)) for s in STRENGTHS}
    kept = {s: [100 * v for v in of(found, "same", "csgd", strength=s)] for s in STRENGTHS}
    for strength, wanted, holds in (
        (weak, "a gap", gaps[weak] > 0.01),
        (strong, "100; 0", min(kept[strong]) == 100),
    ):
        claim = f"ResNet-8 at 5/8, strength {strength}: classes kept, %; largest drift"
        add(claim, wanted, f"{shown(kept[strength])}; {gaps[strength]:.0e}", holds)
    for other, least in (("scratch", -0.5), ("dense", -2.5), ("l1", 0.0)):
        ahead = points("csgd", other, RESNET, strong)
        claim = f"ResNet-8, strength {strong}: merged - {other} >= {least}, points"
        add(claim, "about 0 or above", shown(ahead), mean(ahead) >= least)
    macs = of(found, "macs", "csgd", strength=strong)
    law = (5 / 8) ** 2
    add("MACs over (5/8)^2", "1", shown([m / law for m in macs]), abs(mean(macs) / law - 1) < 0.1)
    return listed


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """Accuracy over the strength, before and after merging."""
    for what, name, colour in (("before", "C-SGD, not merged", PRINT.second),
                               ("accuracy", "C-SGD, merged", PRINT.slim)):  # fmt: skip
        values = [100 * mean(of(found, what, "csgd", strength=s)) for s in STRENGTHS]
        axes.semilogx(STRENGTHS, values, color=colour, marker="o", markersize=4, label=name)
    for arm, colour, line in (("dense", PRINT.ink, "-"), ("l1", PRINT.muted, "--"),
                              ("scratch", PRINT.muted, ":")):  # fmt: skip
        level = 100 * mean(of(found, "accuracy", arm))
        axes.axhline(level, color=colour, linestyle=line, linewidth=0.9, label=arm)
    axes.set_xlabel("strength of the pull, ResNet-8 at 5/8 of its width")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, fontsize=8)


CLAIM = Claim(
    "P41: centripetal SGD [41]",
    findings,
    draw,
    "ResNet-8 on 5,000 images of CIFAR-10 for 6 + 6 epochs, where the paper has ResNet-56 for 600 "
    "+ 600 a round. Differences shrink by exp(-sum of rates * strength / (1 - momentum)), with a "
    "tenth of the strength for scales and biases, so strengths are larger here.",
)


def cases(settings: Settings) -> Iterator[tuple[Task, Budget]]:
    """Nets, and what is kept of them."""
    if settings.smoke:
        yield task_of("lenet300", cifar10(settings)), Budget(density=5 / 8)
        return
    dense = Budget(density=0.5, floors={"params/fc1/kernel": 500})
    if LENET in settings.nets:
        yield task_of(LENET, mnist(settings, settings.lenet_images)), dense
    if RESNET in settings.nets:
        yield task_of(RESNET, cifar10(settings)), Budget(density=5 / 8)


def made(settings: Settings) -> Iterator[rows.Row]:
    """A row a net."""
    for task, budget in cases(settings):
        for seed in seeds_of(settings):
            for arm, pruned, more in Nets(settings, task, budget, seed):
                yield {
                    "model": task.name,
                    "arm": arm,
                    "seed": seed,
                    "strength": None,
                    "accuracy": evaluate(task, pruned.variables, "test")["accuracy"],
                    **fractions(task, pruned.masks or {}),
                    **more,
                }


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(RESULTS, {"claim": "P41", "refs": [41]}, settings, made(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))

"""E5 [5]: neurons merged by their weights alone, against neurons deleted.

Srinivas, Babu (arXiv 1507.06149): of an MNIST net up to 85 % of the parameters can go without data
or training, of AlexNet 35 %; merging is better than deletion. Here LeNet-5 on MNIST, whose fc1 (500
neurons) has 93 % of the parameters, and LeNet-300-100, whose fc1 has 88 %, trained longer and with
ten times the weight decay; nothing is trained after pruning.

    python -m experiments.mechanisms.e05_data_free --seeds 0 1 2

writes a line a net into `experiments/results/mechanisms/e05.jsonl`: `arm` is dense, merge, delete
(the same neurons, without adding their outgoing weights), random, cutoff (merged to the paper's
rule) or twins (half of fc1 made copies of the other half, then merged); `kept` is the fraction of
neurons, `params` that of all parameters, `drift` the largest change of a logit over the largest
logit.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from statistics import fmean as mean
from statistics import stdev
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.axes import Axes

from experiments import rows
from experiments.claims import Claim, Finding, collect, seeds_of, shown
from experiments.mechanisms._nets import mnist, task_of
from jprune.base import Budget, Pruned, Task, Variables
from jprune.masks import apply_masks
from jprune.recipes import Train, evaluate
from jprune.reconstruct import Merge, merges
from jprune.reconstruct.merge import matrix
from jprune.report.figures import PRINT
from jprune.stages.merge import MergeUnits, affines_of, sets_of
from jprune.train.net import Net as TaskNet
from jprune.units import expand, map_units

RESULTS = rows.RESULTS / "mechanisms" / "e05.jsonl"
KEPT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
GROUP = "params/fc1/kernel"


class Net(NamedTuple):
    """How a net is trained."""

    epochs: float
    weight_decay: float
    neurons: int
    """In fc1."""


NETS = {"lenet5": Net(4.0, 5e-4, 500), "lenet300": Net(10.0, 5e-3, 300)}
STYLES = {"merge": "slim", "delete": "second", "random": "muted"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        seeds: of initial values, order of the data and draws.
        nets: of `NETS`.
        learning_rate: the largest one.
        smoke: two steps of training, one level, LeNet-300-100 on digits; writes nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    nets: tuple[str, ...] = tuple(NETS)
    learning_rate: float = 0.02
    smoke: bool = False


class Nets:
    """The nets of one seed."""

    def __init__(self, settings: Settings, net: Net, task: Task, group: str, seed: int):
        self.settings, self.task, self.group = settings, task, group
        self.key = jax.random.key(seed)
        self.groups = TaskNet(task).groups
        self.size = self.groups.sizes[group]
        most = 2 if settings.smoke else None
        rate, decay = settings.learning_rate, net.weight_decay
        stage = Train(net.epochs, rate, weight_decay=decay, max_steps=most)
        start = Pruned(task.init(jax.random.fold_in(self.key, 0)), None)
        self.dense = stage(start, task, jax.random.fold_in(self.key, 1))[0].variables

    def steps(self, variables: Variables) -> list[Merge]:
        """All merges of the group."""
        behind = affines_of(self.task, variables)
        return list(merges(*sets_of(self.groups, variables, [self.group], behind)[self.group]))

    def without(self, variables: Variables, gone: np.ndarray) -> Pruned:
        """The net without some neurons."""
        mask = np.ones(self.size, bool)
        mask[gone] = False
        masks = {self.group: mask}
        return Pruned(apply_masks(variables, expand(self.groups, masks)), masks)

    def merged(self, variables: Variables, steps: Sequence[Merge]) -> Pruned:
        """The net after some merges."""
        matrices = {self.group: matrix(self.size, steps)}
        mapped = map_units(self.groups, variables, matrices, ("in",))
        return self.without(mapped, np.array([step.gone for step in steps], int))

    def twins(self) -> tuple[Variables, set[int]]:
        """The dense net with one half of the neurons copied from the other, and the copies."""
        half, other = np.arange(self.size // 2), np.arange(self.size // 2) + self.size // 2
        copies = np.eye(self.size)
        copies[other] = copies[half]
        halves = np.zeros((self.size, self.size))
        halves[half, half], halves[other, half] = 0.4, 0.6
        variables = map_units(self.groups, self.dense, {self.group: copies}, ("kernel", "shift"))
        return map_units(self.groups, variables, {self.group: halves}, ("in",)), {*other.tolist()}

    def __iter__(self) -> Iterator[tuple[str, Pruned, Variables, dict[str, Any]]]:
        yield "dense", Pruned(self.dense, None), self.dense, {}
        steps = self.steps(self.dense)
        order = np.array([step.gone for step in steps])
        drawn = np.asarray(jax.random.permutation(jax.random.fold_in(self.key, 2), self.size))
        for kept in KEPT[4:5] if self.settings.smoke else KEPT:
            count = round((1 - kept) * self.size)
            yield "merge", self.merged(self.dense, steps[:count]), self.dense, {}
            yield "delete", self.without(self.dense, order[:count]), self.dense, {}
            yield "random", self.without(self.dense, drawn[:count]), self.dense, {}
        whole = {n: s for n, s in self.groups.sizes.items() if n != self.group}
        rule = MergeUnits(Budget(density=0.01, floors=whole), stop="cutoff")
        cut, _ = rule(Pruned(self.dense, None), self.task, self.key)
        yield "cutoff", cut, self.dense, {}
        variables, copies = self.twins()
        first = self.steps(variables)[: len(copies)]
        pairs = {frozenset((s.into, s.gone)) for s in first}
        right = {frozenset((c, c - self.size // 2)) for c in copies}
        yield "twins", self.merged(variables, first), variables, {"found": len(pairs & right)}


def measured(task: Task, pruned: Pruned, before: Variables, group: str) -> rows.Row:
    """Accuracy and what is left."""
    seen = evaluate(task, pruned.variables, "test")
    masks = pruned.masks or {}
    batch = next(task.data.batches("test", 500))
    a, b = task.fn(before, batch["image"]), task.fn(pruned.variables, batch["image"])
    cost = TaskNet(task).cost
    return {
        "kept": float(np.mean(masks.get(group, 1.0))),
        "params": float(cost(masks).params) / float(cost({}).params),
        "accuracy": seen["accuracy"],
        "loss": seen["loss"],
        "drift": float(jnp.abs(a - b).max() / jnp.abs(a).max()),
    }


def of(found: Sequence[rows.Row], net: str, arm: str, kept: float | None = None) -> list[rows.Row]:
    """Rows by seed; the first rows were all of LeNet-5 and do not say so."""
    mine = [
        row
        for row in found
        if (row.get("net", "lenet5"), row["arm"]) == (net, arm)
        and (kept is None or abs(row["kept"] - kept) < 1e-3)
    ]
    return sorted(mine, key=lambda row: row["seed"])


def lost(found: Sequence[rows.Row], net: str, arm: str, kept: float | None = None) -> list[float]:
    """Points of accuracy below dense, by seed."""
    dense = [row["accuracy"] for row in of(found, net, "dense")]
    return [100 * (a - row["accuracy"]) for a, row in zip(dense, of(found, net, arm, kept))]


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """Points of test accuracy, seed by seed."""
    return [finding for net in NETS if of(found, net, "dense") for finding in _of_net(found, net)]


def _of_net(found: Sequence[rows.Row], net: str) -> Iterator[Finding]:
    for kept in (0.5, 0.3, 0.1):
        pairs = (("merge", "delete"), ("delete", "random"), ("merge", "random"))
        for better, worse in pairs:
            behind = lost(found, net, better, kept), lost(found, net, worse, kept)
            ahead = [b - a for a, b in zip(*behind)]
            claim = f"{net}, {100 * (1 - kept):.0f} % of fc1 removed: {better} - {worse}, points"
            yield Finding(claim, "above 0", shown(ahead), mean(ahead) >= -0.02)
    early = lost(found, net, "merge", 0.7)
    claim = f"{net}, 30 % of fc1 merged: points lost"
    yield Finding(claim, "at most 1", shown(early), mean(early) <= 1)
    most = [
        max(
            (100 * (1 - row["params"]) for row in of(found, net, "merge")
             if row["seed"] == dense["seed"] and row["accuracy"] >= dense["accuracy"] - 0.02),
            default=0.0,
        )
        for dense in of(found, net, "dense")
    ]  # fmt: skip
    claim = f"{net}, parameters removed for at most 2 points"
    yield Finding(claim, "about 85 %", shown(most, 1, " %"), mean(most) >= 60)
    cut = [100 * (1 - row["params"]) for row in of(found, net, "cutoff")]
    down = lost(found, net, "cutoff")
    claim = f"{net}, the cut-off rule: parameters removed; points lost"
    text = f"{shown(cut, 1, ' %')}; {shown(down)}"
    yield Finding(claim, "about 84 %; below 1", text, mean(down) <= 1)
    twins, copies = of(found, net, "twins"), NETS[net].neurons // 2
    share = [100 * row["found"] / copies for row in twins]
    drift = max(row["drift"] for row in twins)
    claim = f"{net}, {copies} copies in fc1: merged first; largest relative change of a logit"
    text = f"{shown(share, 0, ' %')}; {drift:.0e}"
    yield Finding(claim, "all; 0", text, min(share) == 100 and drift < 1e-5)


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """Accuracy over the neurons removed, an arm a line, a net a style."""
    names = {"merge": "merged", "delete": "deleted, same order", "random": "deleted, random"}
    nets = {"lenet5": ("LeNet-5", "-"), "lenet300": ("LeNet-300-100, much decay", "--")}
    for (net, (title, line)), (arm, colour) in itertools.product(nets.items(), STYLES.items()):
        values = [[100 * row["accuracy"] for row in of(found, net, arm, kept)] for kept in KEPT]
        if not values[0]:
            continue
        axes.errorbar(
            [100 * (1 - kept) for kept in KEPT],
            [mean(each) for each in values],
            [stdev(each) if each[1:] else 0 for each in values],
            color=getattr(PRINT, colour), linestyle=line, marker="o", markersize=3, capsize=2,
            linewidth=1.2, label=f"{title}: {names[arm]}",
        )  # fmt: skip
    axes.set_xlabel("neurons of fc1 removed, %, without data or training")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, fontsize=8)


CLAIM = Claim(
    "E5: data-free merging [5]",
    findings,
    draw,
    "Only fc1 is pruned, as the paper prunes dense layers. Merging assumes neurons that are nearly "
    "alike. With a weight decay of 5e-4 there are none: in LeNet-300-100 (4 epochs, seed 0) the "
    "nearest neighbour of a neuron is at a cosine of 0.11 (median), since weights of pixels that "
    "are always dark stay as drawn, and a neuron is merged into one that has little to do with it; "
    "with 5e-3 (10 epochs) it is at 0.85, and merging does what the paper says. `normalize=true` "
    "changes little: half of the neurons merged, deleted 89.9, 91.1 % and 96.8, 95.3 % (without: "
    "91.2, 93.2 % and 96.9, 94.7 %).",
)


def made(settings: Settings) -> Iterator[rows.Row]:
    """A row a net."""
    for name, seed in itertools.product(
        settings.nets[-1:] if settings.smoke else settings.nets, seeds_of(settings)
    ):
        task = task_of(name, mnist(settings))
        group = TaskNet(task).groups.names[-1] if settings.smoke else GROUP
        for arm, pruned, before, more in Nets(settings, NETS[name], task, group, seed):
            seen = measured(task, pruned, before, group)
            net = {"net": name, **NETS[name]._asdict()}
            yield {**net, "arm": arm, "seed": seed, **seen, **more}


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(RESULTS, {"claim": "E5", "refs": [5]}, settings, made(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))

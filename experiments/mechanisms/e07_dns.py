"""E7 [7]: surgery prunes LeNets by a factor of 50 and more, because weights can come back.

Guo, Yao, Chen, arXiv 1608.04493: LeNet-300-100 keeps 1/56 of its weights, LeNet-5 1/108, without
loss (their table 1), three and nine times fewer than Han et al.

    python -m experiments.mechanisms.e07_dns --seeds 0 1 2

writes a line a net into `experiments/results/mechanisms/e07.jsonl`: `arm` is dense, longer (the
dense net, trained on for as many steps as surgery and what follows), dns, no_splice
(the same surgery, but no weight comes back and masked ones take no gradient), or iterative (Han's
pruning in rounds, with as many epochs in all); `density` is the fraction of weights and biases of
pruned layers that is kept, `found` the one that surgery left before it settled on the budget,
`spliced` the fraction of weights that came back at least once, `changes` the fraction of mask
entries that change in a step, in tenths of the surgery.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from statistics import fmean as mean
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.axes import Axes

from experiments import rows
from experiments.claims import Claim, Finding, collect, seeds_of, shown
from experiments.mechanisms._nets import mnist, task_of, thresholds
from jprune import masks_of, recipes
from jprune.base import Budget, Pruned, Task
from jprune.masks import density
from jprune.recipes import Save, Train, evaluate
from jprune.recipes.han import han
from jprune.report.figures import PRINT
from jprune.sparsify.surgery import CUT
from jprune.stages.surgery import Settle, Surgery

RESULTS = rows.RESULTS / "mechanisms" / "e07.jsonl"
NETS = {
    "lenet300": (1 / 50, {"fc1": 0.018, "fc2": 0.018, "fc3": 0.055}),
    "lenet5": (1 / 80, {"conv1": 0.142, "conv2": 0.031, "fc1": 0.007, "fc2": 0.043}),
}
"""The budget, and the paper's fractions by layer, from which the thresholds are made."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        seeds: of initial values, order of the data and draws.
        epochs: of the dense nets.
        surgery: epochs of surgery.
        after: epochs under the masks that it leaves.
        learning_rate: the largest one of the dense nets' training.
        surgery_rate: that of surgery, which is constant, and the largest one after it.
        gamma: masks are revised with probability 1 / (1 + gamma i).
        smoke: two steps a training, on digits; writes nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: float = 5.0
    surgery: float = 8.0
    after: float = 3.0
    learning_rate: float = 0.05
    surgery_rate: float = 0.02
    gamma: float = 1e-3
    smoke: bool = False


def rates(net: Pruned, kept: dict[str, float], budget: float) -> tuple[float, ...]:
    """The c of every layer at which the first cut leaves the paper's fraction, for the budget."""
    found = []
    for name, least in thresholds(net.variables, kept, budget).items():
        sizes = np.abs(np.asarray(net.variables["params"][name]["kernel"]))
        found.append(round(float((least / CUT - sizes.mean()) / sizes.std()), 4))
    return tuple(found)


def operated(
    stage: Surgery, pruned: Pruned, task: Task, key: jax.Array
) -> tuple[Pruned, dict[str, Any]]:
    """The net after surgery, and what its masks did."""
    learner = stage.learner(pruned, task, key)
    state = learner.init()
    flat = lambda: np.concatenate([np.ravel(m) for m in jax.tree.leaves(masks_of(state.opt_state))])
    before, back, changes = flat(), np.zeros(flat().size, bool), []
    for batch in itertools.islice(learner.batches(0), learner.steps):
        state, _ = learner.step(state, batch)
        after = flat()
        back |= after & ~before
        changes.append(float(np.mean(after != before)))
        before = after
    parts = np.array_split(np.array(changes), min(10, len(changes)))
    seen = {
        "found": float(before.mean()),
        "spliced": float(back.mean()),
        "changes": [float(part.mean()) for part in parts],
    }
    return learner.finish(state), seen


def nets(
    settings: Settings, name: str, task: Task, seed: int
) -> Iterator[tuple[str, Pruned, dict[str, Any]]]:
    """(arm, net, what its masks did)."""
    key, (kept, by_layer) = jax.random.key(seed), NETS[name]
    most = 2 if settings.smoke else None
    # A step of LeNet-5 takes ten times as long: 0.4 of the steps, each of a quarter of the images.
    shorter, size = (0.1, 32) if name == "lenet5" else (1.0, 128)
    of = lambda epochs, rate, **more: Train(shorter * epochs, rate, size, max_steps=most, **more)
    start = Pruned(task.init(jax.random.fold_in(key, 0)), None)
    dense, _ = of(settings.epochs, settings.learning_rate)(start, task, jax.random.fold_in(key, 1))
    dense, _ = Save("dense")(dense, task, key)
    yield "dense", dense, {}
    whole = of(settings.surgery + settings.after, settings.surgery_rate, name="finetune")
    yield "longer", whole(dense, task, jax.random.fold_in(key, 5))[0], {}
    budget = Budget(density=kept)
    during = of(settings.surgery, settings.surgery_rate, schedule="constant")
    after = of(settings.after, settings.surgery_rate)
    c = rates(dense, by_layer, kept)
    for arm in ("dns", "no_splice"):
        stage = Surgery(during, budget, c, settings.gamma, splice=arm == "dns")
        pruned, seen = operated(stage, dense, task, jax.random.fold_in(key, 2))
        pruned, _ = Settle(budget)(pruned, task, key)
        pruned, _ = after(pruned, task, jax.random.fold_in(key, 3))
        yield arm, pruned, seen
    recipe = han(budget, None, whole, rounds=1 if settings.smoke else 5)
    pruned, _ = recipes.run(recipe, dense, task, jax.random.fold_in(key, 4))
    yield "iterative", pruned, {}


def of(found: Sequence[rows.Row], net: str, arm: str, what: str = "accuracy") -> list[Any]:
    """Values by seed."""
    mine = [row for row in found if (row["net"], row["arm"]) == (net, arm)]
    return [row[what] for row in sorted(mine, key=lambda row: row["seed"])]


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """Differences in points of test accuracy, seed by seed."""
    ahead = lambda net, one, other: [
        100 * (a - b) for a, b in zip(of(found, net, one), of(found, net, other))
    ]
    listed = []
    for net, times, paper, most in (
        ("lenet300", 50, "-0.29 at 56 times", 0.3),
        ("lenet5", 80, "0 at 108 times", 0.25),
    ):
        for arm, name in (("dense", "the dense net"), ("longer", "it, trained on for as long")):
            lost = ahead(net, arm, "dns")
            claim = f"{net}, {times} times fewer weights: points lost to {name}"
            listed.append(Finding(claim, paper, shown(lost), mean(lost) <= most))
        gain = ahead(net, "dns", "iterative")
        claim = f"{net}: surgery - Han's rounds, both at {times} times"
        listed.append(Finding(claim, "above 0", shown(gain), mean(gain) > 0))
        gain = ahead(net, "dns", "no_splice")
        claim = f"{net}: splicing - none"
        listed.append(Finding(claim, "above 0", shown(gain), mean(gain) >= 0.3))
    back = [100 * value for value in of(found, "lenet300", "dns", "spliced")]
    rare = [c[-1] / c[0] for c in of(found, "lenet300", "dns", "changes")]
    return [
        *listed,
        Finding("weights that came back at least once, %", "many", shown(back, 1), mean(back) > 5),
        Finding("mask changes, last tenth over first", "towards 0", shown(rare), mean(rare) < 0.5),
    ]


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """How often masks change, over the surgery."""
    styles = {"dns": "-", "no_splice": ":"}
    colours = {"lenet300": PRINT.slim, "lenet5": PRINT.second}
    for (net, colour), (arm, line) in itertools.product(colours.items(), styles.items()):
        values = np.array(of(found, net, arm, "changes"))
        where = (np.arange(values.shape[1]) + 0.5) / values.shape[1]
        name = {"dns": "surgery", "no_splice": "without splicing"}[arm]
        axes.plot(
            100 * where, 100 * np.maximum(values.mean(axis=0), 1e-9), color=colour,
            linestyle=line, marker="o", markersize=3, linewidth=1.2, label=f"{net}, {name}",
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("surgery, %")
    axes.set_ylabel("mask entries that change in a step, %")
    axes.legend(frameon=False, fontsize=9)


CLAIM = Claim(
    "E7: dynamic network surgery [7]",
    findings,
    draw,
    "Surgery takes 3,440 steps where the paper has 25,000 (LeNet-5: 1,376 for "
    "16,000), so gamma is 1e-3. The c of every layer is such that the first cut leaves the paper's "
    "fraction, scaled to the budget; surgery drifts from it and is settled on it at the end.",
)


def made(settings: Settings) -> Iterator[rows.Row]:
    """A row a net."""
    for seed in seeds_of(settings):
        for name in ("lenet300",) if settings.smoke else NETS:
            task = task_of(name, mnist(settings))
            for arm, pruned, seen in nets(settings, name, task, seed):
                yield {
                    "net": name,
                    "arm": arm,
                    "density": density(pruned.masks),
                    "seed": seed,
                    "accuracy": evaluate(task, pruned.variables, "test")["accuracy"],
                    **{name: seen.get(name) for name in ("found", "spliced", "changes")},
                }


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(RESULTS, {"claim": "E7", "refs": [7]}, settings, made(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))

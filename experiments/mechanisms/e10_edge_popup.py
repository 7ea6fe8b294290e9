"""E10 [10]: a random net holds subnets that classify, without one weight being trained.

Malach, Yehudai, Shalev-Shwartz, Shamir, arXiv 2002.00585, prove it; Ramanujan et al., arXiv
1911.13299, find such nets by learning scores: best with about half of the weights, better with
signed constants than with normal weights, and closer to the trained net the wider they are (their
figures 4 to 6). Pensia et al., arXiv 2006.07990, need 21 random products a weight to rebuild a
trained net; their accuracy was measured on the wrong net.

    python -m experiments.mechanisms.e10_edge_popup --seeds 0 1 2

writes a line a net into `experiments/results/mechanisms/e10.jsonl`: `arm` is trained (dense),
signed_constant or kaiming_normal (edge-popup), target or subset_sum (784-50-10); `net` is lenet300,
wide (600-200) or lenet5 with ReLU behind its convolutions; `k` is the fraction kept of every layer,
`moved` the number of weights that training changed, `within` the fraction of weights that the
subset sums meet within 0.01.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from statistics import fmean as mean
from statistics import stdev
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from matplotlib.axes import Axes

from experiments import rows
from experiments.claims import Claim, Finding, collect, seeds_of, shown
from experiments.mechanisms._nets import mnist
from jprune import train, zoo
from jprune.base import Budget, Data, Pruned, Task
from jprune.recipes import Train, evaluate
from jprune.report.figures import PRINT
from jprune.stages.popup import Popup, Redraw
from jprune.stages.subset_sums import Approximate
from jprune.zoo import layers

RESULTS = rows.RESULTS / "mechanisms" / "e10.jsonl"
KS = {"signed_constant": (0.1, 0.3, 0.5, 0.7, 0.9, 1.0), "kaiming_normal": (0.3, 0.5, 0.7)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        seeds: of weights, scores and order of the data.
        epochs: of every training; of LeNet-5 half as many.
        learning_rate: the largest one of scores.
        weight_decay: of scores.
        trained_rate: the largest learning rate of trained nets.
        smoke: two steps a training, one k, on digits; writes nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: float = 4.0
    learning_rate: float = 0.4
    weight_decay: float = 5e-4
    trained_rate: float = 0.05
    smoke: bool = False


class Dense(nnx.Module):
    """Dense layers with ReLU between."""

    def __init__(self, widths: Sequence[int], rngs: nnx.Rngs):
        self.names = layers.number(
            self,
            "fc",
            [layers.dense(n, m, jnp.dtype("float32"), rngs) for n, m in itertools.pairwise(widths)],
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for name in self.names[:-1]:
            x = nnx.relu(getattr(self, name)(x))
        return getattr(self, self.names[-1])(x)


def tasks_of(images: Data) -> dict[str, Task]:
    """By name of the net."""
    height, width, channels = images.shape
    shape, pixels = (height, width, channels), height * width * channels
    dense = lambda name, *hidden: zoo.from_module(
        name, lambda rngs: Dense((pixels, *hidden, images.classes), rngs), shape
    )
    found = {
        "lenet300": zoo.build("lenet300", shape=shape),
        "wide": dense("wide", 600, 200),
        "small": dense("small", 50),
    }
    if min(height, width) >= 16:
        found["lenet5"] = zoo.build("lenet5", shape=shape, conv_relu=True)
    return {name: train.task(net, images) for name, net in found.items()}


def nets(
    settings: Settings, tasks: dict[str, Task], seed: int
) -> Iterator[tuple[str, str, float | None, Pruned, dict[str, Any]]]:
    """(net, arm, k, net, more) for every net that is compared."""
    key = jax.random.key(seed)
    training = Train(
        settings.epochs, settings.trained_rate, max_steps=2 if settings.smoke else None
    )

    def trained(name: str) -> Pruned:
        start = Pruned(tasks[name].init(jax.random.fold_in(key, 0)), None)
        return training(start, tasks[name], jax.random.fold_in(key, 1))[0]

    def popped(name: str, how: str, k: float) -> tuple[Pruned, dict[str, Any]]:
        task, budget = tasks[name], Budget(density=k)
        start, _ = Redraw(budget, how)(Pruned(None, None), task, jax.random.fold_in(key, 2))
        if k == 1:
            return start, {"moved": 0}
        epochs = settings.epochs / 2 if name == "lenet5" else settings.epochs
        scores = dataclasses.replace(
            training, epochs=epochs, learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay, schedule="cosine",
        )  # fmt: skip
        done, _ = Popup(budget, scores)(start, task, jax.random.fold_in(key, 3))
        changed = jax.tree.map(
            lambda a, b: int(np.sum((np.asarray(a) != 0) & (np.asarray(a) != np.asarray(b)))),
            done.variables, start.variables,
        )  # fmt: skip
        return done, {"moved": sum(jax.tree.leaves(changed))}

    if settings.smoke:
        yield "lenet300", "signed_constant", 0.5, *popped("lenet300", "signed_constant", 0.5)
    else:
        for name in ("lenet300", "wide"):
            yield name, "trained", 1.0, trained(name), {}
        for how, ks in KS.items():
            for k in ks:
                yield "lenet300", how, k, *popped("lenet300", how, k)
        for name in ("wide", "lenet5"):
            yield name, "signed_constant", 0.5, *popped(name, "signed_constant", 0.5)
    target = trained("small")
    yield "small", "target", None, target, {}
    stage = Approximate(0.01, 1.0 if settings.smoke else 3.0)
    done, (said,) = stage(target, tasks["small"], jax.random.fold_in(key, 4))
    yield "small", "subset_sum", None, done, {"within": said["metrics"]["within"]}


def of(
    found: Sequence[rows.Row], arm: str, k: float | None = None, net: str = "lenet300"
) -> list[float]:
    """Test accuracies in percent, by seed."""
    mine = [row for row in found if (row["net"], row["arm"], row["k"]) == (net, arm, k)]
    return [100 * row["accuracy"] for row in sorted(mine, key=lambda row: row["seed"])]


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """Accuracies, and differences in points seed by seed."""
    signed = {k: of(found, "signed_constant", k) for k in KS["signed_constant"]}
    normal = {k: of(found, "kaiming_normal", k) for k in KS["kaiming_normal"]}
    less = lambda one, other: [a - b for a, b in zip(one, other)]
    means = {k: mean(values) for k, values in signed.items()}
    best = max(means, key=lambda k: means[k])
    ahead = less(signed[0.5], normal[0.5])
    wide = of(found, "signed_constant", 0.5, "wide")
    gap = less(of(found, "trained", 1.0, "wide"), wide)
    conv = of(found, "signed_constant", 0.5, "lenet5")
    moved = sum(row["moved"] or 0 for row in found)
    off = less(of(found, "target", None, "small"), of(found, "subset_sum", None, "small"))
    within = [100 * row["within"] for row in found if row["arm"] == "subset_sum"]
    drop = less(signed[0.5], signed[0.9])
    return [
        Finding("weights that moved", "0", str(moved), moved == 0),
        Finding("best k", "about 0.5", f"{best:g}", 0.3 <= best <= 0.7),
        Finding("k = 0.5, signed constants: accuracy, %", "at least 95 (ours)",
                shown(signed[0.5]), mean(signed[0.5]) >= 95),
        Finding("k = 0.5 ahead of k = 0.9, points", "clearly", shown(drop), mean(drop) > 0.5),
        Finding("k = 1: accuracy, %", "chance", shown(signed[1.0], 1), mean(signed[1.0]) <= 30),
        Finding("k = 0.5: signed constants - normal, points", "above 0", shown(ahead),
                mean(ahead) >= 0.2),
        Finding("twice as wide - as it is, points", "above 0", shown(less(wide, signed[0.5])),
                mean(wide) > mean(signed[0.5])),
        Finding("twice as wide: trained - pruned at random, points", "towards 0", shown(gap),
                mean(gap) < 1),
        Finding("LeNet-5, k = 0.5: accuracy, %", "at least 98 (ours)", shown(conv),
                mean(conv) >= 98),
        Finding("21 products a weight: weights within 0.01, %", "100", shown(within, 1),
                mean(within) >= 99),
        Finding("subset sums: accuracy lost by the approximating net, points", "not known",
                shown(off), abs(mean(off)) <= 0.3),
    ]  # fmt: skip


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """Accuracy over the fraction kept."""
    lines = (("signed_constant", "signed constants", PRINT.slim),
             ("kaiming_normal", "normal weights", PRINT.second))  # fmt: skip
    for arm, name, colour in lines:
        ks = [k for k in KS[arm] if k < 1]
        values = [of(found, arm, k) for k in ks]
        axes.errorbar(
            [100 * k for k in ks],
            [mean(each) for each in values],
            [stdev(each) if each[1:] else 0 for each in values],
            color=colour, marker="o", markersize=3, capsize=2, linewidth=1.2, label=name,
        )  # fmt: skip
    wide = of(found, "signed_constant", 0.5, "wide")
    axes.plot([50], [mean(wide)], "D", color=PRINT.slim, label="signed constants, twice as wide")
    axes.axhline(mean(of(found, "trained", 1.0)), color=PRINT.ink, linewidth=0.8, label="trained")
    axes.set_xlabel("random weights kept, %")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, fontsize=9)


CLAIM = Claim(
    "E10: pruning is all you need [10]",
    findings,
    draw,
    "LeNet-300-100 on MNIST, scores trained for 4 epochs (the authors: 14 to 100) with a cosine "
    "from 0.4, LeNet-5 for 2. From the paper's 0.1 so few epochs end at 92 %, whatever k is "
    "(validation, seed 0). Momentum is Nesterov's.",
)


def made(settings: Settings) -> Iterator[rows.Row]:
    """A row a net."""
    tasks = tasks_of(mnist(settings))
    for seed in seeds_of(settings):
        for name, arm, k, pruned, more in nets(settings, tasks, seed):
            yield {
                "net": name,
                "arm": arm,
                "k": k,
                "seed": seed,
                "accuracy": evaluate(tasks[name], pruned.variables, "test")["accuracy"],
                **{key: more.get(key) for key in ("moved", "within")},
            }


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(RESULTS, {"claim": "E10", "refs": [10]}, settings, made(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))

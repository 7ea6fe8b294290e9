"""X9 [43]: channels whose scale is surely zero go, and nothing is trained afterwards.

Zhao et al. (CVPR 2019): 62 % of VGG-16's channels go on CIFAR-10 for 0.1 points, without
fine-tuning. Here LeNet-5 with batch norms on MNIST, with both priors.

    python -m experiments.mechanisms.x9v_variational --seeds 0 1 2

writes a line a net into `experiments/results/mechanisms/x9v.jsonl`: `arm` is dense (trained without
gates), gated (with gates, all channels there), rule (without the channels that the thresholds
prune) or half (half of the MACs, in the order of sureness); `prior` is gaussian or log_uniform,
`kept` the fraction of gated channels, `kl_kept` and `kl_pruned` mean divergences in nats.
"""

import dataclasses
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
from jprune.base import Budget, Pruned, Task
from jprune.learners.variational import PRIORS, Rule
from jprune.learners.variational import Settings as GateSettings
from jprune.recipes import Train, evaluate
from jprune.report.figures import PRINT
from jprune.stages.frame import fractions
from jprune.stages.variational import Gate, Select
from jprune.zoo import layers

RESULTS = rows.RESULTS / "mechanisms" / "x9v.jsonl"
WHOLE = {"params/fc1/kernel": 500}
"""Channels of convolutions are pruned, the units of the dense layer are not."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        seeds: of initial values, order of the data and noise.
        epochs: of every training.
        learning_rate: the largest one.
        warmup: fraction of the steps in which the weight of the divergence grows.
        train_images: of MNIST; None: all. With fewer sigma begins above the threshold of the rule.
        batch_size: of every training.
        smoke: two steps a training, on digits; writes nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: float = 2.0
    learning_rate: float = 0.1
    warmup: float = 0.5
    train_images: int | None = None
    batch_size: int = 64
    smoke: bool = False


class Normed(nnx.Module):
    """LeNet-5 with a batch norm and ReLU behind every hidden layer; small images are padded."""

    def __init__(self, shape: tuple[int, int, int], classes: int, rngs: nnx.Rngs):
        dtype = jnp.dtype("float32")
        padding = None if min(shape[:2]) < 16 else 0
        self.conv1 = layers.conv(shape[2], 20, 5, dtype, rngs, padding=padding)
        self.norm1 = layers.norm(20, rngs)
        self.conv2 = layers.conv(20, 50, 5, dtype, rngs, padding=padding)
        self.norm2 = layers.norm(50, rngs)
        after = lambda size: size // 4 if padding is None else ((size - 4) // 2 - 4) // 2
        pixels = after(shape[0]) * after(shape[1])
        self.fc1 = layers.dense(50 * pixels, 500, dtype, rngs)
        self.norm3 = layers.norm(500, rngs)
        self.fc2 = layers.dense(500, classes, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> logits."""
        x = layers.max_pool(nnx.relu(self.norm1(self.conv1(x))))
        x = layers.max_pool(nnx.relu(self.norm2(self.conv2(x))))
        x = nnx.relu(self.norm3(self.fc1(x.reshape(x.shape[0], -1))))
        return self.fc2(x)


def task_of(settings: Settings) -> Task:
    """LeNet-5 with norms on MNIST."""
    images = mnist(settings, settings.train_images)
    height, width, channels = images.shape
    shape = (height, width, channels)
    make = lambda rngs: Normed(shape, images.classes, rngs)
    return train.task(zoo.from_module("lenet5_bn", make, shape), images)


def nets(
    settings: Settings, task: Task, seed: int
) -> Iterator[tuple[str, str | None, Pruned, dict[str, Any]]]:
    """(arm, prior, net, more) for every net of a seed."""
    key = jax.random.key(seed)
    most = 2 if settings.smoke else None
    training = Train(settings.epochs, settings.learning_rate, settings.batch_size, max_steps=most)
    start = Pruned(task.init(jax.random.fold_in(key, 0)), None)
    order = jax.random.fold_in(key, 1)
    yield "dense", None, training(start, task, order)[0], {}
    for prior in PRIORS:
        whole = Budget(macs=1.0, floors=WHOLE)
        # Nothing is masked in training, so that what removal does can be seen.
        gate = Gate(training, whole, GateSettings(prior, masks=False), settings.warmup)
        gated, (seen,) = gate(start, task, order)
        yield "gated", prior, gated, {"kl": seen["metrics"]["kl"]}
        for arm, select in (
            ("rule", Select(whole, prior, Rule(), "rule")),
            ("half", Select(Budget(macs=0.5, floors=WHOLE), prior, Rule())),
        ):
            pruned, (said,) = select(gated, task, key)
            more = {name: said["metrics"][name] for name in ("kl_kept", "kl_pruned", "forced")}
            kept = np.concatenate([np.asarray(pruned.masks[name]) for name in gated.extra["mu"]])
            yield arm, prior, pruned, {**more, "kept": float(kept.mean())}


def of(found: Sequence[rows.Row], what: str, arm: str, prior: str | None = None) -> list[float]:
    """Values by seed."""
    mine = [row for row in found if (row["arm"], row["prior"]) == (arm, prior)]
    return [row[what] for row in sorted(mine, key=lambda row: row["seed"])]


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """Channels pruned, and points of accuracy seed by seed."""
    listed = []
    dense = of(found, "accuracy", "dense")
    for prior in PRIORS:
        gone = [100 * (1 - kept) for kept in of(found, "kept", "rule", prior)]
        claim = f"{prior}: channels that the rule prunes, %"
        listed.append(Finding(claim, "some (VGG-16: 62)", shown(gone, 1), min(gone) > 0))
        less = lambda one, other: [100 * (a - b) for a, b in zip(one, other)]
        ruled = of(found, "accuracy", "rule", prior)
        lost = less(ruled, dense)
        tested = any(gone)  # of a net that lost nothing, both of these hold by construction
        claim = f"{prior}: pruned - dense, no fine-tuning, points"
        verdict = mean(lost) >= -0.5 if tested else None
        listed.append(Finding(claim, "-0.1", shown(lost), verdict))
        moved = less(ruled, of(found, "accuracy", "gated", prior))
        most = max(map(abs, moved))
        claim = f"{prior}: what removal itself changes, points"
        listed.append(Finding(claim, "about 0", shown(moved), most < 0.2 if tested else None))
        kept, pruned = (of(found, name, "half", prior) for name in ("kl_kept", "kl_pruned"))
        text = f"{shown(kept)}; {shown(pruned)}"
        claim = f"{prior}, half of the MACs: mean KL of kept and of pruned channels, nats"
        listed.append(Finding(claim, "apart", text, all(a > b for a, b in zip(kept, pruned))))
        half = less(of(found, "accuracy", "half", prior), dense)
        claim = f"{prior}, half of the MACs: pruned - dense, points"
        listed.append(Finding(claim, "not known", shown(half), mean(half) >= -0.5))
    return listed


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """Accuracy over the channels kept, a prior a line."""
    for prior, colour in zip(PRIORS, (PRINT.slim, PRINT.second)):
        arms = [arm for arm in ("gated", "rule", "half") if of(found, "accuracy", arm, prior)]
        values = [[100 * value for value in of(found, "accuracy", arm, prior)] for arm in arms]
        axes.errorbar(
            [100 * mean(of(found, "kept", arm, prior)) for arm in arms],
            [mean(each) for each in values],
            [stdev(each) if each[1:] else 0 for each in values],
            color=colour, marker="o", markersize=4, capsize=2, linewidth=0, elinewidth=1,
            label=prior.replace("_", "-"),
        )  # fmt: skip
    level = 100 * mean(of(found, "accuracy", "dense"))
    axes.axhline(level, color=PRINT.ink, linewidth=0.8, label="dense")
    axes.set_xlabel("gated channels kept, %, without fine-tuning")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, fontsize=8)


CLAIM = Claim(
    "X9: variational pruning [43]",
    findings,
    draw,
    "LeNet-5 with batch norms on MNIST for 2 epochs, where the paper has CIFAR-10 and 300. The "
    "prior and the thresholds are those of a re-implementation (the authors' are not known); "
    "log sigma^2 begins at log(2.5 / N), and its learning rate with the log-uniform prior is such "
    "that the divergence alone would add 40. The latter hardly moves a mean (by 1 / (mu N) "
    "a step), so that by its algebra a channel goes only where the loss bends by less than "
    "1 / (20 N) over log mu: after two epochs none is so idle.",
)


def made(settings: Settings) -> Iterator[rows.Row]:
    """A row a net."""
    task = task_of(settings)
    for seed in seeds_of(settings):
        for arm, prior, pruned, more in nets(settings, task, seed):
            yield {
                "arm": arm,
                "prior": prior,
                "seed": seed,
                "kept": 1.0,
                "accuracy": evaluate(task, pruned.variables, "test")["accuracy"],
                **fractions(task, pruned.masks or {}),
                **more,
            }


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(RESULTS, {"claim": "X9", "refs": [43]}, settings, made(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))

"""P32 [32]: channels chosen for every image, against channels chosen once.

Gao et al. (arXiv 1810.05331): M-CifarNet, 91.37 % with 174 M MACs, has 90.54 % with 57 M at density
0.5. Here a quarter of its widths on a part of CIFAR-10, and the survey's complaint beside it: the
same nets on mosaics and on partly hidden images.

    python -m experiments.mechanisms.p32_fbs --seeds 0 1 2

writes a line a net into `experiments/results/mechanisms/p32.jsonl`: `arm` is dense (trained
as long as the others), fbs, static (the channels with the largest mean gates stay, fine-tuned as
long) or narrow (as many channels, trained from scratch as long as dense net and fine-tuning
together). `macs` is a mean over the test images; `mosaic` and `occlusion` are accuracies on
deformed ones; `apart` {layer: mean Jaccard distance of the channels of two images}.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from statistics import fmean as mean
from statistics import stdev

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from matplotlib.axes import Axes

from experiments import rows
from experiments.claims import Claim, Finding, collect, seeds_of, shown
from experiments.mechanisms._nets import cifar10
from jprune import train, zoo
from jprune.base import Budget, Pruned, Task
from jprune.cost.samples import gates_of
from jprune.learners import Boosting
from jprune.masks import apply_masks
from jprune.recipes import Evaluate, Train
from jprune.report.figures import PRINT
from jprune.stages.deformed import DEFORMATIONS, EvaluateDeformed
from jprune.stages.feature_boosting import Boost
from jprune.train.net import Net
from jprune.units import expand
from jprune.zoo import layers

RESULTS = rows.RESULTS / "mechanisms" / "p32.jsonl"
WIDTHS = (16, 16, 32, 32, 32, 48, 48, 48)
STRIDES = (1, 1, 2, 1, 1, 2, 1, 1)
ARMS = {"fbs": "slim", "static": "ink", "narrow": "muted"}


class CifarNet(nnx.Module):
    """M-CifarNet at a quarter of its widths: eight convolutions with norms, the first unpadded."""

    def __init__(self, classes: int, channels: int, rngs: nnx.Rngs):
        inputs, made = channels, []
        for outputs, stride in zip(WIDTHS, STRIDES):
            padding = "VALID" if not made else None
            made.append(
                Layer(
                    layers.conv(
                        inputs, outputs, 3, jnp.dtype("float32"), rngs, stride=stride,
                        padding=padding,
                    ),
                    layers.norm(outputs, rngs),
                )
            )  # fmt: skip
            inputs = outputs
        self.layers = layers.number(self, "layer", made)
        self.fc = layers.dense(inputs, classes, jnp.dtype("float32"), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> logits [batch, classes]."""
        return self.fc(layers.global_average(layers.chain(self, self.layers, x)))


class Layer(nnx.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, conv: nnx.Conv, norm: nnx.Module):
        self.conv, self.norm = conv, norm

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> [batch, h', w', outputs]."""
        return nnx.relu(self.norm(self.conv(x)))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        seeds: of initial values, order of the data and draws.
        epochs: of the dense net.
        finetune_epochs: of gates or masks.
        learning_rate: the largest one.
        density: of winners.
        drop: of the density, from one part of the training to the next.
        train_images: of the training split.
        batch_size: of all trainings.
        smoke: three steps a training, on digits; writes nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: float = 8.0
    finetune_epochs: float = 8.0
    learning_rate: float = 0.05
    density: float = 0.5
    drop: float = 0.5
    train_images: int = 5_000
    batch_size: int = 32
    smoke: bool = False


class Nets:
    """The nets of one seed."""

    def __init__(self, settings: Settings, task: Task, seed: int):
        self.settings, self.task, self.key = settings, task, jax.random.key(seed)
        self.start = Pruned(task.init(jax.random.fold_in(self.key, 0)), None)
        self.apart: dict[str, float] = {}

    def training(self, epochs: float) -> Train:
        """So many epochs."""
        given, most = self.settings, 3 if self.settings.smoke else None
        return Train(epochs, given.learning_rate, given.batch_size, max_steps=most)

    def masked(self, start: Pruned, masks: dict[str, np.ndarray], epochs: float) -> Pruned:
        """A net of fixed channels, trained."""
        variables = apply_masks(start.variables, expand(Net(self.task).groups, masks))
        begun = start._replace(variables=variables, masks=masks)
        return self.training(epochs)(begun, self.task, jax.random.fold_in(self.key, 3))[0]

    def mean_gates(self, pruned: Pruned) -> dict[str, np.ndarray]:
        """{layer: [outputs]} over training images, and how far apart images are."""
        run = jax.jit(gates_of(self.task.fn, Net(self.task).groups))
        batches = itertools.islice(self.task.data.batches("train", 100), 20)
        seen = [run(pruned.variables, batch["image"])[1] for batch in batches]
        gates = {name: np.concatenate([np.asarray(s[name]) for s in seen]) for name in seen[0]}
        self.apart = {name: distance(gate[:200] > 0) for name, gate in gates.items()}
        return {name: gate.mean(axis=0) for name, gate in gates.items()}

    def __iter__(self) -> Iterator[tuple[str, Pruned]]:
        settings = self.settings
        dense, _ = self.training(settings.epochs)(
            self.start, self.task, jax.random.fold_in(self.key, 1)
        )
        again = self.training(settings.finetune_epochs)
        yield "dense", again(dense, self.task, jax.random.fold_in(self.key, 3))[0]
        budget = Budget(density=settings.density)
        stage = Boost(again, budget, Boosting(start="scale"), drop=settings.drop)
        boosted, _ = stage(dense, self.task, jax.random.fold_in(self.key, 2))
        gates = self.mean_gates(boosted)
        yield "fbs", boosted
        kept = {name: int(np.ceil(settings.density * len(gate))) for name, gate in gates.items()}
        ranks = {name: np.argsort(np.argsort(-gate)) for name, gate in gates.items()}
        best = {name: ranks[name] < kept[name] for name in gates}
        yield "static", self.masked(dense, best, settings.finetune_epochs)
        first = {name: np.arange(len(gate)) < kept[name] for name, gate in gates.items()}
        total = settings.epochs + settings.finetune_epochs
        yield "narrow", self.masked(self.start, first, total)


def distance(supports: np.ndarray) -> float:
    """Mean Jaccard distance of all pairs of images, supports being bool [images, outputs]."""
    there = supports.astype(float)
    both = there @ there.T
    sizes = there.sum(axis=1)
    either = sizes[:, None] + sizes[None] - both
    pairs = np.triu_indices(len(there), 1)
    return float((1 - both / np.maximum(either, 1))[pairs].mean())


def measured(nets: Nets, pruned: Pruned) -> rows.Row:
    """Accuracy and MACs, on images as they are and on deformed ones."""
    evaluate = lambda stage: stage(pruned, nets.task, nets.key)[1][0]["metrics"]
    seen = evaluate(Evaluate("test"))
    deformed = {name: evaluate(EvaluateDeformed(name)) for name in DEFORMATIONS}
    return {
        "accuracy": seen["accuracy"],
        "macs": seen["macs"],
        "params": seen["params"],
        **{name: found["accuracy"] for name, found in deformed.items()},
    }


def of(found: Sequence[rows.Row], arm: str, what: str) -> list[float]:
    """Values by seed."""
    mine = sorted((row for row in found if row["arm"] == arm), key=lambda row: row["seed"])
    return [row[what] for row in mine]


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """Points of accuracy, seed by seed."""

    def points(arm: str, other: str, what: str = "accuracy") -> list[float]:
        return [100 * (a - b) for a, b in zip(of(found, arm, what), of(found, other, what))]

    lost, ahead = points("fbs", "dense"), points("fbs", "static")
    shares = [a / b for a, b in zip(of(found, "fbs", "macs"), of(found, "dense", "macs"))]
    moving = [mean(d > 0.05 for d in row["apart"].values()) for row in found if row["arm"] == "fbs"]
    listed = [
        Finding("fbs - dense >= -2, points", "-0.8", shown(lost), mean(lost) >= -2),
        Finding("fbs - static >= 0.5, points", "-", shown(ahead), mean(ahead) >= 0.5),
        Finding("fbs - narrow, points", "-", shown(points("fbs", "narrow")), None),
        Finding("MACs kept, mean over images, <= 0.35", "0.33", shown(shares, 3),
                mean(shares) <= 0.35),
        Finding("layers whose channels differ by more than 0.05 between images: half or more",
                "-", shown(moving), mean(moving) >= 0.5),
    ]  # fmt: skip
    for name in DEFORMATIONS:
        gap = points("fbs", "static", name)
        listed.append(Finding(f"{name}: fbs - static, points", "-", shown(gap), None))
    return listed


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """Accuracy of every arm, on images as they are and deformed."""
    kinds = ("accuracy", *DEFORMATIONS)
    for number, (arm, colour) in enumerate({"dense": "second", **ARMS}.items()):
        values = [[100 * value for value in of(found, arm, kind)] for kind in kinds]
        axes.bar(
            [place + 0.2 * number for place in range(len(kinds))],
            [mean(each) for each in values],
            0.18,
            yerr=[stdev(each) if each[1:] else 0 for each in values],
            color=getattr(PRINT, colour),
            label=arm,
        )
    axes.set_xticks([place + 0.3 for place in range(len(kinds))], ["as they are", *DEFORMATIONS])
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, fontsize=8)


CLAIM = Claim(
    "P32: FBS [32]",
    findings,
    draw,
    "M-CifarNet with a quarter of its widths, without dropout, on 5,000 images of CIFAR-10. Half "
    "of FBS's training is at density 1 and half at 0.5, and gates begin where the dense net is "
    "itself. With the paper's parts of 0.1, little more than an epoch each, seed 0 ends at 58.3 %, "
    "and with the authors' gates, which begin at 1, at 56.8 % (at 58.8 % in two parts).",
)


def task_of(settings: Settings) -> Task:
    """CifarNet on its images."""
    images = cifar10(settings)
    height, width, channels = images.shape
    net = zoo.from_module(
        "cifarnet", lambda rngs: CifarNet(10, channels, rngs), (height, width, channels)
    )
    return train.task(net, images)


def made(settings: Settings) -> Iterator[rows.Row]:
    """A row a net."""
    task = task_of(settings)
    for seed in seeds_of(settings):
        nets = Nets(settings, task, seed)
        for arm, pruned in nets:
            apart = nets.apart if arm == "fbs" else {}
            yield {"arm": arm, "seed": seed, "apart": apart, **measured(nets, pruned)}


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(RESULTS, {"claim": "P32", "refs": [32]}, settings, made(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))

"""X9 [52]: depth, width and resolution together, where a polynomial of three dimensions says.

Wang et al. (arXiv 2010.04879): a polynomial of low rank, fitted along the axes, says how good nets
off the axes are, and its optimum under a budget beats pruning in one dimension. Here ResNet-8, with
three blocks, on 5,000 images of CIFAR-10, images of 32 to 16 pixels, at most half of the MACs.

    python -m experiments.mechanisms.x9_three_dimensions --seeds 0 1 2

writes a line a net into `experiments/results/mechanisms/x9.jsonl`: `part` is point (the nets that
are fitted), held_out (nets off the axes: `accuracy` and `predicted`), optimum (the recipe's net) or
axis (one dimension alone: its largest net under the same budget, where whole blocks and sides in
multiples of 4 leave a part of it unused: `macs`); accuracies are those of the validation split, and
of the test split for the last two.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from statistics import fmean as mean

import jax
import numpy as np
import tyro
from matplotlib.axes import Axes

from experiments import rows
from experiments.claims import Claim, Finding, collect, seeds_of, shown
from experiments.mechanisms._nets import cifar10, task_of
from jprune import errors
from jprune.base import Budget, Pruned, Task
from jprune.recipes import Evaluate, Save, Train, run
from jprune.report.figures import PRINT
from jprune.search import fit
from jprune.stages.dimensions import (
    DIMENSIONS,
    Narrow,
    Observe,
    Optimum,
    fewer_units,
    seen_of,
    where,
)
from jprune.train.net import Net
from jprune.train.resolution import at_resolution

RESULTS = rows.RESULTS / "mechanisms" / "x9.jsonl"
LEVELS = {"depth": (2 / 3, 1 / 3), "width": (0.75, 0.5), "resolution": (0.875, 0.75, 0.625, 0.5)}
OFF_AXES = ((2 / 3, 0.75, 0.75), (1.0, 0.75, 0.625), (2 / 3, 0.5, 0.875))
COLOURS = {"point": "muted", "held_out": "second"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        seeds: of initial values, order of the data and draws.
        epochs: of the dense net.
        probe_epochs: of every net that is fitted or held out.
        finetune_epochs: of the nets that are compared.
        learning_rate: the largest one; a tenth of it behind the dense net.
        train_images: of the training split.
        macs: the budget.
        degree: of the polynomial; its rank is 1.
        smoke: two steps a training, on digits; writes nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: float = 12.0
    probe_epochs: float = 2.0
    finetune_epochs: float = 5.0
    learning_rate: float = 0.1
    train_images: int = 5_000
    macs: float = 0.5
    degree: int = 2
    smoke: bool = False


class Arms:
    """The nets of one seed."""

    def __init__(self, settings: Settings, task: Task, seed: int):
        self.settings, self.task, self.key = settings, task, jax.random.key(seed)
        self.budget = Budget(macs=settings.macs)
        self.multiple = 2 if settings.smoke else 4

    def training(self, epochs: float, rate: float = 0.1) -> Train:
        most = 2 if self.settings.smoke else None
        return Train(epochs, rate * self.settings.learning_rate, 64, max_steps=most)

    def narrow(self, axis: str, level: float, anew: bool) -> Narrow:
        return Narrow(axis, level, self.budget, self.multiple, anew)

    def __iter__(self) -> Iterator[rows.Row]:
        given, task = self.settings, self.task
        begun = Pruned(task.init(jax.random.fold_in(self.key, 0)), None)
        recipe = (self.training(given.epochs, 1.0), Save("dense"))
        dense, _ = run(recipe, begun, task, jax.random.fold_in(self.key, 1))
        probe = self.training(given.probe_epochs)
        along = [
            (self.narrow(axis, level, not number), probe, Observe())
            for axis, levels in LEVELS.items()
            for number, level in enumerate(levels[:1] if given.smoke else levels)
        ]
        stages = [stage for step in along for stage in step]
        done, _ = run(stages, dense, task, jax.random.fold_in(self.key, 2))
        points = np.asarray(done.extra)
        for point in points.tolist():
            yield {"part": "point", **dict(zip((*DIMENSIONS, "accuracy"), point))}
        yield from self.held_out(dense, points)
        yield from self.compared(dense._replace(extra=points))

    def held_out(self, dense: Pruned, points: np.ndarray) -> Iterator[rows.Row]:
        """Nets that differ in all dimensions: narrowed in one go, trained as often as a probe."""
        given = self.settings
        model = fit(points[:, :3], points[:, 3] / points[0, 3], given.degree)
        for number, levels in enumerate(OFF_AXES[:1] if given.smoke else OFF_AXES):
            axes = [(axis, level) for axis, level in zip(DIMENSIONS, levels) if level < 1]
            stages = [self.narrow(a, level, not n) for n, (a, level) in enumerate(axes)]
            recipe = (*stages, self.training(given.probe_epochs))
            net, _ = run(recipe, dense, self.task, jax.random.fold_in(self.key, 10 + number))
            point = seen_of(self.task, net)
            predicted = points[0, 3] * float(model(point[None, :3])[0])
            named = dict(zip((*DIMENSIONS, "accuracy"), point.tolist()))
            yield {"part": "held_out", **named, "predicted": predicted}

    def compared(self, known: Pruned) -> Iterator[rows.Row]:
        """The optimum, and one dimension alone, each the largest that is under the budget."""
        given, key = self.settings, jax.random.fold_in(self.key, 20)
        finetune = self.training(given.finetune_epochs)
        net, (seen,) = Optimum(self.budget, self.multiple, given.degree)(known, self.task, key)
        yield self.tuned("optimum", "all", net, finetune) | {
            "predicted": seen["metrics"]["predicted"]
        }
        for axis in DIMENSIONS[:1] if given.smoke else DIMENSIONS:
            alone = self.alone(axis, known)
            if alone is not None:
                yield self.tuned("axis", axis, alone, finetune)

    def alone(self, axis: str, known: Pruned) -> Pruned | None:
        """The largest net under the budget that is smaller in one dimension; None: no such net."""
        dense = Pruned(known.saved["dense"], None, None, known.saved)
        if axis == "width":
            masks = fewer_units(self.task, dense, self.budget, {})
            return dense._replace(masks=masks)
        for level in np.linspace(1, 0, 33)[1:-1].tolist():
            try:
                net, _ = self.narrow(axis, level, True)(dense, self.task, self.key)
            except errors.ArgumentError:
                return None
            if self.cost(net) <= self.settings.macs:
                return net
        return None

    def cost(self, net: Pruned) -> float:
        """MACs, as a fraction of the dense net's."""
        at = at_resolution(self.task, net)
        return float(Net(at).cost(net.masks or {}).macs) / float(Net(self.task).cost({}).macs)

    def tuned(self, part: str, arm: str, net: Pruned, finetune: Train) -> rows.Row:
        """A net that is compared, fine-tuned."""
        net, _ = finetune(net, self.task, jax.random.fold_in(self.key, 30))
        _, (seen,) = Evaluate("test")(net, self.task, self.key)
        named = dict(zip(DIMENSIONS, where(self.task, net)))
        accuracy = seen["metrics"]["accuracy"]
        return {"part": part, "arm": arm, **named, "macs": self.cost(net), "accuracy": accuracy}


def of(found: Sequence[rows.Row], part: str) -> dict[int, list[rows.Row]]:
    """{seed: rows of a part}."""
    mine = [row for row in found if row["part"] == part]
    seeds = sorted({row["seed"] for row in mine})
    return {seed: [row for row in mine if row["seed"] == seed] for seed in seeds}


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """Points of accuracy, seed by seed."""
    off = [
        100 * max(abs(row["predicted"] - row["accuracy"]) for row in mine)
        for mine in of(found, "held_out").values()
    ]
    claim = "predicted - measured off the axes, largest of three nets, <= 1.5 points"
    listed = [Finding(claim, "-", shown(off, 1), mean(off) <= 1.5)]
    best = {row["seed"]: row for row in found if row["part"] == "optimum"}
    for axis in DIMENSIONS:
        alone = [row for row in found if row["part"] == "axis" and row["arm"] == axis]
        ahead = [100 * (best[row["seed"]]["accuracy"] - row["accuracy"]) for row in alone]
        if ahead:
            claim = (
                f"optimum ({macs_of(best.values())} of the MACs) - {axis} alone ({macs_of(alone)}) "
                ">= 0, points of test accuracy"
            )
            listed.append(Finding(claim, "above 0", shown(ahead, 1), mean(ahead) >= 0))
    return listed


def macs_of(found: Collection[rows.Row]) -> str:
    """MACs of some nets in percent of the dense net's, from the least to the most."""
    ends = [f"{100 * end(row['macs'] for row in found):.1f}" for end in (min, max)]
    return " to ".join(dict.fromkeys(ends)) + " %"


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """Accuracy over the model's cost, points and held-out nets."""
    for part, colour in COLOURS.items():
        mine = [row for row in found if row["part"] == part]
        cost = [r["depth"] * r["width"] ** 2 * r["resolution"] ** 2 for r in mine]
        measured = [100 * row["accuracy"] for row in mine]
        axes.plot(cost, measured, "o", color=getattr(PRINT, colour), markersize=4,
                  label={"point": "fitted", "held_out": "held out"}[part])  # fmt: skip
        if part == "held_out":
            axes.plot(cost, [100 * row["predicted"] for row in mine], "x", color=PRINT.slim,
                      markersize=6, label="predicted")  # fmt: skip
    axes.set_xlabel("depth x width^2 x resolution^2")
    axes.set_ylabel("validation accuracy, %")
    axes.legend(frameon=False, fontsize=8)


CLAIM = Claim(
    "X9: three dimensions [52]",
    findings,
    draw,
    "ResNet-8 on 5,000 images of CIFAR-10; the polynomial has rank 1 and degree 2. Each net is the "
    "largest of its kind under half of the MACs; whole blocks, and sides in multiples of 4, leave "
    "a part of that unused.",
)


def made(settings: Settings) -> Iterator[rows.Row]:
    """A row a net."""
    task = task_of("resnet8", cifar10(settings))
    for seed in seeds_of(settings):
        for part in Arms(settings, task, seed):
            yield {"seed": seed, "budget": {"macs": settings.macs}, **part}


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(RESULTS, {"claim": "X9", "refs": [52]}, settings, made(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))

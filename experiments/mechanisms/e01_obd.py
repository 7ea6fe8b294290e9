"""E1 [1]: OBD's saliencies tell what a deletion costs, and its order beats that of magnitude.

LeCun, Denker, Solla (NIPS 1989), a digit net of 2,578 free parameters: predicted and measured error
agree until 30 % of them are deleted; deletion by saliency beats deletion by magnitude clearly, and
random deletion is off the scale; with training after it, errors stay the same until 60 % are gone.
Here LeNet-300-100 on MNIST, with cross entropy in place of the squared error and the Gauss-Newton
or Hutchinson diagonal in place of the recursion, on 10,000 training images.

    python -m experiments.mechanisms.e01_obd --seeds 0 1 2

writes a line a net into `experiments/results/mechanisms/e01.jsonl`: `arm` is dense, obd (by
Gauss-Newton), obd_hutchinson, obd_recursion, magnitude or random, all pruned at once and without
training, or obd_iterative (30 % of what is left, then training); `kept` is the fraction of weights,
`loss` that of the training set, `accuracy` that of the test set, `predicted` the sum of the
deleted weights' saliencies.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from statistics import fmean as mean
from statistics import geometric_mean, stdev

import jax
import numpy as np
import tyro
from matplotlib.axes import Axes

from experiments import rows
from experiments.claims import Claim, Finding, collect, seeds_of, shown
from experiments.mechanisms._nets import mnist, task_of
from jprune import allocate, criteria, curvature, run_criterion
from jprune.base import Budget, Criterion, Groups, Pruned, Scores, Task, is_none
from jprune.masks import apply_masks
from jprune.recipes import Prune, Train, evaluate
from jprune.report.figures import PRINT

RESULTS = rows.RESULTS / "mechanisms" / "e01.jsonl"
KEPT = (0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)
ROUNDS = 7
LAST = ("obd_iterative", round(0.7**ROUNDS, 6))
"""Arm and fraction kept of the last net of a seed."""
STYLES = {
    "obd": ("OBD, Gauss-Newton", "slim", "-"),
    "obd_hutchinson": ("OBD, Hutchinson", "slim", "--"),
    "obd_recursion": ("OBD, recursion", "slim", ":"),
    "magnitude": ("magnitude", "second", "-"),
    "random": ("random", "muted", "-"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        seeds: of initial values, order of the data and draws.
        epochs: of the dense net.
        between: epochs after every round of the iterative arm.
        learning_rate: the largest one.
        weight_decay: of all training.
        images: that curvature is measured on.
        probes: of a sampled diagonal, a batch of 250.
        smoke: two steps a training, one batch, one level, on digits; writes nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: float = 8.0
    between: float = 2.0
    learning_rate: float = 0.05
    weight_decay: float = 1e-4
    images: int = 10_000
    probes: int = 16
    smoke: bool = False


class Nets:
    """The nets of one seed."""

    def __init__(self, settings: Settings, task: Task, seed: int):
        self.settings, self.task = settings, task
        self.key = jax.random.key(seed)
        most = 2 if settings.smoke else None
        self.training = Train(
            settings.epochs,
            settings.learning_rate,
            weight_decay=settings.weight_decay,
            max_steps=most,
        )
        count = 1 if settings.smoke else settings.images // 250
        batches = task.data.batches("train", 250, seed=seed)
        self.batches = list(itertools.islice(batches, count))

    def criteria(self) -> dict[str, Criterion]:
        """By arm."""
        fn, loss, probes = self.task.fn, self.task.loss, self.settings.probes
        key = jax.random.fold_in(self.key, 2)
        of = lambda estimator: criteria.obd(fn, loss, estimator, key)
        return {
            "obd": of(curvature.gauss_newton(probes)),
            "obd_hutchinson": of(curvature.hutchinson(probes)),
            "obd_recursion": of(curvature.recursion()),
            "magnitude": criteria.magnitude(),
            "random": criteria.random(key),
        }

    def prune(self, pruned: Pruned, scores: Scores, kept: float) -> tuple[Pruned, float]:
        """The net with so many weights left, and the sum of the scores that went."""
        stage = Prune(_unused, allocate.global_topk, Budget(density=kept), per="weight")
        masks = stage.of_weights(pruned, self.task, scores)
        went = jax.tree.map(
            lambda mask, score: 0.0 if mask is None else float(np.sum(score, where=~mask)),
            masks,
            scores,
            is_leaf=is_none,
        )
        variables = apply_masks(pruned.variables, masks)
        return pruned._replace(variables=variables, masks=masks), sum(jax.tree.leaves(went))

    def __iter__(self) -> Iterator[tuple[str, float, Pruned, float | None]]:
        start = Pruned(self.task.init(jax.random.fold_in(self.key, 0)), None)
        dense, _ = self.training(start, self.task, jax.random.fold_in(self.key, 1))
        yield "dense", 1.0, dense, None
        for arm, criterion in self.criteria().items():
            scores = run_criterion(criterion, dense.variables, self.batches)
            for kept in KEPT[:1] if self.settings.smoke else KEPT:
                pruned, went = self.prune(dense, scores, kept)
                yield arm, kept, pruned, went if arm.startswith("obd") else None
        yield from self.iterated(dense)

    def iterated(self, pruned: Pruned) -> Iterator[tuple[str, float, Pruned, None]]:
        """Deletion of 30 % of what is left and training, in turn."""
        criterion = self.criteria()["obd"]
        again = dataclasses.replace(self.training, epochs=self.settings.between)
        for number in range(1, (1 if self.settings.smoke else ROUNDS) + 1):
            scores = run_criterion(criterion, pruned.variables, self.batches)
            pruned, _ = self.prune(pruned, scores, 0.7**number)
            pruned, _ = again(pruned, self.task, jax.random.fold_in(self.key, 10 + number))
            yield "obd_iterative", 0.7**number, pruned, None


def _unused(task: Task, groups: Groups, key: jax.Array) -> Criterion:
    """The scores are made before: one set of them serves all levels."""
    raise NotImplementedError


def whole(found: Sequence[rows.Row]) -> list[rows.Row]:
    """The newest row of every net, of seeds that were run to the end."""
    newest = {(row["arm"], round(row["kept"], 6), row["seed"]): row for row in found}
    ended = {seed for arm, kept, seed in newest if (arm, kept) == LAST}
    return [row for row in newest.values() if row["seed"] in ended]


def of(found: Sequence[rows.Row], arm: str, kept: float, what: str) -> list[float]:
    """Values by seed."""
    mine = [row for row in found if row["arm"] == arm and abs(row["kept"] - kept) < 1e-6]
    return [row[what] for row in sorted(mine, key=lambda row: row["seed"])]


def increases(found: Sequence[rows.Row], arm: str, kept: float) -> list[float]:
    """Of the training loss, by seed."""
    dense = of(found, "dense", 1.0, "loss")
    return [after - before for after, before in zip(of(found, arm, kept, "loss"), dense)]


def findings(found: Sequence[rows.Row]) -> list[Finding]:
    """Ratios and differences seed by seed."""
    found = whole(found)
    seeds = range(len(of(found, "dense", 1.0, "loss")))
    better = [
        sum(
            of(found, "obd", kept, "loss")[s] <= of(found, "magnitude", kept, "loss")[s]
            for kept in KEPT
        )
        for s in seeds
    ]
    band = [
        geometric_mean(
            of(found, "magnitude", kept, "loss")[s] / of(found, "obd", kept, "loss")[s]
            for kept in (0.4, 0.3, 0.2, 0.15, 0.1)
        )
        for s in seeds
    ]
    off = [
        a / b for a, b in zip(of(found, "random", 0.4, "loss"), of(found, "magnitude", 0.4, "loss"))
    ]
    listed = [
        Finding(
            "levels of 8 at which OBD's training loss is no higher than magnitude's",
            "all along (ours: 5 or more)",
            shown(better, 1),
            mean(better) >= 5,
        ),
        Finding(
            "60 to 90 % deleted: loss of magnitude over that of OBD",
            "clearly above 1 (ours: 1.3)",
            shown(band, 2),
            mean(band) >= 1.3,
        ),
        Finding(
            "60 % deleted: loss of random over that of magnitude",
            "off the scale",
            shown(off, 1),
            mean(off) >= 5,
        ),
    ]
    for kept, paper in ((0.8, "the same up to 30 %"), (0.6, ""), (0.4, "apart")):
        ratio = [
            real / (before + said)
            for real, before, said in zip(
                of(found, "obd", kept, "loss"),
                of(found, "dense", 1.0, "loss"),
                of(found, "obd", kept, "predicted"),
            )
        ]
        near = abs(mean(ratio) - 1) <= 0.05
        claim = f"{100 * (1 - kept):.0f} % deleted: loss measured over loss predicted"
        listed.append(Finding(claim, paper, shown(ratio, 3), near == (kept > 0.5)))
    gains = [
        real / said
        for real, said in zip(increases(found, "obd", 0.4), of(found, "obd", 0.4, "predicted"))
    ]
    claim = "60 % deleted: increase measured over increase predicted"
    listed.append(Finding(claim, "at most 2 (ours)", shown(gains, 1), mean(gains) <= 2))
    dense = of(found, "dense", 1.0, "accuracy")
    for number, paper in ((2, "0 up to 60 % deleted"), (4, "more than x2"), (7, "")):
        after = of(found, "obd_iterative", 0.7**number, "accuracy")
        lost = [100 * (b - a) for a, b in zip(after, dense)]
        listed.append(
            Finding(
                f"{100 * (1 - 0.7**number):.0f} % deleted in {number} rounds with training: "
                "accuracy lost, points",
                paper,
                shown(lost, 2),
                mean(lost) <= 0.3,
            )
        )
    return listed


def draw(found: Sequence[rows.Row], axes: Axes) -> None:
    """Training loss over the weights deleted, and what OBD predicted."""
    found = whole(found)
    deleted = [100 * (1 - kept) for kept in KEPT]
    for arm, (name, colour, line) in STYLES.items():
        values = [of(found, arm, kept, "loss") for kept in KEPT]
        axes.errorbar(
            deleted,
            [mean(each) for each in values],
            [stdev(each) if each[1:] else 0 for each in values],
            color=getattr(PRINT, colour), linestyle=line, marker="o", markersize=3, capsize=2,
            linewidth=1.2, label=name,
        )  # fmt: skip
    dense = mean(of(found, "dense", 1.0, "loss"))
    said = [dense + mean(of(found, "obd", kept, "predicted")) for kept in KEPT]
    axes.plot(deleted, said, color=PRINT.ink, linewidth=0.8, label="predicted by Gauss-Newton")
    axes.axhline(dense, color=PRINT.line, linewidth=0.8, label="dense")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(top=20)  # room for the legend
    axes.set_xlabel("weights deleted, %, without training")
    axes.set_ylabel("training loss, nats")
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=3)


CLAIM = Claim(
    "E1: optimal brain damage [1]",
    findings,
    draw,
    "LeNet-300-100 on MNIST with cross entropy, where the paper has a net of its own and the "
    "squared error; curvature on 10,000 training images. The loss is that of the training set, "
    "which is what OBD predicts. Of the increase it sees little: probably because the net is at a "
    "minimum of loss and weight decay together, so that the loss alone still has a slope, and "
    "because deletions add to each other. The Gauss-Newton diagonal and OBD's own recursion rank "
    "much alike. The diagonal of the Hessian itself, by Hutchinson, does not serve: for 40 % of "
    "the weights or more the estimate is 0 or below (in truth or by its noise, which was not told "
    "apart), and clipped at 0 they go first, whatever their size. From 85 % on magnitude is level "
    "with OBD and then ahead, as long as nothing is trained.",
)


def made(settings: Settings) -> Iterator[rows.Row]:
    """A row a net."""
    task = task_of("lenet300", mnist(settings))
    for seed in seeds_of(settings):
        for arm, kept, pruned, predicted in Nets(settings, task, seed):
            yield {
                "arm": arm,
                "kept": kept,
                "seed": seed,
                "predicted": predicted,
                "loss": evaluate(task, pruned.variables, "train")["loss"],
                "accuracy": evaluate(task, pruned.variables, "test")["accuracy"],
            }


def main(settings: Settings) -> list[rows.Row]:
    """Runs all seeds and returns the rows."""
    return collect(RESULTS, {"claim": "E1", "refs": [1]}, settings, made(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))

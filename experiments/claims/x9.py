"""X9 [52]: depth, width and resolution together, where a polynomial of three dimensions says.

Wang et al. (arXiv 2010.04879): a polynomial of low rank, fitted along the axes, says how good nets
off the axes are, and its optimum under a budget beats pruning in one dimension. Here ResNet-8, with
three blocks, on 5,000 images of CIFAR-10, images of 32 to 16 pixels, at most half of the MACs.

Of a row, `part` is point (the nets that are fitted), held_out (nets off the axes: `accuracy` and
`predicted`), optimum (the recipe's net) or axis (one dimension alone: its largest net under the
same budget, where whole blocks and sides in multiples of 4 leave a part of it unused: `macs`);
accuracies are those of the validation split, and of the test split for the last two.
"""

import dataclasses
import itertools
from collections.abc import Collection, Iterator

import numpy as np
from matplotlib.axes import Axes

from experiments.claims.claim import Case, Claim, Made, Net
from experiments.claims.plots import Style, finish, line
from experiments.claims.statements import Rows, Statement, Value, at_least, at_most, gap, select
from experiments.rows import Row
from jprune import errors
from jprune.base import Budget, Pruned
from jprune.recipes import Evaluate, Save, Train, run
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
from jprune.train.net import Net as TaskNet
from jprune.train.task import at_resolution

LEVELS = {"depth": (2 / 3, 1 / 3), "width": (0.75, 0.5), "resolution": (0.875, 0.75, 0.625, 0.5)}
OFF_AXES = ((2 / 3, 0.75, 0.75), (1.0, 0.75, 0.625), (2 / 3, 0.5, 0.875))
BUDGET = Budget(macs=0.5)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        epochs: of the dense net.
        probe_epochs: of every net that is fitted or held out.
        finetune_epochs: of the nets that are compared.
        learning_rate: the largest one; a tenth of it behind the dense net.
        train_images: of the training split.
        degree: of the polynomial; its rank is 1.
    """

    epochs: float = 12.0
    probe_epochs: float = 2.0
    finetune_epochs: float = 5.0
    learning_rate: float = 0.1
    train_images: int = 5_000
    degree: int = 2


def training(case: Case[Settings], epochs: float, rate: float = 0.1) -> Train:
    """So many epochs, at a fraction of the rate."""
    return case.train(epochs, rate * case.settings.learning_rate, 64)


def multiple(case: Case) -> int:
    """What sides of images are multiples of."""
    return 2 if case.smoke else 4


def narrow(case: Case, axis: str, level: float, anew: bool) -> Narrow:
    """Makes a net smaller in one dimension."""
    return Narrow(axis, level, BUDGET, multiple(case), anew)


def arms(case: Case[Settings]) -> Iterator[Made]:
    """Nets along the axes, off them, the optimum, and one dimension alone."""
    settings, task = case.settings, case.task
    recipe = (training(case, settings.epochs, 1.0), Save("dense"))
    dense, _ = run(recipe, case.start, task, case.fold(1))
    probe = training(case, settings.probe_epochs)
    stages = [
        stage
        for axis, levels in LEVELS.items()
        for number, level in enumerate(case.first(levels))
        for stage in (narrow(case, axis, level, not number), probe, Observe())
    ]
    done, _ = run(stages, dense, task, case.fold(2))
    points = np.asarray(done.extra)
    made = itertools.chain(
        ({"part": "point", **named(point)} for point in points),
        held_out(case, dense, points),
        compared(case, dense._replace(extra=points)),
    )
    for row in made:
        yield {"budget": {"macs": BUDGET.macs}, **row}, None


def named(point: np.ndarray) -> Row:
    """A point of the space of nets, with its accuracy."""
    return dict(zip((*DIMENSIONS, "accuracy"), point.tolist()))


def held_out(case: Case[Settings], dense: Pruned, points: np.ndarray) -> Iterator[Row]:
    """Nets that differ in all dimensions: narrowed in one go, trained as often as a probe."""
    model = fit(points[:, :3], points[:, 3] / points[0, 3], case.settings.degree)
    for number, levels in enumerate(case.first(OFF_AXES)):
        axes = [(axis, level) for axis, level in zip(DIMENSIONS, levels) if level < 1]
        stages = [narrow(case, axis, level, not n) for n, (axis, level) in enumerate(axes)]
        recipe = (*stages, training(case, case.settings.probe_epochs))
        net, _ = run(recipe, dense, case.task, case.fold(10 + number))
        point = seen_of(case.task, net)
        predicted = points[0, 3] * float(model(point[None, :3])[0])
        yield {"part": "held_out", **named(point), "predicted": predicted}


def compared(case: Case[Settings], dense: Pruned) -> Iterator[Row]:
    """The optimum, and one dimension alone, each the largest that is under the budget."""
    stage = Optimum(BUDGET, multiple(case), case.settings.degree)
    net, (record,) = stage(dense, case.task, case.fold(20))
    predicted = record["metrics"]["predicted"]
    yield {"part": "optimum", "arm": "all", **tuned(case, net), "predicted": predicted}
    for axis in case.first(DIMENSIONS):
        net = alone(case, axis, dense)
        if net is not None:
            yield {"part": "axis", "arm": axis, **tuned(case, net)}


def alone(case: Case, axis: str, dense: Pruned) -> Pruned | None:
    """The largest net under the budget that is smaller in one dimension; None: no such net."""
    dense = Pruned(dense.saved["dense"], None, None, dense.saved)
    if axis == "width":
        return dense._replace(masks=fewer_units(case.task, dense, BUDGET, {}))
    for level in np.linspace(1, 0, 33)[1:-1].tolist():
        try:
            net, _ = narrow(case, axis, level, True)(dense, case.task, case.key)
        except errors.ArgumentError:
            return None
        if cost(case, net) <= 0.5:
            return net
    return None


def cost(case: Case, net: Pruned) -> float:
    """MACs at the net's resolution, as a fraction of the dense net's."""
    at = at_resolution(case.task, net)
    return float(TaskNet(at).cost(net.masks or {}).macs) / float(TaskNet(case.task).cost({}).macs)


def tuned(case: Case[Settings], net: Pruned) -> Row:
    """A net that is compared, fine-tuned."""
    net = case.apply(net, 30, training(case, case.settings.finetune_epochs))
    _, (record,) = Evaluate("test")(net, case.task, case.key)
    sides = dict(zip(DIMENSIONS, where(case.task, net)))
    return {**sides, "macs": cost(case, net), "accuracy": record["metrics"]["accuracy"]}


def off(rows: Rows) -> dict[int, float]:
    """The largest error of the polynomial off the axes, in points, by seed."""
    worst: dict[int, float] = {}
    for row in select(rows, part="held_out"):
        error = 100 * abs(row["predicted"] - row["accuracy"])
        worst[row["seed"]] = max(error, worst.get(row["seed"], 0.0))
    return worst


def macs_of(rows: Collection[Row]) -> str:
    """MACs of some nets in percent of the dense net's, from the least to the most."""
    ends = [f"{100 * end(row['macs'] for row in rows):.1f}" for end in (min, max)]
    return " to ".join(dict.fromkeys(ends)) + " %"


def against(axis: str) -> Statement:
    """The optimum and one dimension alone, where that has a net under the budget."""
    axis_ = {"part": "axis", "arm": axis}

    def text(rows: Rows) -> str:
        best, alone = macs_of(select(rows, part="optimum")), macs_of(select(rows, **axis_))
        return (
            f"optimum ({best} of the MACs) - {axis} alone ({alone}) >= 0, points of test accuracy"
        )

    return at_least(text, "above 0", gap("accuracy", {"part": "optimum"}, axis_), 0, digits=1)


def plot(rows: Rows, axes: Axes) -> None:
    """Accuracy over the model's cost, points and held-out nets."""
    for part, name, colour in (("point", "fitted", "muted"), ("held_out", "held out", "second")):
        nets = [row for row in rows if row["part"] == part]
        size = [row["depth"] * row["width"] ** 2 * row["resolution"] ** 2 for row in nets]
        dots = Style(name, colour, "")
        line(axes, size, [100 * row["accuracy"] for row in nets], dots, markersize=4)
        if part == "held_out":
            crosses = Style("predicted", "slim", "")
            predicted = [100 * row["predicted"] for row in nets]
            line(axes, size, predicted, crosses, marker="x", markersize=6)
    finish(axes, "depth x width^2 x resolution^2", "validation accuracy, %")


CLAIM = Claim(
    "x9",
    "X9: three dimensions [52]",
    refs=(52,),
    settings=Settings(),
    nets=lambda settings: [Net("resnet8", "cifar10", settings.train_images)],
    arms=arms,
    statements=(
        at_most("predicted - measured off the axes, largest of three nets, <= 1.5 points", "-",
                Value(off), 1.5, digits=1),
        *map(against, DIMENSIONS),
    ),
    plot=plot,
    remarks="ResNet-8 on 5,000 images of CIFAR-10; the polynomial has rank 1 and degree 2. Each "
    "net is the largest of its kind under half of the MACs; whole blocks, and sides in multiples "
    "of 4, leave a part of that unused.",
)  # fmt: skip

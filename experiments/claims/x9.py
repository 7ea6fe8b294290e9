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
from collections.abc import Iterator

from matplotlib.axes import Axes

from experiments.claims import dimensions
from experiments.claims.claim import Case, Claim, Made, Net
from experiments.claims.plots import Style, finish, line
from experiments.claims.settings import CommonSettings
from experiments.claims.statements import Rows, Statement, at_least, at_most, gap, of_seed, select
from jprune.recipes import Save, run
from jprune.stages.dimensions import DIMENSIONS


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    """Those of X9.

    Attributes:
        probe_epochs: of every net that is fitted or held out.
        learning_rate: the largest one; a tenth of it behind the dense net.
        degree: of the polynomial; its rank is 1.
    """

    epochs: float = 12.0
    probe_epochs: float = 2.0
    finetune_epochs: float = 5.0
    learning_rate: float = 0.1
    train_images: int = 5_000
    degree: int = 2


def arms(case: Case[Settings]) -> Iterator[Made]:
    """Nets along the axes, off them, the optimum, and one dimension alone."""
    recipe = (dimensions.training(case, case.settings.epochs, 1.0), Save("dense"))
    dense, _ = run(recipe, case.start, case.task, case.fold(1))
    points = dimensions.along_axes(case, dense)
    made = itertools.chain(
        ({"part": "point", **dimensions.named(point)} for point in points),
        dimensions.held_out(case, dense, points),
        dimensions.compared(case, dense._replace(extra=points)),
    )
    for row in made:
        yield {"budget": {"macs": dimensions.BUDGET.macs}, **row}, None


def macs_of(rows: Rows) -> str:
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


OFF = of_seed(lambda rows: max(100 * abs(row["predicted"] - row["accuracy"]) for row in rows),
              part="held_out")  # fmt: skip
CLAIM = Claim(
    "x9", "X9: three dimensions [52]", refs=(52,), settings=Settings(),
    nets=lambda settings: [Net("resnet8", "cifar10", settings.train_images)], arms=arms, plot=plot,
    statements=(
        at_most("predicted - measured off the axes, largest of three nets, <= 1.5 points", "-",
                OFF, 1.5, digits=1),
        *map(against, DIMENSIONS),
    ),
    remarks="ResNet-8 on {train_images:,} images of CIFAR-10; the polynomial has rank 1 and degree "
    "{degree}. Each net is the largest of its kind under half of the MACs; whole blocks, and sides "
    "in multiples of {sides}, leave a part of that unused.",
    figures={"sides": dimensions.SIDES},
)  # fmt: skip

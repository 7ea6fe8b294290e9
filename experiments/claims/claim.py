"""What a claim declares, and the run that makes its rows.

A claim's nets times its seeds are cases. `arms` trains what a case compares, `measures` looks at
every net of it, and the row that comes of both says the settings as well. The rows of a case are
added to the claim's file together, once the case is whole; a case that has rows is not run again.
"""

import dataclasses
import functools
import importlib
import itertools
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
from matplotlib.axes import Axes

from experiments import claims
from experiments import rows as files
from experiments.claims.statements import Finding, Rows, Statement, Value
from jprune import data, errors, train, zoo
from jprune.base import Batch, Masks, Pruned, Stage, Task
from jprune.masks import apply_masks, density
from jprune.recipes import Train, evaluate
from jprune.stages.prune import fractions
from jprune.train.net import Net as TaskNet

S = TypeVar("S")
T = TypeVar("T")
Shape = tuple[int, int, int]
RESULTS = files.RESULTS / "claims"
SHARED = (
    *("__main__", "claim", "pages", "plots", "settings", "statements"),
    *("admm", "boosted", "clusters", "curved", "damages", "dimensions", "gal", "hypernets"),
    *("lasso", "layers", "merging", "monk", "nets", "popped", "scored", "thresholds", "tickets"),
    "watched",
)
"""Modules of this package that are no claims."""


@dataclasses.dataclass(frozen=True, eq=False)
class Net:
    """A net and its images.

    Attributes:
        name: of a net of the zoo, or of the one that `build` makes.
        data: "mnist" or "cifar10".
        images: of the training split; None: all.
        says: what rows say of the net.
        build: makes the net from the shape of an image and the number of classes.
    """

    name: str
    data: str = "mnist"
    images: int | None = None
    says: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    build: Callable[[Shape, int], zoo.Net] | None = None


def named(name: str, data: str = "mnist", images: int | None = None, word: str = "net") -> Net:
    """A net that its rows name."""
    return Net(name, data, images, {word: name})


@functools.cache
def task_of(net: Net, smoke: bool = False) -> Task:
    """A net on its images; where it is only tried out, on digits."""
    if smoke:
        images = data.load("digits", subset=200 if net.data == "cifar10" else None)
    else:
        images = data.load(net.data, subset=net.images)
    height, width, channels = images.shape
    shape = (height, width, channels)
    if net.build is None:
        return train.task(zoo.build(net.name, shape=shape), images)
    return train.task(net.build(shape, images.classes), images)


@dataclasses.dataclass(frozen=True)
class Case(Generic[S]):
    """One net with one seed.

    Attributes:
        settings: of the claim.
        net: what is trained.
        seed: of initial values, order of the data and everything that is drawn.
        smoke: whether it is only tried out: few steps on digits.
    """

    settings: S
    net: Net
    seed: int
    smoke: bool = False

    @property
    def task(self) -> Task:
        """The net on its images."""
        return task_of(self.net, self.smoke)

    @property
    def key(self) -> jax.Array:
        """The seed's."""
        return jax.random.key(self.seed)

    def fold(self, *numbers: int) -> jax.Array:
        """A key of its own for every place in the claim."""
        return functools.reduce(jax.random.fold_in, numbers, self.key)

    def first(self, items: Sequence[T]) -> Sequence[T]:
        """All of them, and the first alone where it is only tried out."""
        return items[:1] if self.smoke else items

    def train(
        self,
        epochs: float,
        rate: float,
        batch_size: int = 128,
        *,
        max_steps: int | None = None,
        few: int = 2,
        **options: Any,
    ) -> Train:
        """A training; where it is only tried out, of a few steps."""
        most = few if self.smoke else max_steps
        return Train(epochs, rate, batch_size, max_steps=most, **options)

    def masked(self, pruned: Pruned, masks: Masks) -> Pruned:
        """The net under masks of units or of weights."""
        variables = apply_masks(pruned.variables, TaskNet(self.task).weight_masks(masks))
        return pruned._replace(variables=variables, masks=masks)

    def batches(self, split: str, size: int, images: int, seed: int | None = None) -> list[Batch]:
        """Those of the first images of a split; where it is only tried out, one."""
        count = 1 if self.smoke else images // size
        return list(itertools.islice(self.task.data.batches(split, size, seed=seed), count))

    @property
    def start(self) -> Pruned:
        """The net as it is drawn."""
        return Pruned(self.task.init(self.fold(0)), None)

    def dense(self, training: Stage) -> Pruned:
        """The dense net."""
        return self.apply(self.start, 1, training)

    def apply(self, pruned: Pruned, number: int, *stages: Stage) -> Pruned:
        """The net after some stages, the n-th with the key `fold(number + n)`."""
        for place, stage in enumerate(stages):
            pruned, _ = stage(pruned, self.task, self.fold(number + place))
        return pruned

    def score(self, pruned: Pruned, split: str = "test", metric: str = "accuracy") -> float:
        """Mean of a metric over a split."""
        return evaluate(self.task, pruned.variables, split)[metric]

    def macs(self, pruned: Pruned) -> float:
        """MACs, as a fraction of the dense net's."""
        cost = TaskNet(self.task).cost
        return float(cost(pruned.masks or {}).macs) / float(cost({}).macs)


Made = tuple[files.Row, Pruned | None]
"""What a row says of a net, and the net; None where nothing is left to be measured."""
Figure = Value | Callable[[Rows], Any] | float
"""A number of the remarks: the mean of a value, what is computed of rows, or a constant."""
Measure = Callable[[Case[Any], Pruned], files.Row]


def accuracy(case: Case[Any], pruned: Pruned) -> files.Row:
    """Test accuracy: a measure."""
    return {"accuracy": case.score(pruned)}


def validation(case: Case[Any], pruned: Pruned) -> files.Row:
    """Accuracy on the split that chooses: a measure."""
    return {"validation": case.score(pruned, "validation")}


def training_loss(case: Case[Any], pruned: Pruned) -> files.Row:
    """The loss of the training set: a measure."""
    return {"loss": case.score(pruned, "train", "loss")}


def density_of_pruned(case: Case[Any], pruned: Pruned) -> files.Row:
    """The fraction kept of weights and biases of pruned layers: a measure."""
    return {"density": density(pruned.masks)}


def weights_kept(case: Case[Any], pruned: Pruned) -> files.Row:
    """The fraction of the weights that is left: a measure."""
    kept = 1.0 if pruned.masks is None else fractions(case.task, pruned.masks)["density"]
    return {"kept": kept}


def sizes(case: Case[Any], pruned: Pruned) -> files.Row:
    """Density, parameters and MACs as fractions of the dense net's: a measure."""
    return fractions(case.task, pruned.masks or {})


@dataclasses.dataclass(frozen=True)
class Claim(Generic[S]):
    """A claim of a paper.

    Attributes:
        stem: name of its module, its rows and its page.
        title: of the page.
        refs: numbers of the papers.
        settings: what the numbers depend on, a dataclass; all of it is in every row.
        nets: what is trained, by the settings.
        arms: trains the nets of a case.
        measures: what is measured of every net.
        statements: what the rows are to say.
        plot: draws the rows on axes that are titled already.
        remarks: what differs from the paper, and what comes out beside the statements: a template
            whose `{names}` are of settings and of `figures`, so that it tells no number of its own
            but the paper's.
        figures: what the remarks name.
        tried: what was tried where a claim does not hold. Its numbers have no rows.
        seeds: that are run.
        smoke: nets that are only tried out; none: those of the claim.
        label: what rows call the claim; "": what stands before the colon of the title.
    """

    stem: str
    title: str
    _: dataclasses.KW_ONLY
    refs: tuple[int, ...]
    settings: S
    nets: Callable[[S], Sequence[Net]]
    arms: Callable[[Case[S]], Iterator[Made]]
    statements: Sequence[Statement]
    plot: Callable[[Rows, Axes], None]
    measures: Sequence[Measure] = ()
    remarks: str = ""
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    tried: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    smoke: Sequence[Net] = ()
    label: str = ""

    @property
    def file(self) -> Path:
        """Of the rows."""
        return RESULTS / f"{self.stem}.jsonl"

    @property
    def about(self) -> files.Row:
        """What all rows say of the claim."""
        return {"claim": self.label or self.title.partition(":")[0], "refs": [*self.refs]}

    def findings(self, rows: Rows) -> list[Finding]:
        """What the rows say."""
        return [finding for statement in self.statements for finding in statement(rows)]

    def remarked(self, rows: Rows) -> str:
        """The remarks with their numbers, and what was tried."""
        told = settings_of(self)
        for name, figure in self.figures.items():
            if isinstance(figure, Value):
                told[name] = figure.mean(rows) if figure.list(rows) else math.nan
            else:
                told[name] = figure(rows) if callable(figure) else figure
        return " ".join(filter(None, (self.remarks.format(**told), self.tried)))


def names() -> list[str]:
    """Claims that there are."""
    modules = {module.name for module in pkgutil.iter_modules(claims.__path__)}
    return sorted(modules - {*SHARED})


def find(stem: str) -> Claim[Any]:
    """The claim of this name.

    Raises:
        ArgumentError: there is none; the message suggests the nearest.

    Example:
        >>> find("e09").title
        'E9: winning tickets [9]'
    """
    if stem not in names():
        raise errors.ArgumentError(
            f"there is no claim {stem!r}; {errors.nearest(stem, names())}"
            f"experiments/claims has {', '.join(names())}."
        )
    return importlib.import_module(f"experiments.claims.{stem}").CLAIM


def settings_of(claim: Claim[Any], smoke: bool = False) -> files.Row:
    """What all rows say of the settings."""
    return {**dataclasses.asdict(claim.settings), "smoke": smoke}


def cases(claim: Claim[S], smoke: bool = False) -> list[Case[S]]:
    """All cases of a claim; where it is only tried out, of the first seed."""
    nets = claim.smoke if smoke and claim.smoke else claim.nets(claim.settings)
    seeds = claim.seeds[:1] if smoke else claim.seeds
    return [Case(claim.settings, net, seed, smoke) for seed in seeds for net in nets]


def is_done(claim: Claim[Any], case: Case[Any], there: Rows) -> bool:
    """Whether a case has rows that were made with the same settings.

    What a row does not say, because it came to the settings later, is taken as equal.
    """
    wanted = {**settings_of(claim), **case.net.says, "seed": case.seed}
    return any(all(row.get(name, value) == value for name, value in wanted.items())
               for row in there)  # fmt: skip


def run(claim: Claim[Any], smoke: bool = False) -> list[files.Row]:
    """Runs the cases that have no rows.

    Args:
        claim: what is run.
        smoke: try it out: one seed, and nothing is written.

    Returns:
        The rows that were made.
    """
    there = [] if smoke else files.read(claim.file)
    made = []
    for case in cases(claim, smoke):
        if is_done(claim, case, there):
            print(f"{claim.stem}: {case.net.name}, seed {case.seed} has its rows", flush=True)
            continue
        of_case = list(rows_of(claim, case))
        if not smoke:
            files.append(claim.file, *of_case)
        made += of_case
    return made


def rows_of(claim: Claim[S], case: Case[S]) -> Iterator[files.Row]:
    """The rows of a case, each shown as it comes, with all that its numbers depend on."""
    front = {**claim.about, **settings_of(claim, case.smoke)}
    for said, pruned in claim.arms(case):
        row = {**case.net.says, "seed": case.seed, **said}
        if pruned is not None:
            for measure in claim.measures:
                row |= measure(case, pruned)
        print(
            *(f"{name} {_short(value)} " for name, value in row.items() if _plain(value)),
            flush=True,
        )
        yield {**front, **row, **files.provenance()}


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

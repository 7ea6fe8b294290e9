"""What is to be run: nets x methods x budgets x seeds, as a typed configuration, and its runs.

A run has an id made of its settings, where they are not the usual ones, and of the source that its
numbers depend on (`reading.code_of`): a setting that is added later with a default leaves old ids
as they are, and so does a change of files that its method is not read in; other source gives other
ids, so that two mathematics are never in one table unseen. The dense net of one net, data set, seed
and training is a run of its own, which all methods share.

Where a sweep asks for it, L1 and random filters are run beside every method at its own steps after
the cut, and random filters in the widths that it chose; `beside` plans them from the rows that are
there.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jprune
from experiments.reading import code_of
from jprune import errors, recipes
from jprune.base import Budget
from jprune.compare.beside import CHOICE, LENGTH, NAMES
from jprune.compare.rows import Row
from jprune.compare.steps import after, alike
from jprune.job.changes import ALLOCATIONS, NO_CHANGES, Changes
from jprune.job.main import Job, finetunes

DENSE = "dense"
KINDS = ("macs", "params", "density")


@dataclasses.dataclass(frozen=True)
class Net:
    """A net, its data, and how it is trained. None is what is usual for the data set.

    Attributes:
        model: a name of the zoo, or module:callable.
        data: a name of `jprune.data`.
        train_images: so many training images, every class with its share; None takes all.
        epochs: of the dense net.
        finetune_epochs: after pruning.
        batch_size: images in a step.
        learning_rate: the largest one of the dense net's training.
        finetune_learning_rate: the same for fine-tuning.
        rates: of fine-tuning, to try with L1, the first seed and the first budget; the best on the
            validation split is that of all methods.
        weights: trained net to start from: a file, or "pretrained".
    """

    model: str
    data: str
    train_images: int | None = None
    epochs: float | None = None
    finetune_epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    finetune_learning_rate: float | None = None
    rates: tuple[float, ...] = ()
    weights: str | None = None

    def __post_init__(self):
        if self.rates and self.finetune_learning_rate is not None:
            raise errors.ArgumentError(
                f"finetune_learning_rate={self.finetune_learning_rate} and rates={self.rates}: "
                "either it is given or it is chosen. Leave out one of the two."
            )


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Nets x methods x budgets x seeds.

    Attributes:
        nets: with their data and training.
        methods: names, with options behind a colon: "l1", "taylor:rounds=3,allocator=uniform".
            "dense" is the net itself, trained but not pruned. "l1@global_per_cost" has another
            allocation than its own, of `jprune.job.changes.ALLOCATIONS`.
        macs: fractions of the multiply-accumulates to keep.
        params: fractions of the parameters to keep.
        density: fractions of the units to keep.
        seeds: of initial values, order of the data, and draws.
        multiple_of: kept units of a layer are a multiple of this.
        steps: stop every training after so many steps; for trying out.
        measure_seconds: time to spend on each comparison of latencies, at least.
        vmap_seeds: train the dense nets of all seeds in one vmapped step; for accelerators.
        settled: batches on which the norms' statistics settle for a second look at every net before
            fine-tuning; 0: none.
        compared: run L1 and random filters beside every method at its own steps after the cut, and
            random filters in its own widths.
        family: folder of the rows in `experiments/results`; "" is the configuration's name.
    """

    nets: tuple[Net, ...]
    methods: tuple[str, ...]
    macs: tuple[float, ...] = ()
    params: tuple[float, ...] = ()
    density: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    multiple_of: int = 1
    steps: int | None = None
    measure_seconds: float = 2.0
    vmap_seeds: bool = False
    settled: int = 0
    compared: bool = False
    family: str = ""

    def __post_init__(self):
        for name in ("nets", "methods", "seeds"):
            given = getattr(self, name)
            if not given:
                raise errors.ArgumentError(
                    f"there are no {name}; write at least one, such as "
                    f"{dict(nets='Net(...)', methods='l1', seeds='--seeds 0 1 2')[name]}."
                )
            twice = [value for value in given if given.count(value) > 1]
            if twice:
                raise errors.ArgumentError(
                    f"{twice[0]!r} is there twice among the {name}: two runs would have one id. "
                    "Leave out one of them."
                )
        if any(seed < 0 for seed in self.seeds):
            raise errors.ArgumentError(f"seeds={self.seeds}; a seed is 0 or more.")
        if not self.budgets and set(self.methods) != {DENSE}:
            raise errors.ArgumentError(
                f"there are no budgets for {', '.join(self.methods)}; write fractions that are "
                "kept, such as --macs 0.5 0.25."
            )
        for method in self.methods:
            read_method(method)

    @functools.cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """All budgets."""
        return tuple(
            Budget(**{kind: value}, multiple_of=self.multiple_of)
            for kind in KINDS
            for value in getattr(self, kind)
        )


class Method(NamedTuple):
    """A method of a sweep.

    Attributes:
        name: of `METHODS`, or "dense".
        options: of the method.
        allocation: in the place of its own; None: its own.
    """

    name: str
    options: dict[str, Any]
    allocation: str | None = None


def read_method(text: str) -> Method:
    """A method, its options, and its allocation.

    Raises:
        ArgumentError: an unknown method, option or allocation.

    Example:
        >>> read_method("l1:schedule=cubic,rounds=3")
        Method(name='l1', options={'schedule': 'cubic', 'rounds': 3}, allocation=None)
        >>> read_method("taylor@uniform").allocation
        'uniform'
    """
    name, _, options = text.partition(":")
    name, _, allocation = name.partition("@")
    if allocation and allocation not in ALLOCATIONS:
        raise errors.ArgumentError(
            f"{text!r} has no allocation {allocation!r}; "
            f"{errors.nearest(allocation, ALLOCATIONS)}write one of {', '.join(ALLOCATIONS)}."
        )
    if name == DENSE and not options and not allocation:
        return Method(DENSE, {})
    read = recipes.read_options(name, [word for word in options.split(",") if word])
    return Method(name, read, allocation or None)


@functools.cache
def code_version() -> str:
    """A hash of the source of `jprune`, as it is on disk when this process first asks."""
    package = Path(jprune.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


class Run(NamedTuple):
    """One run of a sweep."""

    id: str
    kind: Literal["seeds", "dense", "rate", "method"]
    """`seeds`: the dense nets of all seeds together; `rate`: one that is tried."""
    job: Job
    """Its method is "dense" where nothing is pruned; its learning rate may still be chosen."""
    settings: dict[str, Any]
    """What is not as usual, beside net, data, method, budget and seed."""
    needs: tuple[str, ...] = ()
    """Ids of the runs that have to be over before."""
    kept: bool = True
    """Whether it becomes a row."""
    measure_seconds: float = 2.0
    seeds: tuple[int, ...] = ()
    """Of kind `seeds`."""
    changes: Changes = NO_CHANGES
    """Of the method's recipe."""

    @property
    def title(self) -> str:
        """In a few words, for people."""
        job = self.job
        seeds = " ".join(map(str, self.seeds or (job.seed,)))
        rate = f" at {job.finetune_learning_rate:g}" if self.kind == "rate" else ""
        return f"{job.model} {job.data} {_method(job)} seed {seeds}{rate}"

    @property
    def budget(self) -> dict[str, float] | None:
        """As rows have it."""
        if self.job.method == DENSE:
            return None
        return {self.job.budget.kind: float(self.job.budget.value)}

    @property
    def identity(self) -> dict[str, Any]:
        """What a row with its id has to say."""
        job = self.job
        names = ("method", "model", "data", "seed", "train_images")
        told = {name: getattr(job, name) for name in names}
        return {**told, "budget": self.budget, "settings": self.settings}


def _method(job: Job, separator: str = " ") -> str:
    if job.method == DENSE:
        return DENSE
    return f"{job.method}{separator}{job.budget.kind}{float(job.budget.value):g}"


def runs(sweep: Sweep) -> list[Run]:
    """All runs of a sweep, net by net and seed by seed, each behind those that it needs.

    A sweep that is stopped has whole comparisons of the first seeds.

    Raises:
        ArgumentError: two runs with one id.

    Example:
        >>> sweep = Sweep((Net("lenet5", "mnist"),), ("l1",), macs=(0.5,), seeds=(0,))
        >>> [(run.title, run.kept, len(run.needs)) for run in runs(sweep)]
        [('lenet5 mnist dense seed 0', False, 0), ('lenet5 mnist l1 macs0.5 seed 0', True, 1)]
    """
    found = [run for net in sweep.nets for run in _of_net(sweep, net)]
    seen: dict[str, Run] = {}
    for run in found:
        if run.id in seen:
            raise errors.ArgumentError(
                f"{run.title} and {seen[run.id].title} have one id, {run.id}: they have the same "
                "settings. Leave out one of them."
            )
        seen[run.id] = run
    return found


TRAINING = ("epochs", "batch_size", "learning_rate", "weights")
"""Of a net: what its dense net depends on, beside net, data and seed."""
FINETUNING = ("finetune_epochs", "finetune_learning_rate", "rates")
ALWAYS = ("steps", "measure_seconds", "vmap_seeds")
"""Of a sweep: what all its runs depend on."""


def _of_net(sweep: Sweep, net: Net) -> Iterator[Run]:
    methods = [found for found in map(read_method, sweep.methods) if found.name != DENSE]
    together = _seeds(sweep, net)
    yield from together
    trials: list[Run] = []
    for seed in sweep.seeds:
        dense = _dense(sweep, net, seed, together)
        yield dense
        if methods and seed == sweep.seeds[0]:
            trials = [_rate(sweep, net, rate, dense) for rate in net.rates]
            yield from trials
        for budget in sweep.budgets:
            for method in methods:
                yield _pruned(sweep, net, method, budget, seed, [dense, *trials])


def _seeds(sweep: Sweep, net: Net) -> list[Run]:
    if not sweep.vmap_seeds or len(sweep.seeds) == 1 or net.weights is not None:
        return []
    settings = _unusual(sweep, net, TRAINING)
    made = _made(
        "seeds", sweep, _job(sweep, net, DENSE, WHOLE, sweep.seeds[0]), settings, kept=False
    )
    return [_named(made._replace(seeds=sweep.seeds))]


def _dense(sweep: Sweep, net: Net, seed: int, together: Sequence[Run]) -> Run:
    job = _job(sweep, net, DENSE, WHOLE, seed)
    settings = _unusual(sweep, net, TRAINING)
    return _named(_made("dense", sweep, job, settings, together, DENSE in sweep.methods))


def _rate(sweep: Sweep, net: Net, rate: float, dense: Run) -> Run:
    at = dataclasses.replace(net, rates=(), finetune_learning_rate=rate)
    job = _job(sweep, at, "l1", sweep.budgets[0], sweep.seeds[0])
    settings = _unusual(sweep, at, (*TRAINING, *FINETUNING))
    return _named(_made("rate", sweep, job, settings, [dense], kept=False))


def _pruned(
    sweep: Sweep,
    net: Net,
    method: Method,
    budget: Budget,
    seed: int,
    needs: Sequence[Run],
    told: Mapping[str, Any] = MappingProxyType({}),
    widths: Mapping[str, int] | None = None,
) -> Run:
    job = dataclasses.replace(_job(sweep, net, method.name, budget, seed), options=method.options)
    settings = _unusual(sweep, net, (*TRAINING, *FINETUNING), ("multiple_of", "settled"))
    settings |= {"options": method.options} if method.options else {}
    settings |= {"allocation": method.allocation} if method.allocation else {}
    made = _made("method", sweep, job, {**settings, **told}, needs)
    return _named(made._replace(changes=Changes(method.allocation, widths, sweep.settled)))


def beside(sweep: Sweep, planned: Sequence[Run], rows: Mapping[str, Row]) -> list[Run]:
    """Runs that stand beside the methods whose rows are there.

    L1 and random filters with as many steps after the cut as a method has, where those of the sweep
    have not; random filters in the widths that a method chose, with its steps.

    Args:
        sweep: where `compared` is False, nothing stands beside its methods.
        planned: its runs.
        rows: {id: row}, of those that are over.
    """
    found: dict[str, Run] = {}
    for run in planned if sweep.compared else ():
        row = rows.get(run.id)
        if run.kind == "method" and row is not None and run.job.method not in (*LENGTH, *NAMES):
            net = next(net for net in sweep.nets if _is_of(net, run.job))
            found |= {each.id: each for each in _beside(sweep, net, run, row, planned, rows)}
    return list(found.values())


def _is_of(net: Net, job: Job) -> bool:
    return (net.model, net.data, net.train_images) == (job.model, job.data, job.train_images)


def _beside(
    sweep: Sweep,
    net: Net,
    run: Run,
    row: Row,
    planned: Iterable[Run],
    rows: Mapping[str, Row],
) -> Iterator[Run]:
    steps, tuned = after(row), row["finetune"]
    if not steps or not tuned["epochs"]:
        return  # nothing is trained behind the cut
    # Epochs that are so many steps, at the rate that the method had.
    epochs = round(steps * tuned["epochs"] / tuned["steps"], 4)
    own = dataclasses.replace(
        net, finetune_epochs=epochs, finetune_learning_rate=tuned["learning_rate"], rates=()
    )
    usual = [
        rows[other.id]
        for other in planned
        if other.id in rows
        and other.job.method == NAMES[0]
        and not {"options", "allocation"} & other.settings.keys()
        and (other.job.budget, other.job.seed) == (run.job.budget, run.job.seed)
    ]
    dense = [each for each in planned if each.id in run.needs and each.kind == "dense"]
    make = lambda name, told, widths=None: _pruned(
        sweep, own, Method(name, {}), run.job.budget, run.job.seed, dense, told, widths
    )
    if not any(alike(after(each) or 1, steps) for each in usual):
        yield from (make(name, {"beside": steps}) for name in NAMES)
    if row.get("widths"):
        yield make(NAMES[1], {CHOICE: run.id}, row["widths"])


WHOLE = Budget(density=1.0)


def _job(sweep: Sweep, net: Net, method: str, budget: Budget, seed: int) -> Job:
    given = {field.name: getattr(net, field.name) for field in dataclasses.fields(net)}
    del given["rates"]
    if method != DENSE and not finetunes(method):
        given |= {"finetune_epochs": None, "finetune_learning_rate": None}  # it has no fine-tuning
    return Job(method=method, budget=budget, seed=seed, max_steps=sweep.steps, **given)


def _unusual(
    sweep: Sweep, net: Net, of_net: Sequence[str], of_sweep: Sequence[str] = ()
) -> dict[str, Any]:
    """Settings that have not their defaults, as JSON would have them."""
    fields = {
        field.name: field.default for kind in (Net, Sweep) for field in dataclasses.fields(kind)
    }
    given = {name: getattr(net, name) for name in of_net}
    given |= {name: getattr(sweep, name) for name in (*ALWAYS, *of_sweep)}
    unusual = {name: value for name, value in given.items() if value != fields[name]}
    return json.loads(json.dumps(unusual))


def _made(
    kind: Literal["seeds", "dense", "rate", "method"],
    sweep: Sweep,
    job: Job,
    settings: dict[str, Any],
    needs: Sequence[Run] = (),
    kept: bool = True,
) -> Run:
    ids = tuple(run.id for run in needs)
    return Run("", kind, job, settings, ids, kept, sweep.measure_seconds)


def _named(run: Run) -> Run:
    """The run with its id: a name for people, and a hash of all that its numbers depend on."""
    method = None if run.job.method == DENSE else run.job.method
    facts: dict[str, Any] = {
        "code": code_of(method),
        "kind": run.kind,
        "seeds": run.seeds,
        "needs": run.needs,
    }
    facts |= run.identity
    if run.changes.widths is not None:
        facts["widths"] = dict(run.changes.widths)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
    net = run.job.model.replace(":", "-").replace("/", "-")
    kind = f"-{run.kind}" if run.kind in ("seeds", "rate") else ""
    name = f"{net}-{run.job.data}-{_method(run.job, '-')}-seed{run.job.seed}{kind}-{digest}"
    return run._replace(id=name)

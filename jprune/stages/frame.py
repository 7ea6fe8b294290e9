"""The frame that recipes share, and how stages run one after another.

The dense net is saved and measured, the method's own stages follow, the pruned net is measured and
fine-tuned: `framed`. The stages that this takes are here too, and `record`, `check` and `run`.
"""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.allocate import refuse_impossible
from jprune.base import (
    Batch,
    Budget,
    Learner,
    Masks,
    Progress,
    Pruned,
    PyTree,
    Recipe,
    Records,
    Stage,
    Task,
    Variables,
)
from jprune.learners.statistics import settled_on
from jprune.masks import apply_masks, density, intersect
from jprune.train.evaluate import evaluate
from jprune.train.net import Net
from jprune.train.step import stream
from jprune.train.task import at_resolution, seen_at
from jprune.units import expand, ones


def opening(train: Stage | None) -> Recipe:
    """How recipes begin: the dense net is trained, saved as "dense" and measured.

    Args:
        train: training of the dense net; None where it is trained already.
    """
    trained = () if train is None else (train,)
    return (*trained, Save("dense"), Evaluate("test", name="dense"))


def framed(
    train: Stage | None, *stages: Stage, finetune: Stage | None = None, after: Recipe = ()
) -> Recipe:
    """A recipe of the usual form: the dense net, a method's stages, fine-tuning.

    Args:
        train: training of the dense net; None where it is trained already.
        *stages: the method's own.
        finetune: training of the pruned net; None where a method has none.
        after: what follows the fine-tuning.

    Returns:
        The recipe. Its evaluations are named `dense` (test) and `before_finetune` (validation).

    Example:
        >>> [stage.name for stage in framed(None, Rewind("dense"), after=(Recalibrate(),))]
        ['save', 'dense', 'rewind', 'before_finetune', 'recalibrate']
    """
    measured = Evaluate("validation", name="before_finetune")
    tuned = () if finetune is None else (finetune,)
    return (*opening(train), *stages, measured, *tuned, *after)


def settled(batches: int, batch_size: int) -> Recipe:
    """A stage that takes the norms' statistics anew on so many batches; none for 0 batches."""
    return (Recalibrate(batches, batch_size),) if batches else ()


@dataclasses.dataclass(frozen=True)
class Save:
    """Keeps a copy of the variables under a name, for later stages.

    Attributes:
        under: the name: "dense", "init", "teacher", "rewind".
        name: of the stage.
    """

    under: str
    name: str = "save"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, with one more copy in `saved`."""
        del task, key
        return pruned._replace(saved={**pruned.saved, self.under: pruned.variables}), []


@dataclasses.dataclass(frozen=True)
class Rewind:
    """Puts saved variables back, under the present masks.

    Attributes:
        to: name that `Save` used.
        name: of the stage.
    """

    to: str
    name: str = "rewind"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The saved variables, masked.

        Raises:
            ArgumentError: nothing was saved under this name.
        """
        del key
        masks = Net(task).weight_masks(pruned.masks)
        variables = saved(pruned, self.to, f"Rewind(to={self.to!r})")
        variables = variables if masks is None else apply_masks(variables, masks)
        return pruned._replace(variables=variables), []


def saved(pruned: Pruned, name: str, who: str) -> Variables:
    """Variables that an earlier stage saved.

    Args:
        pruned: the state of the run.
        name: that `Save` used.
        who: the stage that asks, for the message.

    Raises:
        ArgumentError: nothing was saved under this name.
    """
    if name not in pruned.saved:
        raise errors.ArgumentError(
            f"{who}: saved are {', '.join(pruned.saved) or 'none'}. Put Save({name!r}) before it "
            "in the recipe."
        )
    return pruned.saved[name]


def record(stage: str, metrics: dict[str, Any], step: int = 0) -> dict[str, Any]:
    """A record; `jprune.runs` adds the run that it comes from."""
    return {"stage": stage, "step": step, "metrics": metrics}


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measures loss and accuracy on a split, and counts.

    The record has the task's metrics, `params` (those that are not 0) and `macs` (for one example,
    under the masks; those of masked weights do not count).

    Attributes:
        split: "train", "validation" or "test".
        slim: evaluate the small net instead of the masked one.
        name: of the record.
    """

    split: str = "validation"
    slim: bool = False
    name: str = "evaluate"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """The same net, and the record."""
        del key
        net = Net(task)
        resized = seen_at(net.fn, pruned.resolution)
        fn, variables = net.slim(pruned) if self.slim else (resized, pruned.variables)
        params, _ = task.split(variables)
        masks = {} if pruned.masks is None else pruned.masks
        # Weights masked inside the small net still count as zeros.
        if self.slim and not net.are_units(masks):
            masks = intersect(masks, expand(net.groups, net.unit_masks(pruned)))
        counts = {
            "params": sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(params)),
            "macs": round(
                float(Net(at_resolution(task, pruned)).cost_as_held(pruned, masks, self.split).macs)
            ),
        }
        metrics = evaluate(task, variables, self.split, fn) | counts
        return pruned, [{**record(self.name, metrics), "split": self.split}]


def check_prunable(task: Task, budget: Budget, per: str = "unit") -> None:
    """Refuses a net that has nothing to prune, and a budget out of reach; for `check` of stages.

    Args:
        task: of the net.
        budget: what may be kept; its floors leave groups whole.
        per: "unit" or "weight".

    Raises:
        ArgumentError: no group of units, or no kernel that may lose weights; a budget in what the
            net's cost model does not measure.
        BudgetError: the smallest net that floors and multiples allow is too large.
    """
    if per == "weight":
        weights = Net(task).prunable(None, budget)
        Net(task).kernels(weights)
        refuse_impossible(weights, budget.of_weights(), Net(task).cost)
    elif Net(task).groups.sizes:
        refuse_impossible(ones(Net(task).groups), budget, Net(task).cost)
    else:
        raise errors.ArgumentError(
            f"{task.name} has no channels to prune: all of them are frozen. See "
            "jprune.trace(...).frozen for the reasons, or prune weights."
        )


def fractions(task: Task, masks: Masks) -> dict[str, float]:
    """What masks keep of the dense net: `density` (of what is masked), `params`, `macs`."""
    now, dense = Net(task).cost(masks), Net(task).cost({})
    return {
        "density": density(masks),
        "params": float(now.params) / float(dense.params),
        "macs": float(now.macs) / float(dense.macs),
    }


@dataclasses.dataclass(frozen=True)
class Recalibrate:
    """Takes the statistics of the norms anew, as means over batches; weights stay.

    Attributes:
        batches: number of training batches, at least 1.
        batch_size: examples in one.
        name: of the record.
    """

    batches: int = 50
    batch_size: int = 128
    name: str = "recalibrate"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """New statistics, and a record of the number of batches."""
        batch_size = min(self.batch_size, task.data.sizes["train"])
        # The order of training, which is shuffled: statistics of sorted classes would be wrong.
        batches = itertools.islice(stream(task.data, batch_size, key), self.batches)
        seen = task._replace(train_fn=Net(task).train_fn)  # kernels in any form
        variables = settled_on(seen, pruned.variables, batches, key)
        masks = Net(task).weight_masks(pruned.masks)
        if masks is not None:
            variables = apply_masks(variables, masks)
        return pruned._replace(variables=variables), [record(self.name, {"batches": self.batches})]


@runtime_checkable
class LongStage(Stage, Protocol):
    """A stage that trains or searches: it can be taken apart into steps, saved and resumed."""

    @property
    def name(self) -> str:
        """Of its records."""
        ...

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """Its steps."""
        ...


@runtime_checkable
class CheckedStage(Stage, Protocol):
    """A stage that refuses some nets or budgets; asked before anything is trained."""

    def check(self, task: Task) -> None:
        """Raises what the stage would raise later, when it runs."""
        ...


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Runs stages several times over.

    Attributes:
        stages: the stages that are repeated.
        times: how many times.
        name: of the whole; the records have the names of the stages.
    """

    stages: tuple[Stage, ...]
    times: int
    name: str = "repeat"

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """All stages in order, each time with keys of their own."""
        return run(unrolled((self,)), pruned, task, key)


def unrolled(recipe: Sequence[Stage]) -> Iterator[Stage]:
    """The stages of a recipe one by one, repetitions written out."""
    for stage in recipe:
        if isinstance(stage, Repeat):
            for _ in range(stage.times):
                yield from unrolled(stage.stages)
        else:
            yield stage


def check(recipe: Sequence[Stage], task: Task) -> None:
    """Calls `check` of all stages that have one.

    Raises:
        JpruneError: what the first of them raises.
    """
    for stage in unrolled(recipe):
        if isinstance(stage, CheckedStage):
            stage.check(task)


def run(
    recipe: Sequence[Stage] | Iterator[Stage],
    pruned: Pruned,
    task: Task,
    key: jax.Array,
    progress: Progress | None = None,
) -> tuple[Pruned, Records]:
    """Runs stages in memory, one after the other.

    Args:
        recipe: the stages.
        pruned: where to begin.
        task: net, loss and data.
        key: the n-th stage gets `fold_in(key, n)`.
        progress: is told of stages, steps and epochs, such as `jprune.runs.Lines()` (a line an
            epoch, for logs) or `jprune.runs.Bars()` (for terminals), and closed in the end; None:
            the run is silent.

    Returns:
        The last state and all records.

    Raises:
        JpruneError: what a stage raises; what its `check` raises comes before the first one runs.
    """
    stages = tuple(recipe)
    check(stages, task)
    records: Records = []
    all_stages = [*unrolled(stages)]
    try:
        for number, stage in enumerate(all_stages):
            told = (
                stage if progress is None else _Told(stage, progress, number + 1, len(all_stages))
            )
            pruned, added = told(pruned, task, jax.random.fold_in(key, number))
            records += added
    finally:
        if progress is not None:
            progress.close()
    return pruned, records


@dataclasses.dataclass(frozen=True)
class _Told:
    """A stage that reports its progress.

    Attributes:
        stage: the stage that runs.
        progress: gets the reports.
        number: of the stage, from 1.
        of: the number of stages.
    """

    stage: Stage
    progress: Progress
    number: int
    of: int

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """What the stage does."""
        stage, name = self.stage, getattr(self.stage, "name", type(self.stage).__name__)
        if isinstance(stage, LongStage):
            # A copy whose `learner` reports, so that the stage's own `__call__` drives that one.
            told = copy.copy(stage)
            object.__setattr__(told, "learner", functools.partial(self.learner, stage))
            result = told(pruned, task, key)
        else:
            self.progress.begin(name, self.number, self.of, 0, 0)
            result = stage(pruned, task, key)
        self.progress.end()
        return result

    def learner(self, stage: LongStage, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The learner of the stage, whose steps are reported."""
        learner, steps = stage.learner(pruned, task, key), itertools.count(1)
        self.progress.begin(stage.name, self.number, self.of, learner.steps, 0)
        epochs = -(-learner.steps // learner.epoch)

        def step(state: PyTree, batch: Batch) -> tuple[PyTree, dict[str, jax.Array]]:
            state, metrics = learner.step(state, batch)
            done = next(steps)
            # Steps are dispatched without waiting: without this the bar runs ahead of the device.
            jax.block_until_ready(metrics)
            if done % learner.epoch and done != learner.steps:
                self.progress.advance(done, {})
            else:
                means = {name: float(value) for name, value in metrics.items()}
                self.progress.epoch(-(-done // learner.epoch), epochs, means)
                self.progress.advance(done, means)
            return state, metrics

        return learner._replace(step=step)

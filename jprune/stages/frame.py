"""Kinds of stages that are asked more, stages one after the other, stages that are repeated."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax

from jprune.base import Batch, Learner, Progress, Pruned, PyTree, Records, Stage, Task


@runtime_checkable
class LongStage(Stage, Protocol):
    """A stage that can be taken apart into steps."""

    @property
    def name(self) -> str:
        """Of its records."""
        ...

    def learner(self, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """Its steps."""
        ...


@runtime_checkable
class CheckedStage(Stage, Protocol):
    """A stage that knows nets or budgets which it cannot take; asked before anything is trained."""

    def check(self, task: Task) -> None:
        """Raises what it would raise when its turn comes."""
        ...


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Runs stages several times over.

    Attributes:
        stages: what is repeated.
        times: how often.
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
    """Asks all stages that have a `check` whether they can take a net.

    Raises:
        JpruneError: what the first raises that cannot.
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
    """A stage that tells what it does.

    Attributes:
        stage: what is done.
        progress: is told.
        number: of the stage, from 1.
        of: how many stages there are.
    """

    stage: Stage
    progress: Progress
    number: int
    of: int

    def __call__(self, pruned: Pruned, task: Task, key: jax.Array) -> tuple[Pruned, Records]:
        """What the stage does."""
        stage, name = self.stage, getattr(self.stage, "name", type(self.stage).__name__)
        if isinstance(stage, LongStage):
            # A copy whose `learner` tells: what it does besides is its own affair.
            told = copy.copy(stage)
            object.__setattr__(told, "learner", functools.partial(self.learner, stage))
            result = told(pruned, task, key)
        else:
            self.progress.begin(name, self.number, self.of, 0, 0)
            result = stage(pruned, task, key)
        self.progress.end()
        return result

    def learner(self, stage: LongStage, pruned: Pruned, task: Task, key: jax.Array) -> Learner:
        """The learner of the stage, told of step by step."""
        learner, steps = stage.learner(pruned, task, key), itertools.count(1)
        self.progress.begin(stage.name, self.number, self.of, learner.steps, 0)
        epochs = -(-learner.steps // learner.epoch)

        def step(state: PyTree, batch: Batch) -> tuple[PyTree, dict[str, jax.Array]]:
            state, metrics = learner.step(state, batch)
            done = next(steps)
            jax.block_until_ready(metrics)  # or the bar runs ahead of the device
            if done % learner.epoch and done != learner.steps:
                self.progress.advance(done, {})
            else:
                means = {name: float(value) for name, value in metrics.items()}
                self.progress.epoch(-(-done // learner.epoch), epochs, means)
                self.progress.advance(done, means)
            return state, metrics

        return learner._replace(step=step)

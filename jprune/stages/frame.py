"""Kinds of stages that are asked more, stages one after the other, stages that are repeated."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax

from jprune.base import Learner, Pruned, Records, Stage, Task


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
    recipe: Sequence[Stage] | Iterator[Stage], pruned: Pruned, task: Task, key: jax.Array
) -> tuple[Pruned, Records]:
    """Runs stages in memory, one after the other.

    Args:
        recipe: the stages.
        pruned: where to begin.
        task: net, loss and data.
        key: the n-th stage gets `fold_in(key, n)`.

    Returns:
        The last state and all records.

    Raises:
        JpruneError: what a stage raises; what its `check` raises comes before the first one runs.
    """
    stages = tuple(recipe)
    check(stages, task)
    records: Records = []
    for number, stage in enumerate(unrolled(stages)):
        pruned, added = stage(pruned, task, jax.random.fold_in(key, number))
        records += added
    return pruned, records

"""Stages one after the other, in memory, and stages that are repeated."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax

from jprune.base import Pruned, Records, Stage, Task


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
    """
    records: Records = []
    for number, stage in enumerate(unrolled(tuple(recipe))):
        pruned, added = stage(pruned, task, jax.random.fold_in(key, number))
        records += added
    return pruned, records

"""Steps of a run, told in three: before pruning, under the method, after the cut.

Methods that train while they prune have fewer steps left behind the cut than those that prune at
once: "the same fine-tuning" is the same total, and not the same time to recover.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

from jprune.foreign import Size

Row = dict[str, Any]
ROUNDED = 0.02
"""The largest relative difference in steps and epochs: rounds do not divide every number."""
NO_PRUNING = (
    *("train", "save", "dense", "before_finetune", "between", "finetune", "recalibrate"),
    *("begin_anew", "scratch", "rewind", "pruned", "law", "export", "measure"),
)
"""Stages whose seconds are not those of the pruning step, and that prune nothing."""


class Steps(TypedDict):
    """Steps of training.

    Attributes:
        before: of the dense net, before the method begins; 0 where it was loaded.
        under: under the method: between rounds, under penalties, with gates or moving masks.
        after: behind the last stage that prunes.
    """

    before: Size
    under: Size
    after: Size


def base(stage: str) -> str:
    """A stage's name without the number of a repeated one.

    Example:
        >>> base("prune-2"), base("begin_anew")
        ('prune', 'begin_anew')
    """
    name, _, number = stage.rpartition("-")
    return name if number.isdecimal() else stage


def steps_of(stages: Mapping[str, Any], trained: Mapping[str, int]) -> Steps:
    """The steps of a run.

    Args:
        stages: names of all its stages, in their order.
        trained: {stage that trains: steps it took}.

    Example:
        >>> steps_of(dict.fromkeys(["train", "prune", "between", "prune-2", "finetune"]),
        ...          {"train": 90, "between": 10, "finetune": 20})
        {'before': 90, 'under': 10, 'after': 20}
    """
    names = [*stages]
    prunes = [number for number, name in enumerate(names) if base(name) not in NO_PRUNING]
    first, last = (prunes[0], prunes[-1]) if prunes else (len(names), -1)
    steps: Steps = {"before": 0, "under": 0, "after": 0}
    for number, name in enumerate(names):
        dense = number < first and base(name) == "train"
        part = "before" if dense else "after" if number > last else "under"
        steps[part] += trained.get(name, 0)
    return steps


def after(row: Row) -> int | None:
    """Steps of a row after the cut; None where the row does not say.

    Example:
        >>> after({"steps": {"before": 0, "under": 5, "after": 7}}), after({})
        (7, None)
    """
    return (row.get("steps") or {}).get("after")


def alike(one: float, other: float) -> bool:
    """Whether two lengths differ by rounding alone.

    Example:
        >>> alike(624, 620), alike(624, 312)
        (True, False)
    """
    return max(one, other) <= (1 + ROUNDED) * min(one, other)

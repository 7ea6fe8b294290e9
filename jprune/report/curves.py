"""Training curves: series out of the lines of `records.jsonl`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LONGEST = 400
"""More points than these are thinned: a curve on a page has no more pixels."""


class Span(NamedTuple):
    """Where a stage lies on the common axis of steps."""

    stage: str
    start: int
    stop: int


class Series(NamedTuple):
    """One metric in one stage.

    Attributes:
        steps: on the common axis.
    """

    stage: str
    metric: str
    steps: list[int]
    values: list[float]


def spans(records: Sequence[Mapping[str, Any]], ending: str) -> list[Span]:
    """Stages that have a curve, one after the other on one axis of steps.

    Example:
        >>> line = lambda stage, step: {"stage": stage, "step": step, "metrics": {"loss": 1.0}}
        >>> spans([line("train", 0), line("train", 9), line("finetune", 0)], "loss")
        [Span(stage='train', start=0, stop=9), Span(stage='finetune', start=9, stop=9)]
    """
    steps: dict[str, list[int]] = {}
    for record in records:
        if _metrics(record, ending):
            steps.setdefault(record["stage"], []).append(record["step"])
    found, start = [], 0
    for stage, taken in steps.items():
        stop = start + max(taken) - min(taken)
        found.append(Span(stage, start, stop))
        start = stop
    return found


def series(records: Sequence[Mapping[str, Any]], ending: str) -> list[Series]:
    """All metrics whose name ends in `ending`, each stage by itself.

    A step that was recorded twice (a killed run repeats some) counts as it was recorded last.

    Args:
        records: lines of `records.jsonl`.
        ending: "loss" or "accuracy".

    Example:
        >>> record = {"stage": "train", "step": 0, "metrics": {"loss": 2.0, "accuracy": 0.1}}
        >>> series([record], "loss")
        [Series(stage='train', metric='loss', steps=[0], values=[2.0])]
    """
    points: dict[tuple[str, str], dict[int, float]] = {}
    first: dict[str, int] = {}
    for record in records:
        for metric, value in _metrics(record, ending).items():
            stage, step = record["stage"], record["step"]
            first[stage] = min(first.get(stage, step), step)
            points.setdefault((stage, metric), {})[step] = float(value)
    starts = {span.stage: span.start for span in spans(records, ending)}
    found = []
    for (stage, metric), values in points.items():
        steps = _thinned(sorted(values))
        shift = starts[stage] - first[stage]
        found.append(Series(stage, metric, [s + shift for s in steps], [values[s] for s in steps]))
    return found


def _metrics(record: Mapping[str, Any], ending: str) -> dict[str, float]:
    metrics = record.get("metrics") or {}
    known = isinstance(record.get("stage"), str) and isinstance(record.get("step"), int)
    return {
        name: value
        for name, value in metrics.items()
        if known and name.endswith(ending) and isinstance(value, int | float)
    }


def _thinned(steps: list[int]) -> list[int]:
    if len(steps) <= LONGEST:
        return steps
    stride = -(-len(steps) // LONGEST)
    return [*steps[:-1:stride], steps[-1]]

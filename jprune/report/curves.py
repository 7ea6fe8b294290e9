"""Training curves: series out of the lines of `records.jsonl`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LONGEST = 400
"""Longer curves are thinned to about so many points: a picture on a page has no more pixels."""


class Span(NamedTuple):
    """Where a stage lies on the common axis of steps."""

    stage: str
    start: int
    stop: int


class Series(NamedTuple):
    """One metric in one stage.

    Attributes:
        stage: name of the stage.
        metric: name of the metric.
        steps: on the axis that all stages share.
        values: at these steps.
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
    stages, start = [], 0
    for stage, taken in steps.items():
        # Every stage counts its steps from its own beginning: on the common axis it starts where
        # the stage before it ends.
        stop = start + max(taken) - min(taken)
        stages.append(Span(stage, start, stop))
        start = stop
    return stages


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
            # By step, so that a step that was recorded again replaces the first record.
            points.setdefault((stage, metric), {})[step] = float(value)
    starts = {span.stage: span.start for span in spans(records, ending)}
    result = []
    for (stage, metric), values in points.items():
        steps = _thinned(sorted(values))
        # The first step that was recorded (20, say, not 0) stands at the beginning of the span.
        shift = starts[stage] - first[stage]
        result.append(Series(stage, metric, [s + shift for s in steps], [values[s] for s in steps]))
    return result


def _metrics(record: Mapping[str, Any], ending: str) -> dict[str, float]:
    metrics = record.get("metrics") or {}
    placed = isinstance(record.get("stage"), str) and isinstance(record.get("step"), int)
    return {
        name: value
        for name, value in metrics.items()
        if placed and name.endswith(ending) and isinstance(value, int | float)
    }


def _thinned(steps: list[int]) -> list[int]:
    if len(steps) <= LONGEST:
        return steps
    stride = -(-len(steps) // LONGEST)
    # The last point always stays: its value is the one that is quoted.
    return [*steps[:-1:stride], steps[-1]]

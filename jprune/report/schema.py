"""The keys of `result.json`: what a finished run says in one file.

Fractions are of the dense net and kept. What was not measured is null, never absent; `warnings`
alone is absent from files that were written before it was there.
"""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from jprune import errors, foreign
from jprune.measure import Device, Latency
from jprune.report import text

SCHEMA = 1
LAW_BOUND = 1e-3
"""Largest relative difference between masked and slim net that rounding explains."""


class LatencyTable(TypedDict):
    """Latency in ms, by runtime and batch size."""

    xla_b1: Latency | None
    xla_b128: Latency | None
    tflite_b1: Latency | None


class _MaybeMetrics(TypedDict, total=False):
    """Keys that older results do not have."""

    metrics: dict[str, float]


class Measured(_MaybeMetrics):
    """What was measured of one net: dense, pruned before fine-tuning, or slim.

    Attributes:
        accuracy: in 0..1, on the test split; on the validation split before fine-tuning.
        loss: on the same split.
        params: parameters that are not zero; statistics do not count.
        macs: multiply-accumulates for one example.
        bytes: size of the float32 .tflite file.
        latency_ms: by runtime and batch size.
        metrics: means of the task's other metrics on the same split, by name.
    """

    accuracy: float | None
    loss: float | None
    params: int | None
    macs: int | None
    bytes: int | None
    latency_ms: LatencyTable


class Achieved(TypedDict):
    """Fractions of the dense net that the slim one keeps.

    Attributes:
        bytes: of the file.
        latency: measured: under XLA at batch 128, or under the target of a budget in latency.
        energy: counted, on an accelerator that skips zeros. Absent in older results, as is traffic.
        traffic: bytes that contractions move, counted.
    """

    density: float | None
    params: float | None
    macs: float | None
    bytes: float | None
    latency: float | None
    energy: NotRequired[float | None]
    traffic: NotRequired[float | None]


class _MaybeSplits(TypedDict, total=False):
    """Keys that older results do not have."""

    splits: dict[str, int]
    splits_from: str


class Result(_MaybeSplits):
    """The whole of `result.json`.

    Attributes:
        commit: of jprune's source tree.
        refs: numbers of the survey's references that the method is from.
        wall_s: {stage: seconds}.
        requested: the budget, {kind: fraction kept}.
        law_max_rel_err: largest relative difference between the masked and the slim net, on real
            data.
        earlier_machines: where a run went on with other versions or on another device: those
            before the last, each from the stage on that it names. Absent in older results.
        predicted: {"latency": fraction kept}, from the latency table, where there was one.
        target: runtime of a budget in latency, "xla" or "tflite".
        warnings: sentences that say what of this result cannot be relied on.
        splits: number of examples of the data's splits.
        splits_from: where the splits are from; empty where nothing is known.
    """

    schema: int
    commit: str | None
    command: str
    method: str
    refs: list[int]
    model: str
    data: str
    seed: int
    versions: dict[str, str | None]
    device: Device
    earlier_machines: NotRequired[list[dict[str, Any]]]
    wall_s: dict[str, float]
    requested: dict[str, float]
    achieved: Achieved
    predicted: NotRequired[dict[str, float]]
    target: NotRequired[str]
    law_max_rel_err: float | None
    warnings: NotRequired[list[str]]
    dense: Measured
    before_finetune: Measured
    pruned: Measured


def measured(
    accuracy: float | None = None,
    loss: float | None = None,
    params: int | None = None,
    macs: int | None = None,
    bytes: int | None = None,
    xla_b1: Latency | None = None,
    xla_b128: Latency | None = None,
    tflite_b1: Latency | None = None,
    **metrics: float,
) -> Measured:
    """What was measured, with null for all that was not; `metrics` are those of other names.

    Example:
        >>> measured(accuracy=0.9)["latency_ms"]
        {'xla_b1': None, 'xla_b128': None, 'tflite_b1': None}
        >>> measured(loss=0.3, iou=0.8)["metrics"]
        {'iou': 0.8}
    """
    return {
        "accuracy": accuracy,
        "loss": loss,
        "params": params,
        "macs": macs,
        "bytes": bytes,
        "latency_ms": {"xla_b1": xla_b1, "xla_b128": xla_b128, "tflite_b1": tflite_b1},
        "metrics": metrics,
    }


def law_warnings(law: float | None) -> list[str]:
    """What to say of a difference between the masked and the slim net; nothing if it is small.

    Args:
        law: the largest relative difference; None where it was not measured.

    Example:
        >>> law_warnings(2e-7), law_warnings(None)
        ([], [])
        >>> law_warnings(0.96)[0].split(":")[0]
        'the slim net is not the net that was trained'
    """
    if law is None or law <= LAW_BOUND:
        return []
    return [
        "the slim net is not the net that was trained: masked and slim net differ by "
        f"{law:.1e} of the largest output, where rounding explains {LAW_BOUND:.0e}. Do not use the "
        "exported files. Look at rules of your own, at functions that magnify rounding, and report "
        "the net if there are none."
    ]


def check(result: Mapping[str, Any], source: str = "result.json") -> None:
    """Checks that a result has every key, with values of the right type.

    Args:
        result: what is, or will be, in `result.json`.
        source: what to call it in messages.

    Raises:
        CheckpointError: another schema, a key that is missing, or a value of another type; the
            message names the key.

    Example:
        >>> check({"schema": 1})
        Traceback (most recent call last):
        jprune.errors.CheckpointError: result.json has no `commit`; ...
    """
    if isinstance(result, Mapping) and result.get("schema", SCHEMA) != SCHEMA:
        raise errors.CheckpointError(
            f"{source} has schema {foreign.shown(result['schema'], 40)}; this version of jprune "
            f"reads {SCHEMA}. Run the command that is in it again with this version."
        )
    foreign.check(result, Result, source, "Run the command of the run again.")


MISSED = 0.02
"""A budget is missed if what is kept differs by more: two points."""


def missed(result: Mapping[str, Any]) -> str:
    """Says that a run keeps something else than was asked for; empty where it does not.

    Args:
        result: what is in `result.json`.

    Example:
        >>> missed({"requested": {"macs": 0.75}, "achieved": {"macs": 0.6}})
        '60.0 % of the MACs are kept, and 75 % were asked for'
        >>> missed({"requested": {"macs": 0.5}, "achieved": {"macs": 0.49}})
        ''
    """
    said = []
    for kind, asked in result["requested"].items():
        kept = result["achieved"].get(kind)
        if kept is not None and abs(kept - asked) > MISSED:
            said.append(
                f"{100 * kept:.1f} % of the {text.KINDS.get(kind, kind)} are kept, and "
                f"{100 * asked:.3g} % were asked for"
            )
    return "; ".join(said)

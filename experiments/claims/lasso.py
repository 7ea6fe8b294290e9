"""E13's nets: penalties, what they leave of a net, and the strongest one that costs little."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from experiments.claims.claim import Case
from experiments.claims.statements import (
    Finding,
    Rows,
    Statement,
    Value,
    gap,
    listed,
    select,
    shown,
)
from experiments.rows import Row
from jprune.base import Budget, Pruned, Task
from jprune.recipes import Train
from jprune.stages.group_lasso import Penalty, ReadOff, Shrink, norms_of

WHOLE = Budget(macs=1.0)
ON = {"lenet5": ("params/conv1/kernel", "params/conv2/kernel")}
"""{net: what is penalised}, where it is not everything: units of convolutions, as in the paper's
tables; the channels of conv2's units are inputs of fc1."""
Compared = tuple[str, str, float]
"""(net, families, strength) where the proximal step is compared with the subgradient."""


def penalties(
    case: Case[Any], runs: Mapping[str, Sequence[float]], compared: Compared
) -> Iterator[tuple[str, Penalty]]:
    """(arm, penalty) of a net, whose runs are {families: strengths}."""
    name = case.net.name
    for families, strengths in runs.items():
        kinds = tuple(families.split("+"))
        for strength in case.first(strengths):
            yield "prox", Penalty(kinds, strength, ON.get(name))
            if (name, families, strength) == compared:
                for arm, threshold in (("subgradient", 1e-4), ("subgradient_alone", 0.0)):
                    yield arm, Penalty(kinds, strength, ON.get(name), "subgradient", threshold)


def shrunk(case: Case[Any], dense: Pruned, training: Train, penalty: Penalty) -> tuple[Row, Pruned]:
    """What is left of a net after training under a penalty, and the net without the rest."""
    net = case.apply(dense, 2, Shrink(training, WHOLE, penalty))
    blocks = [term.blocks for term in penalty.terms(case.task, WHOLE).values()]
    norms = norms_of(blocks, net.variables)
    read, (record,) = ReadOff(WHOLE, penalty, correct=False)(net, case.task, case.key)
    row = {
        "families": "+".join(penalty.families),
        "strength": penalty.strength,
        "zeros": record["metrics"]["zeros"],
        "macs": case.macs(read),
        "kept": {
            f"{kind} {short(name)}": int(np.count_nonzero(norm))
            for kind, of_kind in norms.items()
            for name, norm in of_kind.items()
        },
        "border": border(case.task, norms) if case.net.name == "lenet300" else None,
        "before": case.score(net),
    }
    return row, read


def short(name: str) -> str:
    """A block's name without what all have."""
    return name.replace("params/", "").replace("/kernel", "").replace("branch/", "")


def border(task: Task, norms: dict[str, dict[str, np.ndarray]]) -> list[float]:
    """Fractions that lie within four pixels of the border: of the zero inputs, and of all."""
    (height, width, _), first = task.data.shape, norms["shape"]["params/fc1/kernel"]
    row, column = np.indices((height, width))
    away = np.minimum.reduce([row, column, height - 1 - row, width - 1 - column])
    near = (away < height / 7).ravel()
    zero = first == 0
    return [float(near[zero].mean()) if zero.any() else 0.0, float(near.mean())]


def arm_of(families: str, strength: float) -> dict[str, Any]:
    """What rows say of the net under a penalty."""
    return {"arm": "prox", "families": families, "strength": strength}


def lost(net: str, families: str, strength: float, what: str = "accuracy") -> Value:
    """Points below dense: of test accuracy, or of `validation`."""
    return gap(what, "dense", arm_of(families, strength), net=net)


def strongest(
    rows: Rows, net: str, families: str, strengths: Sequence[float], most: float
) -> tuple[float, list[Row], list[float]]:
    """The largest strength that costs at most `most` points in the mean, else the smallest.

    Validation accuracy chooses. Returns (strength, its rows, points of test accuracy lost).
    """
    first, *more = strengths
    cheap = [s for s in more if lost(net, families, s, "validation").mean(rows) <= most]
    strength = max([first, *cheap])
    chosen = select(rows, net=net, **arm_of(families, strength))
    return strength, chosen, lost(net, families, strength).list(rows)


def of_lenet5(runs: Mapping[str, Sequence[float]]) -> Statement:
    """Filters and columns that are left, told once where both limits choose one strength."""

    def findings(rows: Rows) -> Iterator[Finding]:
        for families, kind, paper, most in (
            ("filter+channel", "filter", "5-19; 3-12", (6, 20)),
            ("shape", "shape", "7-14", (10, 60)),
        ):
            of = lambda limit, name=families: strongest(rows, "lenet5", name, runs[name], limit)
            for strength, limit in sorted({of(limit)[0]: limit for limit in (2, 0.1)}.items()):
                _, chosen, points = of(limit)
                convs = [[row["kept"][f"{kind} conv{n}"] for row in chosen] for n in (1, 2)]
                text = f"LeNet-5, {families} {strength}: left in conv1 and conv2 for {limit} points"
                ours = f"{shown(convs[0], 1)}; {shown(convs[1], 1)}; {shown(points)} points"
                few = all(fmean(c) <= m for c, m in zip(convs, most)) and fmean(points) <= limit
                asked = limit == 0.1
                yield Finding(text, paper if asked else "-", ours, few if asked else None)

    return findings


def of_lenet300(strengths: Sequence[float]) -> Statement:
    """Inputs that are left for 0.1 points, and where they lie under the strongest penalty."""

    def findings(rows: Rows) -> Iterator[Finding]:
        of = lambda limit: strongest(rows, "lenet300", "filter+shape", strengths, limit)
        strength, chosen, points = of(0.1)
        inputs = [row["kept"]["shape fc1"] for row in chosen]
        text = f"LeNet-300-100, filter+shape {strength}: inputs left of 784"
        holds = fmean(inputs) <= 500 and fmean(points) <= 0.2
        yield Finding(text, "434", f"{shown(inputs, 0)}; {shown(points)} points", holds)
        strength, chosen, points = of(math.inf)
        near = [row["border"][0] / row["border"][1] for row in chosen]
        inputs = [row["kept"]["shape fc1"] for row in chosen]
        text = f"strength {strength}, {shown(inputs, 0)} inputs left: zero inputs on the border"
        ours = f"{shown(near)} times the border's share; {shown(points)} points"
        yield Finding(text, "mostly", ours, fmean(near) > 1.2)

    return findings


def of_resnet8(strengths: Sequence[float]) -> Statement:
    """Branches that vanish at the smallest strength that takes one in the mean, or the largest."""
    gone = lambda row: sum(count == 0 for count in row["kept"].values())

    def findings(rows: Rows) -> Iterator[Finding]:
        at = {s: listed(rows, gone, net="resnet8", **arm_of("depth", s)) for s in strengths}
        strength = next((s for s, counts in at.items() if fmean(counts) >= 1), max(at))
        points = lost("resnet8", "depth", strength).list(rows)
        text = f"ResNet-8, depth {strength}: branches of three that vanish for 0.5 points"
        ours = f"{shown(at[strength], 1)}; {shown(points)} points"
        yield Finding(text, "1 of 9", ours, fmean(at[strength]) >= 1 and fmean(points) <= 0.5)

    return findings

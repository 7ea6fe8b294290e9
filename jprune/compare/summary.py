"""From rows to a comparison: means and deviations, fronts, and how stable the order is."""

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from jprune import errors
from jprune.compare import beside as stands
from jprune.compare import protocol
from jprune.compare.beside import CHOICE, NAMES, Paired, paired
from jprune.compare.protocol import Breach
from jprune.compare.rows import Arm, Row, Runs, arms, tasks
from jprune.compare.steps import Steps
from jprune.compare.words import budget_text, listed

SCHEMA = 1
"""Of `comparison.json`."""


class Metric(NamedTuple):
    """A number that methods are compared by.

    Attributes:
        title: in words.
        of: reads it from a row; None where it was not measured.
        higher_is_better: whether large values are good.
        fraction: whether it is shown as a percentage.
    """

    title: str
    of: Callable[[Row], float | None]
    higher_is_better: bool
    fraction: bool


def _in(*path: str) -> Callable[[Row], float | None]:
    """A function that reads a nested value of a row; None where anything on the path is null."""

    def read(row: Row) -> float | None:
        value: Any = row
        for key in path:
            # Null on the way (a net that was not measured at all) gives null, no error.
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    return read


def _latency(runtime: str) -> Callable[[Row], float | None]:
    return _in("pruned", "latency_ms", runtime, "median")


METRICS: dict[str, Metric] = {
    "accuracy": Metric("test accuracy", _in("pruned", "accuracy"), True, True),
    "loss": Metric("test loss", _in("pruned", "loss"), False, False),
    "validation": Metric("validation accuracy", _in("validation", "pruned"), True, True),
    "before": Metric("accuracy before fine-tuning", _in("before_finetune", "accuracy"), True, True),
    "settled": Metric(
        "accuracy before fine-tuning, with new statistics",
        _in("before_finetune", "metrics", "settled_accuracy"),
        True,
        True,
    ),
    "macs": Metric("MACs kept", _in("achieved", "macs"), False, True),
    "params": Metric("parameters kept", _in("achieved", "params"), False, True),
    "density": Metric("units kept", _in("achieved", "density"), False, True),
    "latency": Metric("latency kept", _in("achieved", "latency"), False, True),
    "xla_b1": Metric("XLA, batch 1, ms", _latency("xla_b1"), False, False),
    "xla_b128": Metric("XLA, batch 128, ms", _latency("xla_b128"), False, False),
    "tflite_b1": Metric("TFLite, batch 1, ms", _latency("tflite_b1"), False, False),
    "bytes": Metric(".tflite bytes", _in("pruned", "bytes"), False, False),
    "prune_s": Metric("seconds of pruning", _in("prune_s"), False, False),
}
FRONTS = ("macs", "latency")
"""Costs against which there is a Pareto front."""


class Spread(NamedTuple):
    """A metric over the seeds of an arm.

    Attributes:
        mean: over the seeds that have a value.
        std: standard deviation of the sample (n - 1); None for one value.
        n: how many seeds have a value.
    """

    mean: float
    std: float | None
    n: int


class Cell(NamedTuple):
    """An arm: one line of the table.

    Attributes:
        method: name, with the settings that tell it from others of its name.
        budget: (kind, fraction kept); None for the dense net.
        seeds: that were run, in ascending order.
        spreads: {metric: mean and deviation}; None where no seed has a value.
        fronts: the costs (of `FRONTS`) for which it lies on the Pareto front.
        steps: before pruning, under the method, after the cut, of its first seed; None where the
            rows do not say.
        ahead: how far it is ahead of L1 ("l1") and random filters ("random") with as many steps
            after the cut, and of random filters in its own widths ("choice"); those that stand
            beside it.
    """

    method: str
    budget: tuple[str, float] | None
    seeds: tuple[int, ...]
    spreads: dict[str, Spread | None]
    fronts: tuple[str, ...]
    steps: Steps | None = None
    ahead: Mapping[str, Paired] = MappingProxyType({})


class Order(NamedTuple):
    """Two methods at one budget, and in how many seeds their order is the other way round.

    Attributes:
        budget: (kind, fraction kept).
        better: the method with the better mean.
        worse: the other one.
        changes: number of seeds in which `worse` is better.
        seeds: number of seeds that both have.
    """

    budget: tuple[str, float]
    better: str
    worse: str
    changes: int
    seeds: int


Pair = tuple[tuple[str, float], str, str]
"""(budget, better, worse)."""


class Comparison(NamedTuple):
    """Methods side by side on one task.

    Attributes:
        cells: the dense net, then budget by budget from large to small, best first.
        orders: of every two methods at a budget, in the order of the cells.
        breaches: where the protocol is broken; none for a fair comparison.
        provenance: commits, versions, devices, configs and commands, each only once.
        differences: {(budget, better, worse): how far the better one is ahead, seed by seed}, of
            the pairs in `orders`.
    """

    model: str
    data: str
    train_images: int | None
    metric: str
    cells: list[Cell]
    orders: list[Order]
    breaches: list[Breach]
    notes: list[str]
    findings: list[str]
    provenance: dict[str, list[Any]]
    differences: Mapping[Pair, Paired] = MappingProxyType({})

    @property
    def title(self) -> str:
        """The task in a few words."""
        images = "" if self.train_images is None else f" ({self.train_images:,} training images)"
        return f"{self.model} on {self.data}{images}"

    @property
    def seeds(self) -> int:
        """Number of seeds of the arm with the fewest, the dense net not counted."""
        return min((len(cell.seeds) for cell in self.cells if cell.budget), default=0)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and standard deviation of the values that are not None; None if there are none.

    Example:
        >>> spread([1.0, None, 3.0]), spread([None])
        (Spread(mean=2.0, std=1.4142135623730951, n=2), None)
    """
    numbers = [float(value) for value in values if value is not None]
    if not numbers:
        return None
    # s^2 = sum (x - mean)^2 / (n - 1), the sample's: with few seeds the population's would be too
    # small.
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(statistics.fmean(numbers), std, len(numbers))


def pareto(points: Mapping[Any, tuple[float, float]]) -> set[Any]:
    """The Pareto front: points for which no other is as cheap and as good, and better in one.

    Args:
        points: {name: (cost, value)}; low costs and high values are good.

    Example:
        >>> sorted(pareto({"a": (1.0, 0.9), "b": (0.5, 0.8), "c": (0.6, 0.7), "d": (0.5, 0.8)}))
        ['a', 'b', 'd']
    """

    def beaten(cost: float, value: float) -> bool:
        # q beats p: cost_q <= cost_p and value_q >= value_p, and one of both strictly. Equal points
        # do not beat each other, so ties stay on the front.
        return any(
            other <= cost and gain >= value and (other < cost or gain > value)
            for other, gain in points.values()
        )

    return {name for name, point in points.items() if not beaten(*point)}


def rank_changes(
    values: Mapping[str, Mapping[int, float]], higher_is_better: bool = True
) -> list[tuple[str, str, int, int]]:
    """In how many seeds the order of two methods is not that of their means.

    Args:
        values: {method: {seed: value}}.
        higher_is_better: of the values.

    Returns:
        (better, worse, changes, seeds) for every two methods with seeds in common: better by the
        mean over these seeds, and in how many of them it is the worse one. A tie is no change.

    Example:
        >>> rank_changes({"a": {0: 0.9, 1: 0.7, 2: 0.9}, "b": {0: 0.8, 1: 0.8, 2: 0.8}})
        [('a', 'b', 1, 3)]
    """
    sign = 1 if higher_is_better else -1
    pairs = []
    for one, other in itertools.combinations(values, 2):
        seeds = sorted(values[one].keys() & values[other].keys())
        if not seeds:
            continue
        # d_s = sign (a_s - b_s) for every seed s that both have: pairs, since a seed fixes the
        # dense net.
        ahead = [sign * (values[one][seed] - values[other][seed]) for seed in seeds]
        # The better one by mean comes first, so that changes = #{s: d_s < 0} counts seeds against
        # it. Not by mean d, whose rounding would part what ties in the table.
        first, second = (statistics.fmean(values[m][s] for s in seeds) for m in (one, other))
        if sign * first < sign * second:
            one, other, ahead = other, one, [-lead for lead in ahead]
        pairs.append((one, other, sum(lead < 0 for lead in ahead), len(seeds)))
    return pairs


def find_metric(name: str) -> Metric:
    """A metric by its name.

    Raises:
        ArgumentError: there is none of this name; the message suggests the nearest.

    Example:
        >>> find_metric("acuracy")
        Traceback (most recent call last):
        jprune.errors.ArgumentError: there is no metric 'acuracy'; did you mean accuracy? ...
    """
    if name not in METRICS:
        hint = errors.nearest(name, METRICS)
        raise errors.ArgumentError(
            f"there is no metric {name!r}; {hint}Write one of {', '.join(METRICS)}."
        )
    return METRICS[name]


def summarize(
    rows: Sequence[Row], metric: str = "accuracy", notes: Sequence[str] = ()
) -> list[Comparison]:
    """Compares rows: one comparison per net and data set, in the order of the rows.

    Args:
        rows: from `rows.read` or `rows.row_of`.
        metric: a name of `METRICS`, that methods are ranked by.
        notes: to stand with every comparison.

    Raises:
        ArgumentError: an unknown metric.
    """
    find_metric(metric)
    return [_compare(task, same, metric, notes) for task, same in tasks(rows).items()]


def _compare(
    task: tuple[str, str, int | None], rows: Sequence[Row], metric: str, notes: Sequence[str]
) -> Comparison:
    own, beside = stands.apart_from(rows)
    runs, more = arms(own)
    cells = [
        cell._replace(
            steps=_steps(runs[Arm(cell.method, cell.budget)]),
            ahead=_ahead(runs, beside, Arm(cell.method, cell.budget), metric),
        )
        for cell in _cells(runs, metric)
    ]
    # Once for all: orders, labels and remarks go through the arms as the table does.
    runs = {arm: runs[arm] for arm in (Arm(cell.method, cell.budget) for cell in cells)}
    orders, differences = _orders(runs, metric)
    return Comparison(
        *task,
        metric,
        cells,
        orders,
        protocol.breaches(runs, beside),
        [*notes, *more, *protocol.notes(runs)],
        _findings(cells, metric),
        {
            "commits": _once(row["commit"] for row in rows),
            "devices": _once(row["device"] for row in rows),
            "versions": _once(row["versions"] for row in rows),
            "configs": _once(row["config"] for row in rows),
            "commands": _once(row["command"] for row in rows),
        },
        differences,
    )


def _once(values: Iterable[Any]) -> list[Any]:
    """Values without repetition, in order; unlike in a set they need no hash."""
    distinct: list[Any] = []
    for value in values:
        # By equality, as rows hold dicts; there are few different ones.
        if value not in distinct:
            distinct.append(value)
    return distinct


def _cells(runs: Runs, metric: str) -> list[Cell]:
    spreads = {
        arm: {
            name: spread(each.of(seeds[seed]) for seed in sorted(seeds))
            for name, each in METRICS.items()
        }
        for arm, seeds in runs.items()
    }
    # Over all budgets together: a good cheap net beats a worse one that costs more.
    fronts: dict[str, set[Arm]] = {cost: _front(spreads, cost, metric) for cost in FRONTS}
    sign = -1 if METRICS[metric].higher_is_better else 1

    def place(arm: Arm) -> tuple[Any, ...]:
        # The dense net has no kind: "" sorts first, and -2 before any -fraction.
        kind, fraction = arm.budget or ("", 2.0)
        value = spreads[arm][metric]
        # Kind of budget, large budgets first, cells without a value last, best first, then the
        # name.
        return kind, -fraction, value is None, sign * value.mean if value else 0.0, arm.method

    return [
        Cell(
            arm.method,
            arm.budget,
            tuple(sorted(runs[arm])),
            spreads[arm],
            tuple(cost for cost in FRONTS if arm in fronts[cost]),
        )
        for arm in sorted(runs, key=place)
    ]


def _front(spreads: Mapping[Arm, Mapping[str, Spread | None]], cost: str, metric: str) -> set[Arm]:
    sign = 1 if METRICS[metric].higher_is_better else -1
    points = {}
    for arm, of_arm in spreads.items():
        price, value = of_arm[cost], of_arm[metric]
        if price is not None and value is not None:
            # A front of means: a net may lie on it by luck of its seeds, which is why the deviation
            # stands beside it in the table.
            points[arm] = (price.mean, sign * value.mean)
    return pareto(points)


def _steps(seeds: Mapping[int, Row]) -> Steps | None:
    return next((row["steps"] for row in seeds.values() if row.get("steps")), None)


def _values(seeds: Mapping[int, Row], metric: str) -> dict[int, float]:
    """{seed: value, the larger the better}, of the seeds in which it was measured."""
    of, sign = METRICS[metric].of, 1 if METRICS[metric].higher_is_better else -1
    measured = {seed: of(row) for seed, row in seeds.items()}
    return {seed: sign * value for seed, value in measured.items() if value is not None}


def _ahead(runs: Runs, beside: Sequence[Row], arm: Arm, metric: str) -> dict[str, Paired]:
    if not stands.needs(arm):
        return {}
    others = {name: stands.at_own_steps(runs, beside, arm, name) for name in NAMES}
    others[CHOICE] = stands.in_own_widths(runs, beside, arm)
    own = _values(runs[arm], metric)
    differences = {name: paired(own, _values(rows, metric)) for name, rows in others.items()}
    return {name: found for name, found in differences.items() if found is not None}


def _orders(runs: Runs, metric: str) -> tuple[list[Order], dict[Pair, Paired]]:
    ranked_by = METRICS[metric]
    budgets: dict[tuple[str, float], dict[str, dict[int, float]]] = {}
    for arm, seeds in runs.items():
        # Only methods at the same budget are ranked: a method that keeps more is ahead for that
        # reason.
        if arm.budget is not None and (measured := _values(seeds, metric)):
            budgets.setdefault(arm.budget, {})[arm.method] = measured
    sign = 1 if ranked_by.higher_is_better else -1
    orders, differences = [], {}
    for budget, values in budgets.items():
        plain_values = {m: {s: sign * v for s, v in of.items()} for m, of in values.items()}
        for change in rank_changes(plain_values, ranked_by.higher_is_better):
            orders.append(Order(budget, *change))
            better, worse = change[:2]
            found = paired(values[better], values[worse])
            if found is not None:
                differences[budget, better, worse] = found
    return orders, differences


def _findings(cells: Sequence[Cell], metric: str) -> list[str]:
    """A sentence for every budget at which methods are no better than `random`."""
    sign = 1 if METRICS[metric].higher_is_better else -1
    findings = []
    for budget in _once(cell.budget for cell in cells if cell.budget):
        means = {
            cell.method: sign * reached.mean
            for cell in cells
            if cell.budget == budget and (reached := cell.spreads[metric]) is not None
        }
        if "random" not in means:
            continue
        # `<=`: equal to random is not better than random.
        beaten = [name for name, mean in means.items() if mean <= means["random"]]
        beaten = [name for name in beaten if name != "random"]
        if beaten:
            findings.append(
                f"At {budget_text(budget)} random is as good as or better than {listed(beaten)}."
            )
    return findings


def plain(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """What stands in `comparison.json`."""
    return {"schema": SCHEMA, "comparisons": [_plain(each) for each in comparisons]}


def _plain(comparison: Comparison) -> dict[str, Any]:
    return {
        "model": comparison.model,
        "data": comparison.data,
        "train_images": comparison.train_images,
        "metric": comparison.metric,
        "fair": not comparison.breaches,
        "breaches": [breach._asdict() for breach in comparison.breaches],
        "notes": comparison.notes,
        "findings": comparison.findings,
        "cells": [
            {
                "method": cell.method,
                "budget": dict([cell.budget]) if cell.budget else None,
                "seeds": list(cell.seeds),
                "fronts": list(cell.fronts),
                "steps": cell.steps,
                "ahead": {name: found._asdict() for name, found in cell.ahead.items()},
                "metrics": {
                    name: spread and spread._asdict() for name, spread in cell.spreads.items()
                },
            }
            for cell in comparison.cells
        ],
        "order_changes": [
            {
                **order._asdict(),
                "budget": dict([order.budget]),
                "difference": comparison.differences[
                    order.budget, order.better, order.worse
                ]._asdict(),
            }
            for order in comparison.orders
        ],
        **comparison.provenance,
    }

"""What rows are to say: values by seed, and statements about them.

A statement turns rows into findings, lines of the page. Most are made by `at_least`, `at_most`,
`above`, `below` and `told` from a `Value`, by `several` from values that stand side by side and by
`listing` from one of every arm; where a line needs more, a claim has a function.
"""

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.rows import Row

Rows = Sequence[Row]
What = str | Callable[[Row], float]
"""A key of rows, or what is computed from a row."""


class Finding(NamedTuple):
    """One claim of a paper, beside what came out."""

    claim: str
    paper: str
    """Its figure."""
    ours: str
    """Our figure, with its standard deviation over seeds."""
    holds: bool | None
    """None: it is told, and nothing was expected of it."""


Statement = Callable[[Rows], Iterable[Finding]]


def shown(values: Iterable[float], digits: int = 2, unit: str = "") -> str:
    """Mean and standard deviation of the sample.

    Example:
        >>> shown([1.0, 3.0], unit=" %"), shown([2.0])
        ('2.00 ± 1.41 %', '2.00')
    """
    numbers = list(values)
    average = f"{statistics.fmean(numbers):.{digits}f}"
    if not numbers[1:]:
        return average + unit
    return f"{average} ± {statistics.stdev(numbers):.{digits}f}{unit}"


def select(rows: Rows, **where: Any) -> list[Row]:
    """Rows that say so, by seed; of a tuple, one of its values is enough.

    Example:
        >>> select([{"seed": 1, "arm": "a"}, {"seed": 0, "arm": "b"}], arm=("a", "b"))
        [{'seed': 0, 'arm': 'b'}, {'seed': 1, 'arm': 'a'}]
    """
    chosen = [row for row in rows if all(_equal(row.get(name), v) for name, v in where.items())]
    return sorted(chosen, key=lambda row: row["seed"])


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple):
        return value in wanted
    if isinstance(value, float) and isinstance(wanted, float):
        return math.isclose(value, wanted, rel_tol=1e-6)
    return value == wanted


def by_seed(rows: Rows, what: What, **where: Any) -> dict[int, float]:
    """{seed: mean over the rows that say so}."""
    of = what if callable(what) else lambda row: row[what]
    values: dict[int, list[float]] = {}
    for row in select(rows, **where):
        values.setdefault(row["seed"], []).append(of(row))
    return {seed: statistics.fmean(listed) for seed, listed in values.items()}


def listed(rows: Rows, what: What, **where: Any) -> list[float]:
    """Values of the seeds, in order."""
    return [*by_seed(rows, what, **where).values()]


@dataclasses.dataclass(frozen=True)
class Value:
    """A number of every seed, made from rows; arithmetic goes seed by seed.

    Attributes:
        of: {seed: number} of rows.
        show: how the numbers are written on a page.

    Example:
        >>> rows = [{"seed": 0, "arm": "a", "ms": 3.0}, {"seed": 0, "arm": "b", "ms": 2.0}]
        >>> (each("ms", arm="a") / each("ms", arm="b")).of(rows)
        {0: 1.5}
    """

    of: Callable[[Rows], dict[int, float]]
    show: Callable[[list[float]], str] = shown

    def __add__(self, other: "Value") -> "Value":
        return together(lambda a, b: a + b, self, other)

    def __sub__(self, other: "Value") -> "Value":
        return together(lambda a, b: a - b, self, other)

    def __truediv__(self, other: "Value") -> "Value":
        return together(lambda a, b: a / b, self, other)

    def __rmul__(self, factor: float) -> "Value":
        return Value(lambda rows: {seed: factor * v for seed, v in self.of(rows).items()})

    def over(self, other: "Value") -> "Value":
        """How much it is above the mean of another over all seeds."""
        return Value(lambda rows: {s: v - other.mean(rows) for s, v in self.of(rows).items()})

    def list(self, rows: Rows) -> list[float]:
        """The numbers in the order of the seeds."""
        return [*self.of(rows).values()]

    def mean(self, rows: Rows) -> float:
        """Over the seeds."""
        return statistics.fmean(self.list(rows))

    def shown(self, rows: Rows, digits: int = 2, unit: str = "") -> str:
        """Mean and standard deviation."""
        return self.to(digits, unit).text(rows)

    def text(self, rows: Rows) -> str:
        """The numbers as they are written."""
        return self.show(self.list(rows))

    def to(self, digits: int, unit: str = "") -> "Value":
        """The same, written with so many digits and a unit."""
        write = functools.partial(shown, digits=digits, unit=unit)
        return dataclasses.replace(self, show=write)

    def average(self, digits: int, unit: str = "") -> "Value":
        """The same, written without its standard deviation."""
        write = lambda numbers: shown([statistics.fmean(numbers)], digits, unit)
        return dataclasses.replace(self, show=write)

    @property
    def worst(self) -> "Value":
        """The same, an error of which the largest one of all seeds is written."""
        return dataclasses.replace(self, show=lambda numbers: f"{max(numbers):.0e}")


def together(combine: Callable[..., float], *values: Value) -> Value:
    """What is computed of several values, for the seeds that have all of them."""

    def combined(rows: Rows) -> dict[int, float]:
        parts = [value.of(rows) for value in values]
        seeds = [seed for seed in parts[0] if all(seed in part for part in parts)]
        return {seed: combine(*(part[seed] for part in parts)) for seed in seeds}

    return Value(combined)


def each(what: What, **where: Any) -> Value:
    """A value of rows: the mean over those of a seed that say so."""
    return Value(lambda rows: by_seed(rows, what, **where))


def percent(what: str, **where: Any) -> Value:
    """A fraction that rows say, in percent."""
    return each(lambda row: 100 * row[what], **where)


def of_seed(combine: Callable[[list[Row]], float | None], **where: Any) -> Value:
    """A value that is computed of all rows of a seed that say so; None: the seed has none.

    Example:
        >>> rows = [{"seed": 0, "ms": 3.0}, {"seed": 0, "ms": 2.0}]
        >>> of_seed(lambda rows: max(row["ms"] for row in rows)).of(rows)
        {0: 3.0}
    """

    def of(rows: Rows) -> dict[int, float]:
        chosen = select(rows, **where)
        seeds = dict.fromkeys(row["seed"] for row in chosen)
        made = {s: combine([row for row in chosen if row["seed"] == s]) for s in seeds}
        return {seed: value for seed, value in made.items() if value is not None}

    return Value(of)


def rank(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> float:
    """Spearman's correlation.

    Example:
        >>> rank([1.0, 2.0, 3.0], [10.0, 20.0, 15.0])
        0.5
    """
    result: Any = stats.spearmanr(one, other)
    return float(result.statistic)


def ranks_alike(one: str, other: str, **where: Any) -> Value:
    """The rank correlation of two numbers over the rows of a seed, where it has three or more."""

    def correlation(rows: list[Row]) -> float | None:
        if len(rows) < 3:
            return None
        return rank([row[one] for row in rows], [row[other] for row in rows])

    return of_seed(correlation, **where)


Arm = str | Mapping[str, Any]
"""What rows say: an arm's name, or more."""


def gap(what: What, one: Arm, other: Arm, **where: Any) -> Value:
    """How much one arm is above another, in points."""
    first, second = ({"arm": arm} if isinstance(arm, str) else dict(arm) for arm in (one, other))
    return 100 * (each(what, **{**where, **first}) - each(what, **{**where, **second}))


Holds = Callable[[list[float]], bool] | None
"""Whether the values of the seeds are as they should be; None: nothing is expected."""
Text = str | Callable[[Rows], str]


def says(
    text: Text, paper: str, value: Value, holds: Holds = None, digits: int = 2, unit: str = ""
) -> Statement:
    """A statement about a value; of rows that do not have it, nothing is said.

    Args:
        text: the claim.
        paper: its figure in the paper.
        value: ours.
        holds: of the numbers of all seeds.
        digits: behind the point.
        unit: behind the number.
    """

    def findings(rows: Rows) -> Iterable[Finding]:
        values = value.list(rows)
        if values:
            claim = text(rows) if callable(text) else text
            verdict = None if holds is None else holds(values)
            yield Finding(claim, paper, shown(values, digits, unit), verdict)

    return findings


def at_least(text: Text, paper: str, value: Value, least: float, **more: Any) -> Statement:
    """The mean is so large or larger; `more` as of `says`."""
    return says(text, paper, value, lambda v: statistics.fmean(v) >= least, **more)


def at_most(text: Text, paper: str, value: Value, most: float, **more: Any) -> Statement:
    """The mean is so large or smaller."""
    return says(text, paper, value, lambda v: statistics.fmean(v) <= most, **more)


def above(text: Text, paper: str, value: Value, limit: float, **more: Any) -> Statement:
    """The mean is larger."""
    return says(text, paper, value, lambda v: statistics.fmean(v) > limit, **more)


def below(text: Text, paper: str, value: Value, limit: float, **more: Any) -> Statement:
    """The mean is smaller."""
    return says(text, paper, value, lambda v: statistics.fmean(v) < limit, **more)


def largest(text: str, paper: str, value: Value, limit: float) -> Statement:
    """The largest of all seeds, an error, is below a limit."""
    return several(text, paper, lambda errors: max(errors) < limit, value.worst)


def several(
    text: Text,
    paper: str,
    holds: Callable[..., bool | None],
    *values: Value,
    beside: Sequence[Value] = (),
) -> Statement:
    """A statement about values that stand side by side, each written as it says.

    Args:
        text: the claim.
        paper: its figures in the paper.
        holds: of the numbers of all seeds, a list a value.
        values: ours.
        beside: more of them, which `holds` takes behind the others and the page does not show.
    """

    def findings(rows: Rows) -> Iterable[Finding]:
        lists = [value.list(rows) for value in (*values, *beside)]
        if all(lists):
            ours = "; ".join(value.show(numbers) for value, numbers in zip(values, lists))
            yield Finding(text(rows) if callable(text) else text, paper, ours, holds(*lists))

    return findings


def listing(
    text: Text,
    paper: str,
    values: Mapping[str, Value] | Sequence[Value],
    holds: Callable[..., bool],
) -> Statement:
    """A statement about one value of every arm, each behind its name if it has one.

    Args:
        text: the claim.
        paper: its figure in the paper.
        values: ours, or {what is written before it: ours}.
        holds: of the means, in this order.
    """
    named = values.items() if isinstance(values, Mapping) else [("", value) for value in values]

    def findings(rows: Rows) -> Iterable[Finding]:
        if all(value.list(rows) for _, value in named):
            ours = ", ".join(name + value.text(rows) for name, value in named)
            verdict = holds(*(value.mean(rows) for _, value in named))
            yield Finding(text(rows) if callable(text) else text, paper, ours, verdict)

    return findings


def rising(*means: float) -> bool:
    """Whether none is below the one before it."""
    return all(a <= b for a, b in itertools.pairwise(means))


def told(text: Text, paper: str, value: Value, **more: Any) -> Statement:
    """Nothing is expected."""
    return says(text, paper, value, **more)

"""What stands beside a method: L1 and random at its own steps, random filters in its own widths.

A row beside a method is no arm of the comparison: it is there to be subtracted, seed by seed. Its
`settings` say for what it was made: `{"beside": steps after the cut}` or `{"choice": id of a row}`.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from scipy.special import stdtrit

from jprune.compare.rows import Arm, Row, Runs
from jprune.compare.steps import after, alike

NAMES = ("l1", "random")
"""Methods that stand beside every other one at its own steps after the cut."""
CHOICE = "choice"
"""Key of the column of random filters in the widths that a method chose."""
LEVEL = 0.95
"""Of confidence intervals."""
LENGTH = ("scratch_e", "scratch_b", "dense")
"""Arms that the length of their training defines: nothing stands beside them."""
Beside = Sequence[Row]


class Paired(NamedTuple):
    """How far one arm is ahead of another, over the seeds that both have.

    Attributes:
        mean: of the differences, seed by seed.
        low: lower end of the interval that holds the mean of all seeds with 95 % confidence, by
            Student's t; None for one seed.
        high: its upper end.
        n: number of seeds.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def apart(self) -> bool:
        """Whether the interval leaves 0 out: the order is more than chance of these seeds."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Paired | None:
    """Differences over the seeds that both have, with their interval; None where they share none.

    Args:
        one: {seed: value}.
        other: {seed: value}.

    Example:
        >>> found = paired({0: 0.92, 1: 0.90, 2: 0.91}, {0: 0.90, 1: 0.89, 2: 0.88})
        >>> [round(x, 3) for x in found[:3]], found.n, found.apart
        ([0.02, -0.005, 0.045], 3, False)
    """
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    # d_s: a seed fixes the dense net and the order of the data, so that they fall out.
    differences = [one[seed] - other[seed] for seed in seeds]
    mean, n = statistics.fmean(differences), len(seeds)
    if n == 1:
        return Paired(mean, None, None, 1)
    # d +- t_{n-1, 97.5 %} s / sqrt(n)
    quantile = float(stdtrit(n - 1, 0.5 + LEVEL / 2))
    half = quantile * statistics.stdev(differences) / math.sqrt(n)
    return Paired(mean, mean - half, mean + half, n)


def apart_from(rows: Sequence[Row]) -> tuple[list[Row], Beside]:
    """The rows of arms, and those that stand beside them.

    Example:
        >>> arms, beside = apart_from([{"settings": {}}, {"settings": {"beside": 312}}])
        >>> len(arms), len(beside)
        (1, 1)
    """
    stands = lambda row: bool({"beside", CHOICE} & (row["settings"] or {}).keys())
    return [r for r in rows if not stands(r)], [r for r in rows if stands(r)]


def told(seeds: Mapping[int, Row]) -> int | None:
    """The steps after the cut of an arm: those of its first seed that says them."""
    return next((steps for row in seeds.values() if (steps := after(row)) is not None), None)


def needs(arm: Arm) -> bool:
    """Whether something stands beside an arm: not beside the dense net, or what stands itself.

    Example:
        >>> needs(Arm("ssl", ("macs", 0.5))), needs(Arm("random", ("macs", 0.5)))
        (True, False)
    """
    return arm.budget is not None and arm.method.split()[0] not in (*LENGTH, *NAMES)


def at_own_steps(runs: Runs, beside: Beside, arm: Arm, name: str) -> dict[int, Row]:
    """{seed: row} of L1 or random with as many steps after the cut as an arm has.

    Args:
        runs: arms of the task.
        beside: rows beside them.
        arm: whose steps are asked for.
        name: of `NAMES`.
    """
    steps = told(runs[arm])
    if steps is None:
        return {}
    usual = [
        row
        for other, seeds in runs.items()
        if other.budget == arm.budget and other.method == name
        for row in seeds.values()
    ]
    fits = lambda row: (own := after(row)) is not None and alike(max(own, 1), max(steps, 1))
    asked = [
        row
        for row in beside
        if row["method"] == name and "beside" in row["settings"] and _budget(row) == arm.budget
    ]
    return {row["seed"]: row for row in [*asked, *usual] if fits(row)}


def in_own_widths(runs: Runs, beside: Beside, arm: Arm) -> dict[int, Row]:
    """{seed: row} of random filters in the widths that the rows of an arm chose."""
    ids = {row["id"] for row in runs[arm].values()}
    return {row["seed"]: row for row in beside if (row["settings"] or {}).get(CHOICE) in ids}


def _budget(row: Row) -> tuple[str, float] | None:
    return None if row["budget"] is None else next(iter(row["budget"].items()))


def lacking(runs: Runs, beside: Beside) -> dict[str, list[str]]:
    """{"l1" or "random": methods beside which it does not stand at their own steps}.

    Rows of older versions, which do not tell their steps in three, lack nothing, and neither do
    methods that train nothing behind the cut.
    """
    return {name: missing for name in NAMES if (missing := list(_without(runs, beside, name)))}


def _without(runs: Runs, beside: Beside, name: str) -> Iterable[str]:
    for arm, seeds in runs.items():
        if needs(arm) and told(seeds):
            own = at_own_steps(runs, beside, arm, name)
            if {*seeds} - {*own}:
                yield f"{arm.method} ({told(seeds)})"

"""P33's nets: what ADMM leaves, cut at once and trained again."""

from typing import Any

import numpy as np

from experiments.claims.claim import Case
from experiments.claims.statements import Value, each
from experiments.claims.watched import residuals
from experiments.rows import Row
from jprune.base import Budget, Pruned, Stage
from jprune.job.finish import Law
from jprune.masks import density
from jprune.recipes import Train
from jprune.stages.admm import Admm, Cut
from jprune.stages.splitting import Sets

SETS = {
    "P33a": ("weight", (0.2, 0.08, 0.009, 0.07)),
    "P33b": ("filter+column", ((0.5, 0.5, 0.25), (1.0, 0.3, 1.0, 1.0))),
}
"""{part: (what is kept together, fractions)}."""


def sets_of(case: Case[Any], part: str) -> Sets:
    """What a part keeps, of kernels alone, as in the paper."""
    kinds, keep = SETS[part]
    fractions = 0.5 if case.smoke else keep
    return Sets(Budget(macs=1.0), tuple(kinds.split("+")), fractions, affine=False)


def split(
    case: Case[Any], dense: Pruned, sets: Sets, rounds: int, during: Train, number: int
) -> tuple[Pruned, list[float]]:
    """The net after ADMM, and ||W - Z|| / ||W|| round by round."""
    stage = Admm(during, sets, rounds, case.settings.rho, case.settings.growth)
    return residuals(stage.learner(dense, case.task, case.fold(number)), rounds)


def whole(case: Case[Any], net: Pruned, sets: Sets) -> Pruned:
    """A net without ADMM, ready for the same cut: as many groups by magnitude."""
    return net._replace(extra={"counts": sets.counts(case.task, net), "stopped": 0})


def cut(case: Case[Any], net: Pruned, sets: Sets, after: Stage, number: int) -> tuple[Row, Pruned]:
    """What a row says of the cut, and the net trained after it."""
    pruned, (record,) = Cut(sets)(net, case.task, case.fold(number))
    tuned, _ = after(pruned, case.task, case.fold(number, 1))
    _, (law,) = Law(case.task.fn)(tuned, case.task, case.fold(number))
    row = {
        "density": density(pruned.masks),
        **{name: record["metrics"][name] for name in ("macs", "gap")},
        "before": case.score(pruned),
        "law": law["metrics"]["max_rel_err"],
    }
    return row, tuned


def last_gap(**where: Any) -> Value:
    """The residual of the last round."""
    return each(lambda row: row["gaps"][-1], **where).to(3)


def rounds_that_fall(**where: Any) -> Value:
    """Percentage of the rounds in which the residual falls."""
    fall = each(lambda row: 100 * float((np.diff(row["gaps"]) < 0).mean()), **where)
    return fall.average(0, " %")

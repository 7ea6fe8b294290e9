"""Outliers: units far below the others of their group go, whatever that comes to."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jprune import errors
from jprune.allocate.budgets import floor_of, price_of, step_of, widths
from jprune.base import Allocator, Budget, CostModel
from jprune.masks import density, keep_best


def deviations(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How many standard deviations every score lies above the mean of its group.

    Args:
        scores: {group: [units]}; those at -inf and +inf stay, and count neither for the mean nor
            for the standard deviation, which divides by n. Equal scores deviate by 0.

    Example:
        >>> deviations({"a": np.array([1.0, 3.0, -np.inf])})["a"].tolist()
        [-1.0, 1.0, -inf]
    """

    def one(score: np.ndarray) -> np.ndarray:
        score = np.asarray(score, float)
        finite = np.isfinite(score)
        if not finite.any():
            return score
        mean = score[finite].mean()
        std = score[finite].std()
        # Scores that are equal up to rounding have no outliers.
        std = std if std > 1e-9 * abs(mean) else np.inf
        return np.where(finite, (score - mean) / std, score)

    return {name: one(score) for name, score in scores.items()}


@dataclasses.dataclass(frozen=True)
class Outliers:
    """An allocator: the units go whose score is more than q standard deviations below the mean.

    Never more than the budget asks for: then those that deviate most go first.

    Attributes:
        by_threshold: meets the budget by the deviations, where it decides: `global_topk`.
        q: how many standard deviations.
        groups: how many groups are pruned at once, those of the lowest mean score; None: all.
        last: whether the budget is met: where the rule does not reach it, q is lowered for all
            groups together until it is.

    Example:
        >>> from jprune.allocate import global_topk
        >>> zeros = np.array([0.1, 0.2, 0.3, 0.2, 0.95])
        >>> Outliers(global_topk)({"a": 1 - zeros}, Budget(density=0.5))["a"].tolist()
        [True, True, True, True, False]
        >>> Outliers(global_topk, last=True)({"a": 1 - zeros}, Budget(density=0.6))["a"].tolist()
        [True, True, False, True, False]
    """

    by_threshold: Allocator
    q: float = 1.0
    groups: int | None = None
    last: bool = False

    def __post_init__(self):
        if not (self.q >= 0 and (self.groups is None or self.groups >= 1)):
            raise errors.ArgumentError(
                f"outliers with q={self.q}, groups={self.groups}: q is 0 or more, groups None or 1 "
                "or more."
            )

    def __call__(
        self,
        scores: Mapping[str, np.ndarray],
        budget: Budget,
        cost_model: CostModel | None = None,
    ) -> dict[str, np.ndarray]:
        """See `jprune.base.Allocator`; scores are of units.

        Raises:
            ArgumentError: NaN scores, or a missing cost model.
            BudgetError: `last`, and a budget that cannot be met.
        """
        scores = {name: np.asarray(score, float) for name, score in scores.items()}
        above = deviations(scores)
        if any(np.isnan(score).any() for score in scores.values()):
            return dict(self.by_threshold(above, budget, cost_model))  # refuses them, by name
        mean = lambda name: float(scores[name][np.isfinite(scores[name])].mean())
        open_ = [name for name in scores if np.isfinite(scores[name]).any()]
        now = sorted(open_, key=mean)[: self.groups]
        masks = {
            name: self._kept(name, above[name], budget) if name in now else score > -np.inf
            for name, score in above.items()
        }
        price = density if budget.kind == "density" else price_of(scores, budget, cost_model)
        fits = price(masks) <= float(budget.value) + 1e-9
        if not fits and not self.last:
            return masks
        # One order for all groups: a budget is one threshold on the deviations. Where the rule
        # alone would prune more than is asked for, what it keeps is not touched.
        fixed = {
            name: np.where(masks[name], np.inf, score) if fits else score
            for name, score in above.items()
        }
        return dict(self.by_threshold(fixed, budget, cost_model))

    def _kept(self, name: str, above: np.ndarray, budget: Budget) -> np.ndarray:
        """What the rule keeps of a group, widened to a width that the budget allows."""
        # The paper prunes c where APoZ_c > mean + q std, that is (s_c - mean) / std < -q.
        keep = above >= -self.q
        step = step_of(above.size, budget)
        allowed = widths(above.size, floor_of(name, above.size, budget), step)
        wide = next(width for width in allowed if width >= keep.sum())
        return keep_best(above, wide)

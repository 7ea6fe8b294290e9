"""Towards counts: every group loses its own number of entries, at its own pace."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jprune import errors
from jprune.allocate.budgets import check_scores
from jprune.base import Allocator, Budget, CostModel, Masks, PyTree, Scores, is_none
from jprune.masks import keep_best


def toward(counts: PyTree) -> Allocator:
    """An allocator that keeps these numbers of entries in the end, and more at higher densities.

    With n entries in all, of which k are kept in the end, the end is the density k / n. At a higher
    density d a group has lost the part (1 - d) / (1 - k / n) of what it loses in the end, rounded:
    so groups with unequal counts thin out together, and those that stay whole lose nothing.

    Args:
        counts: a tree like the scores: how many entries are kept of every group or leaf; None where
            nothing is pruned, whatever the scores are.

    Returns:
        `(scores, budget, cost_model) -> masks`, for budgets in density, which may be traced; ties
        by lowest index.

    Raises:
        ArgumentError: NaN scores; a budget in anything but density.

    Example:
        >>> from jprune.base import Budget
        >>> scores = {"a": np.array([1.0, 4.0, 2.0, 3.0]), "b": np.array([9.0, 8.0])}
        >>> keep = toward({"a": 1, "b": 2})
        >>> for density in (1.0, 0.75, 0.5):
        ...     print({n: m.astype(int).tolist() for n, m in keep(scores, Budget(density=density),
        ...            None).items()})
        {'a': [1, 1, 1, 1], 'b': [1, 1]}
        {'a': [0, 1, 0, 1], 'b': [1, 1]}
        {'a': [0, 1, 0, 0], 'b': [1, 1]}
    """

    def allocator(scores: Scores, budget: Budget, cost_model: CostModel | None = None) -> Masks:
        del cost_model
        if budget.kind != "density":
            raise errors.ArgumentError(
                f"toward(counts) with Budget({budget.kind}={budget.value}): the counts are the "
                "budget. Write Budget(density=...)."
            )
        check_scores(scores)
        pairs: list[tuple[int, Any]] = []
        jax.tree.map(
            lambda count, leaf: None if count is None else pairs.append((count, leaf)),
            counts, scores, is_leaf=is_none,
        )  # fmt: skip
        total = sum(int(np.size(leaf)) for _, leaf in pairs)
        goes = 1 - sum(int(count) for count, _ in pairs) / max(total, 1)
        xnp = jnp if isinstance(budget.value, Tracer) else np
        # (1 - d) / (1 - k / n): which part of what goes is gone
        gone = xnp.clip((1 - budget.value) / goes, 0.0, 1.0) if goes > 0 else xnp.zeros(())
        # All of it at the end itself, which is k / n in single precision.
        gone = xnp.where(gone > 1 - 1e-6, 1.0, gone)

        def one(count: Any, leaf: Any) -> Any:
            if count is None:
                return None
            size = int(np.size(leaf))
            lost = xnp.round(gone * (size - int(count)))
            return keep_best(leaf, size - lost.astype(int))

        return jax.tree.map(one, counts, scores, is_leaf=is_none)

    return allocator

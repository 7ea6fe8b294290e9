"""What the removal of each unit really does to the loss, and how well scores agree with that."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Criterion, Groups, Scores
from jprune.criteria._average import add, start, value_of
from jprune.curvature.products import losses_of, weights_of
from jprune.masks import apply_masks
from jprune.units import expand


def removal(
    fn: Callable[..., Any],
    loss: Callable[..., Any],
    groups: Groups,
    signed: bool = False,
    has_aux: bool = False,
) -> Criterion:
    """The oracle: every unit is removed once, alone, and the loss is measured again.

    It runs the net once for every unit and batch, so it is for judging other criteria
    (`rank_agreement`), and for small nets.

    Args:
        fn: `fn(variables, batch["image"])`.
        loss: `loss(out, batch) -> [batch]`.
        groups: from `trace`.
        signed: score by C(without) - C, so that units whose removal helps go first; by default its
            absolute value, over all batches together.
        has_aux: `fn` returns `(out, statistics)`.

    Returns:
        A criterion; scores are {group: [units]}.

    References:
        Molchanov, Tyree, Karras, Aila, Kautz, Pruning convolutional neural networks for resource
        efficient inference, 2017, arXiv 1611.06440 (oracle-abs and oracle-loss).

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
        >>> loss = lambda out, batch: out[:, 0]
        >>> variables = {"a": jnp.eye(2), "b": jnp.array([[1.0], [-3.0]])}
        >>> batch = {"image": jnp.array([[2.0, 1.0], [4.0, 1.0]])}
        >>> groups = jprune.trace(fn, variables, batch["image"])
        >>> jprune.run_criterion(removal(fn, loss, groups, signed=True), variables, [batch])["a"]
        Array([-3.,  3.], dtype=float32)
    """
    out_of = (lambda result: result[0]) if has_aux else (lambda result: result)

    def init(variables: Any) -> Any:
        del variables
        numbers = lambda size: jax.ShapeDtypeStruct((size,), jnp.result_type(float))
        return start({name: numbers(size) for name, size in groups.sizes.items()})

    @jax.jit
    def update(state: Any, variables: Any, batch: Any) -> Any:
        weights = weights_of(batch)
        shares = weights / weights.sum()

        def mean_loss(variables: Any) -> jax.Array:
            return shares @ losses_of(loss, out_of(fn(variables, batch["image"])), batch)

        before = mean_loss(variables)

        def change(name: str) -> jax.Array:
            size = groups.sizes[name]
            # One after another: all nets at once would need as many times the memory.
            without = lambda unit: mean_loss(
                apply_masks(variables, expand(groups, {name: jnp.arange(size) != unit}))
            )
            # C(D | W without the unit) - C(D | W)
            return jax.lax.map(without, jnp.arange(size)) - before

        changes = {name: change(name) for name in groups.sizes}
        return add(state, changes, None, 1, weights.sum())

    def score(state: Any, variables: Any) -> dict[str, Any]:
        del variables
        changes = value_of(state, None)
        return changes if signed else jax.tree.map(abs, changes)

    return Criterion(init, update, score)


class Agreement(NamedTuple):
    """Spearman's rank correlations of two sets of scores.

    Attributes:
        groups: {group: correlation of its units}.
        mean: of the groups, each counting alike.
        all: of all units together, as a global selection ranks them.
    """

    groups: dict[str, float]
    mean: float
    all: float


def rank_agreement(scores: Scores, reference: Scores) -> Agreement:
    """How far two criteria rank units alike: Spearman's correlation, by group and over all.

    Scores that are not comparable between groups agree within each and not over all; see
    `allocate.normalized`.

    Args:
        scores: {group: [units]}.
        reference: likewise, for the same groups (others are ignored), such as those of `removal`.

    Raises:
        ArgumentError: no group is in both, units of different number, or scores that are not
            finite.

    Example:
        >>> one = {"a": [1.0, 2.0, 3.0], "b": [30.0, 10.0]}
        >>> rank_agreement(one, {"a": [0.1, 0.2, 0.3], "b": [0.5, 0.6]})
        Agreement(groups={'a': 1.0, 'b': -1.0}, mean=0.0, all=0.9)
    """
    pairs = _pairs(scores, reference)
    by_group = {name: spearman(*pair) for name, pair in pairs.items()}
    one, two = (np.concatenate(side) for side in zip(*pairs.values(), strict=True))
    # Groups of one unit, or of equal scores, have no order.
    ranked = [value for value in by_group.values() if not np.isnan(value)]
    mean = float(np.mean(ranked)) if ranked else float("nan")
    return Agreement(by_group, mean, spearman(one, two))


def _pairs(scores: Scores, reference: Scores) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{group: both scores}."""
    both = [name for name in scores if name in reference]
    if not both:
        raise errors.ArgumentError(
            f"the scores are of {', '.join(scores) or 'no group'}, the reference is of "
            f"{', '.join(reference) or 'no group'}: score the same net by both."
        )
    numbers = lambda values: np.asarray(values, float)
    pairs = {str(name): (numbers(scores[name]), numbers(reference[name])) for name in both}
    for name, (one, two) in pairs.items():
        if one.shape != two.shape or not np.isfinite([one, two]).all():
            raise errors.ArgumentError(
                f"the scores of {name} have shapes {one.shape} and {two.shape}, and all must be "
                "finite numbers: score the net before units are masked."
            )
    return pairs


def spearman(one: Any, two: Any) -> float:
    """Spearman's rank correlation of two sequences; NaN where one of them has no order.

    Without equal values it is 1 - 6 sum d_i^2 / (N (N^2 - 1)); equal ones share their mean rank.

    Example:
        >>> round(spearman([1, 2, 3, 4], [1, 3, 2, 4]), 6), spearman([1, 1], [1, 2])
        (0.8, nan)
    """
    ranks = [_ranks(np.asarray(values, float)) for values in (one, two)]
    # Pearson's correlation of the ranks, which that formula is where no ranks are equal
    one, two = (rank - rank.mean() for rank in ranks)
    size = np.sqrt((one @ one) * (two @ two))
    return float(np.round(one @ two / size, 12)) if size > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    """0, 1, ... in rising order; equal values get the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[which]

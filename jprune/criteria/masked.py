"""Masked: entries that are pruned already stay pruned."""

from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.base import Criterion, Masks, PyTree, Scores, Variables, is_none
from jprune.graph.shrink.concrete import on_host


def masked(criterion: Criterion, masks: Masks) -> Criterion:
    """The same criterion, with -inf where the masks are False.

    A pruned weight is 0 and most criteria score it 0. That is not the lowest score there may be: a
    tie, or a negative score elsewhere, would bring it back. Allocators never keep -inf.

    Args:
        criterion: scores units or weights.
        masks: {group: [units]}, or a tree like the variables; a None mask, or a group without
            one, leaves its scores as they are.

    Raises:
        StructureError: masks of another net (when scoring).

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> from jprune import criteria
        >>> criterion = masked(criteria.magnitude(), {"w": jnp.array([True, False])})
        >>> jprune.run_criterion(criterion, {"w": jnp.array([-3.0, 0.0])}, ())["w"]
        Array([  3., -inf], dtype=float32)
    """

    def score(state: PyTree, variables: Variables) -> Scores:
        scores = criterion.score(state, variables)
        try:
            return jax.tree.map(_gone, _whole(masks, scores), scores, is_leaf=is_none)
        except (ValueError, TypeError) as error:
            raise errors.StructureError(
                f"the masks do not fit the scores: {error}. Masks are {{group: [units]}} for a "
                "criterion that scores units, and a tree like the variables for one that scores "
                "weights; expand(groups, masks) makes these of those."
            ) from None

    return criterion._replace(score=score)


def _whole(masks: Masks, scores: Scores) -> Masks:
    """A mask for every name of the scores, None where `masks` has none."""
    # Only for dictionaries; other trees are compared leaf by leaf.
    if not (isinstance(masks, dict) and isinstance(scores, dict)) or not masks.keys() & scores:
        return masks
    none = lambda part: jax.tree.map(_nothing, part, is_leaf=is_none)
    return {name: masks[name] if name in masks else none(part) for name, part in scores.items()}


def _nothing(leaf: Any) -> None:
    del leaf


def _gone(mask: Any, score: Any) -> Any:
    # Compared here, since `where` would broadcast a mask of the wrong shape.
    if mask is None or score is None:
        return score
    if np.shape(mask) != np.shape(score):
        raise ValueError(f"a mask of shape {np.shape(mask)} for scores of {np.shape(score)}")
    return on_host(lambda xnp, mask, score: xnp.where(mask, score, -xnp.inf))(mask, score)

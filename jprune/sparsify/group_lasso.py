"""Group lasso: a penalty on the norm of every group of weights, as a step that zeroes whole groups.

References:
    Yuan, Lin, Model selection and estimation in regression with grouped variables, 2006. The step:
    Parikh, Boyd, Proximal algorithms, 2014. In nets: Wen, Wu, Wang, Chen, Li, Learning structured
    sparsity in deep neural networks, 2016, arXiv 1608.03665 [13].
"""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Params, PyTree, Schedule
from jprune.blocks.members import Blocks, along, leaves_of, scaled, squares


class Term(NamedTuple):
    """One family of groups, and how strongly each block of it is penalised."""

    blocks: Blocks
    strengths: Mapping[str, float]
    """{block: lambda}."""
    least: Mapping[str, int] = MappingProxyType({})
    """{block: groups that are left}: the largest of them stay as they are when they would go."""
    units: bool = False
    """Whether groups are units. In terms of units the same ones are left: those whose smallest norm
    of all such terms is the largest."""


def group_penalty(terms: Sequence[Term], leaves: Mapping[str, Any]) -> jax.Array:
    """Sum over terms and groups of lambda ||w_g||; its gradient at a group of zeros is 0.

    Args:
        terms: families; those that overlap simply add.
        leaves: {path: array}.

    Example:
        >>> from jprune.blocks.members import Block, Member
        >>> rows = {"w": Block(2, (Member("w", (0,), None),))}
        >>> term = Term(rows, {"w": 0.1})
        >>> w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
        >>> print(jax.grad(lambda w: group_penalty([term], {"w": w}))(w).round(2))
        [[0.06 0.08]
         [0.   0.  ]]
    """
    total = jnp.zeros(())
    for blocks, strengths, *_ in terms:
        for name, square in squares(blocks, leaves).items():
            positive = square > 0  # the root's gradient at 0 is not finite, and 0 of it is NaN
            norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
            total = total + strengths[name] * norm.sum()
    return total


def shrunk(
    terms: Sequence[Term], leaves: Mapping[str, Any], step_size: Any, how: str = "prox"
) -> dict[str, Any]:
    """Leaves after one step against the penalty, w_g max(0, 1 - t lambda / ||w_g||) a group.

    Args:
        terms: families. They act one after the other: exact where groups of an earlier one lie
            inside those of a later one (columns before channels before branches), else an
            approximation of the step of the sum.
        leaves: {path: array}.
        step_size: t.
        how: "prox", or "subgradient": w_g (1 - t lambda / ||w_g||), which goes past 0 and back and
            meets it never.

    Example:
        >>> from jprune.blocks.members import Block, Member
        >>> term = Term({"w": Block(2, (Member("w", (0,), None),))}, {"w": 1.0})
        >>> shrunk([term], {"w": jnp.array([[3.0, 4.0], [0.3, 0.4]])}, 1.0)["w"]
        Array([[2.4, 3.2],
               [0. , 0. ]], dtype=float32)
    """
    found, lasts = dict(leaves), _last(terms, leaves)
    for (blocks, strengths, *_), last in zip(terms, lasts):
        factors = {}
        for name, square in squares(blocks, found).items():
            norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
            factor = jnp.where(square > 0, 1.0 - step_size * strengths[name] / norm, 0.0)
            factors[name] = _stopped(factor, last.get(name)) if how == "prox" else factor
        found = scaled(blocks, found, factors) if how == "prox" else _moved(blocks, found, factors)
    return found


def _last(terms: Sequence[Term], leaves: Mapping[str, Any]) -> list[dict[str, jax.Array]]:
    """{block: bool [groups]} of every term: what is not taken, where `Term.least` leaves some."""
    found = []
    for term in terms:
        beside = [other for other in terms if other.units] if term.units else [term]
        found.append({})
        for name, least in ((name, least) for name, least in term.least.items() if least):
            square = functools.reduce(
                jnp.minimum,
                (squares({name: other.blocks[name]}, leaves)[name]
                 for other in beside if name in other.blocks),
            )  # fmt: skip
            smallest = jax.lax.top_k(square, min(least, square.size))[0][-1]
            found[-1][name] = (square >= smallest) & (square > 0)
    return found


def _stopped(factor: jax.Array, last: jax.Array | None) -> jax.Array:
    """Factors of at least 0, and of 1 for groups that would go and are among the last ones."""
    if last is None:
        return jnp.maximum(factor, 0.0)
    return jnp.where(factor > 0, factor, jnp.where(last, 1.0, 0.0))


def _moved(blocks: Blocks, leaves: Mapping[str, Any], factors: Mapping[str, Any]) -> dict[str, Any]:
    """As `scaled`, but followers are left alone and factors may be negative."""
    members = {name: block._replace(followers=()) for name, block in blocks.items()}
    return scaled(members, leaves, factors)


def cleared(terms: Sequence[Term], leaves: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """Leaves whose penalised weights are 0 where |w| < threshold, and followers of zero groups."""
    found = dict(leaves)
    for blocks, *_ in terms:
        for block in blocks.values():
            for member in block.members:
                if (leaf := found.get(member.path)) is not None:
                    inside = along(member, leaf.shape, jnp.ones(block.size, bool), False)
                    found[member.path] = jnp.where(inside & (jnp.abs(leaf) < threshold), 0, leaf)
        alive = {name: (s > 0).astype(s.dtype) for name, s in squares(blocks, found).items()}
        found = scaled(blocks, found, alive)
    return found


def group_lasso(
    terms: Sequence[Term],
    paths: PyTree,
    rate: Schedule,
    *,
    how: str = "prox",
    threshold: float = 0.0,
) -> optax.GradientTransformation:
    """Takes rate * lambda off the norm of every group in a step.

    Stands behind the step of the optimizer, where momentum does not gather it. With momentum m and
    rate = learning rate / (1 - m) the weights at which nothing moves any more are those of loss +
    penalty. Nothing is masked: a group that is 0 comes back once its gradient is longer than
    lambda, if it has one. Followers of a group go with it, so the output of a whole filter is 0
    then, where a ReLU has no gradient: channels and columns come back, such filters do not.

    Args:
        terms: families of groups, see `shrunk` for their order.
        paths: a tree like the parameters, of the leaves' paths among the traced variables.
        rate: step -> size of a step.
        how: "prox", or "subgradient".
        threshold: penalised weights below it become 0 after every step (the paper's code has 1e-4
            with the subgradient, which makes no zeros by itself); 0: none.

    Returns:
        An optax transformation whose state is the number of the step.

    Raises:
        ArgumentError: a negative strength or threshold, another `how`, no group; `update` without
            parameters.

    Example:
        >>> from jprune.blocks.members import Block, Member
        >>> term = Term({"w": Block(2, (Member("w", (0,), None),))}, {"w": 1.0})
        >>> tx = group_lasso([term], {"w": "w"}, lambda step: 0.5)
        >>> params = {"w": jnp.array([[3.0, 4.0], [0.3, 0.4]])}
        >>> still = jax.tree.map(jnp.zeros_like, params)
        >>> updates, _ = tx.update(still, tx.init(params), params)
        >>> print(optax.apply_updates(params, updates)["w"].round(2))
        [[2.7 3.6]
         [0.  0. ]]
    """
    terms = tuple(terms)
    _check(terms, how, threshold)

    def init(params: Params) -> jax.Array:
        leaves_of(paths, params)  # the same number of leaves
        return jnp.zeros((), jnp.int32)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "group_lasso needs the parameters: call tx.update(gradients, state, params)."
            )
        before = leaves_of(paths, params)
        moved = {path: before[path] + change for path, change in leaves_of(paths, updates).items()}
        after = shrunk(terms, moved, rate(state), how)
        after = cleared(terms, after, threshold) if threshold else after
        # Leaves that no group touches keep the optimizer's own step, to the last bit.
        changes = {
            path: change if after[path] is moved[path] else after[path] - before[path]
            for path, change in leaves_of(paths, updates).items()
        }
        return jax.tree.unflatten(jax.tree.structure(updates), list(changes.values())), state + 1

    return optax.GradientTransformation(init, update)


def _check(terms: Sequence[Term], how: str, threshold: float) -> None:
    if how not in ("prox", "subgradient") or threshold < 0:
        raise errors.ArgumentError(
            f"group_lasso(how={how!r}, threshold={threshold}); write how='prox' or 'subgradient', "
            "and a threshold of 0 or more."
        )
    strengths = [strength for term in terms for strength in term.strengths.values()]
    if not strengths or min(strengths) < 0:
        raise errors.ArgumentError(
            f"group_lasso got strengths {strengths}; one or more groups are penalised, each by 0 "
            "or more."
        )

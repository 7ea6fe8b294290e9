"""Group lasso: a penalty on the norm of every group of weights, as a step that zeroes whole groups.

    E(W) = E_D(W) + sum_f lambda_f sum_g ||w_g||

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
from jprune.base import Params, Schedule, Variables
from jprune.blocks.members import Blocks, along, by_kind, leaves_of, scale, squares

Strength = float | Mapping[str, Any]
"""Lambda of all blocks; {block: lambda}; of blocks of several kinds also {kind: either of them}."""


class Term(NamedTuple):
    """The groups of one kind, and how strongly each block of them is penalised.

    Attributes:
        blocks: of one kind.
        strengths: {block: lambda}.
        least: {block: the smallest number of groups that stay}: the largest ones, which the step
            does not change where it would zero them. Units are ranked by the smallest of their
            norms in all terms of units, so that the same units stay in each of them.
    """

    blocks: Blocks
    strengths: Mapping[str, float]
    least: Mapping[str, int] = MappingProxyType({})


def terms_of(
    blocks: Blocks | Sequence[Blocks],
    strength: Strength,
    least: int | Mapping[str, Any] = 0,
) -> tuple[Term, ...]:
    """A term for every kind.

    Args:
        blocks: of one kind or of several.
        strength: of the penalty.
        least: the smallest number of groups of a block that stay; for all, by block, or by kind.

    Raises:
        ArgumentError: there is no group, a strength is negative, or one is missing or of a block
            that is not there.
    """
    pairs = zip(by_kind(blocks, strength, "strength"), by_kind(blocks, least, "least"))
    terms = tuple(
        Term(each, _by_block(each, own, "strength"), _by_block(each, most, "least"))
        for (each, own), (_, most) in pairs
    )
    values = [value for term in terms for value in term.strengths.values()]
    if not values or not min(values) >= 0:
        raise errors.ArgumentError(
            f"group_lasso got strengths {values}; one or more groups are penalised, each by 0 "
            "or more."
        )
    return terms


def _by_block(blocks: Blocks, values: Any, option: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        return dict.fromkeys(blocks, values)
    if {*values} != {*blocks}:
        raise errors.ArgumentError(
            f"{option} is of the {blocks.kind}s {', '.join(values) or 'of nothing'}; write one "
            f"number, or one for each of {', '.join(blocks)}."
        )
    return values


def group_penalty(
    blocks: Blocks | Sequence[Blocks], strength: Strength, variables: Variables
) -> jax.Array:
    """Sum over kinds and groups of lambda ||w_g||; its gradient at a group of zeros is 0.

    Args:
        blocks: of one kind or of several; those that overlap simply add.
        strength: lambda.
        variables: those of the traced net or a part of them.

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> w = {"w": jnp.array([[3.0, 0.0], [4.0, 0.0]])}
        >>> rows = blocks.rows(jprune.trace(lambda v, x: x @ v["w"], w, jnp.ones(2)))
        >>> print(jax.grad(lambda w: group_penalty(rows, 0.1, w))(w)["w"].round(2))
        [[0.06 0.  ]
         [0.08 0.  ]]
    """
    total = jnp.zeros(())
    for each, strengths, _ in terms_of(blocks, strength):
        for name, square in squares(each, variables).items():
            # The gradient of a root at 0 is inf, and 0 times it NaN: the root is taken of 1 there.
            positive = square > 0
            norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
            # lambda sum_g ||w_g||
            total = total + strengths[name] * norm.sum()
    return total


def shrunk(
    terms: Sequence[Term], variables: Variables, step_size: Any, how: str = "prox"
) -> Variables:
    """The variables after one step against the penalty, w_g max(0, 1 - t lambda / ||w_g||).

    Args:
        terms: kinds. They act one after the other: exact where groups of an earlier one lie
            inside those of a later one (columns before channels before branches), else an
            approximation of the step of the sum.
        variables: those of the traced net or a part of them.
        step_size: t.
        how: "prox", or "subgradient": w_g (1 - t lambda / ||w_g||), which passes 0 and comes back,
            and never is 0.
    """
    lasts = _last(terms, variables)
    for (blocks, strengths, _), last in zip(terms, lasts):
        factors = {}
        for name, square in squares(blocks, variables).items():
            norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
            # 1 - t lambda / ||w_g||
            factor = jnp.where(square > 0, 1.0 - step_size * strengths[name] / norm, 0.0)
            factors[name] = _clipped(factor, last.get(name)) if how == "prox" else factor
        # A negative factor would zero the followers of a group that only swings past 0.
        if how != "prox":
            alone = {name: block._replace(followers=()) for name, block in blocks.items()}
            blocks = Blocks(blocks.kind, blocks.per, alone, blocks.groups)
        variables = scale(blocks, variables, factors)
    return variables


def _last(terms: Sequence[Term], variables: Variables) -> list[dict[str, jax.Array]]:
    """{block: bool [groups]} of every term: the `Term.least` largest groups."""
    lasts: list[dict[str, jax.Array]] = []
    for term in terms:
        of_units = term.blocks.per == "unit"
        beside = [t for t in terms if t.blocks.per == "unit"] if of_units else [term]
        lasts.append({})
        for name, least in ((name, least) for name, least in term.least.items() if least):
            # min over filter and channel of ||w_g||^2: a unit is gone when either is.
            square = functools.reduce(
                jnp.minimum,
                (
                    squares(other.blocks.where((name,)), variables)[name]
                    for other in beside
                    if name in other.blocks
                ),
            )
            # The `least`-th largest; ties with it stay too.
            smallest = jax.lax.top_k(square, min(least, square.size))[0][-1]
            lasts[-1][name] = (square >= smallest) & (square > 0)
    return lasts


def _clipped(factor: jax.Array, last: jax.Array | None) -> jax.Array:
    """Clipped at 0; the `least` largest groups that would vanish keep factor 1."""
    if last is None:
        return jnp.maximum(factor, 0.0)
    # max(0, 1 - t lambda / ||w_g||), and 1 where the group is one of the last
    return jnp.where(factor > 0, factor, jnp.where(last, 1.0, 0.0))


def cleared(terms: Sequence[Term], variables: Variables, threshold: float) -> Variables:
    """Zeroes penalised weights with |w| < threshold, and the followers of groups that are all 0."""
    for blocks, *_ in terms:
        leaves = leaves_of(blocks, variables)
        for block in blocks.values():
            for member in block.members:
                if (leaf := leaves.get(member.path)) is not None:
                    inside = along(member, leaf.shape, jnp.ones(block.size, bool), False)
                    small = inside & (jnp.abs(leaf) < threshold)
                    leaves[member.path] = jnp.where(small, jnp.zeros_like(leaf), leaf)
        variables = jax.tree.unflatten(jax.tree.structure(variables), list(leaves.values()))
        # A group of zeros takes its followers along: else its shift would go on speaking.
        factors = {name: 1.0 * (square > 0) for name, square in squares(blocks, variables).items()}
        variables = scale(blocks, variables, factors)
    return variables


def group_lasso(
    blocks: Blocks | Sequence[Blocks],
    strength: Strength,
    rate: float | Schedule,
    *,
    how: str = "prox",
    threshold: float = 0.0,
    least: int | Mapping[str, Any] = 0,
) -> optax.GradientTransformation:
    """Takes rate * lambda off the norm of every group in a step.

    Place it behind the optimizer, so that momentum does not accumulate the penalty. With momentum m
    and rate = learning rate / (1 - m), weights come to rest at a minimum of loss + penalty. Nothing
    is masked: a group that is 0 comes back once the norm of its gradient exceeds lambda. Channels
    and columns do come back. Filters behind a ReLU do not: followers go with their group, so the
    output of such a filter is 0, where a ReLU has no gradient.

    Args:
        blocks: the groups, from `jprune.blocks`; of several kinds, small groups first (see
            `shrunk`).
        strength: lambda.
        rate: size of a step, or step -> size.
        how: "prox", or "subgradient".
        threshold: penalised weights below it become 0 after every step (the paper's code has 1e-4
            with the subgradient, which makes no zeros by itself); 0: none.
        least: how many groups of a block stay whatever the penalty; for all, or by block.

    Returns:
        An optax transformation whose state is the number of the step. `blocks.alive` says which
        groups are other than 0.

    Raises:
        ArgumentError: a negative strength or threshold, another `how`, no group; `update` without
            parameters.
        StructureError: parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> params = {"w": jnp.array([[3.0, 0.3], [4.0, 0.4]])}
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], params, jnp.ones(2))
        >>> tx = group_lasso(blocks.rows(groups), strength=1.0, rate=0.5)
        >>> still = jax.tree.map(jnp.zeros_like, params)
        >>> updates, _ = tx.update(still, tx.init(params), params)
        >>> print(optax.apply_updates(params, updates)["w"].round(2))
        [[2.7 0. ]
         [3.6 0. ]]
    """
    terms = terms_of(blocks, strength, least)
    if how not in ("prox", "subgradient") or threshold < 0:
        raise errors.ArgumentError(
            f"group_lasso(how={how!r}, threshold={threshold}); write how='prox' or 'subgradient', "
            "and a threshold of 0 or more."
        )

    def init(params: Params) -> jax.Array:
        for term in terms:
            leaves_of(term.blocks, params)  # refuses parameters of another net
        return jnp.zeros((), jnp.int32)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "group_lasso needs the parameters: call tx.update(gradients, state, params)."
            )
        moved = jax.tree.map(jnp.add, params, updates)
        after = shrunk(terms, moved, rate(state) if callable(rate) else rate, how)
        after = cleared(terms, after, threshold) if threshold else after
        # Leaves that no group touches keep the optimizer's own step, to the last bit.
        changes = jax.tree.map(
            lambda change, param, step, new: change if new is step else new - param,
            updates, params, moved, after,
        )  # fmt: skip
        return changes, state + 1

    return optax.GradientTransformation(init, update)

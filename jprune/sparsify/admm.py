"""ADMM: weights trained towards a copy of them that is sparse, with duals beside both.

    W: minimise f(W) + rho/2 ||W - Z + U||^2 by steps of an optimizer;   every so many steps
    Z <- projection(W + U);   U <- U + W - Z

References:
    Boyd, Parikh, Chu, Peleato, Eckstein, Distributed optimization and statistical learning via the
    alternating direction method of multipliers, 2011. In nets: Zhang, Zhang, Ye, Li, Tang, Wen,
    Lin, Fardad, Wang, StructADMM, 2018, arXiv 1807.11091 [33].
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Params, PyTree, Variables, is_none
from jprune.blocks.members import Blocks, by_kind, leaves_of, scale, squares
from jprune.graph.shrink.concrete import as_array, at_once, full
from jprune.masks import best

Projection = Callable[[Params], PyTree]
"""Parameters to the nearest ones of a set; None at leaves that the set does not constrain."""

Keep = float | Mapping[str, Any]
"""Fraction of the groups of each block; {block: how many}; {kind: either of them}."""


class AdmmState(NamedTuple):
    """State of `admm`; Z and U are trees like the parameters, None where nothing is projected.

    Attributes:
        step: how many steps were taken.
        target: Z.
        duals: U, scaled: the multipliers over rho.
        rho: of this round.
        size: ||W|| at the beginning. Duals are compared with it, since W itself grows with duals
            that diverge.
        primal: ||W - Z|| / ||W|| at the last refresh.
        change: ||Z - the Z before|| / ||W|| at the last refresh: the dual residual over rho ||W||.
        good: the parameters at the last refresh whose duals were good.
        stopped: the round in which the duals diverged; 0: they have not.
        inner: state of the optimizer of the W-step.
    """

    step: jax.Array
    target: PyTree
    duals: PyTree
    rho: jax.Array
    size: jax.Array
    primal: jax.Array
    change: jax.Array
    good: PyTree
    stopped: jax.Array
    inner: PyTree


def counts_of(blocks: Blocks, keep: Keep) -> dict[str, int]:
    """{block: how many of its groups are kept}.

    Args:
        blocks: of one kind.
        keep: a fraction in (0, 1], of which 1 group is the least; or counts by block.

    Raises:
        ArgumentError: another fraction, or counts that are not one for every block.
    """
    if isinstance(keep, Mapping):
        wrong = [n for n in keep if n in blocks and not 0 <= keep[n] <= blocks[n].size]
        if {*keep} != {*blocks} or wrong:
            raise errors.ArgumentError(
                f"projection(keep={dict(keep)}); write a fraction, or for each of "
                f"{', '.join(blocks)} how many of its groups are kept."
            )
        return {name: int(keep[name]) for name in blocks}
    if not 0 < keep <= 1:
        raise errors.ArgumentError(
            f"projection(keep={keep}); it is the fraction of groups kept, in (0, 1], or a count "
            "for every block."
        )
    return {
        # n - round((1 - keep) n): counts of pruned groups are what is rounded, as everywhere.
        name: max(1, block.size - round((1 - keep) * block.size))
        for name, block in blocks.items()
    }


def projection(blocks: Blocks | Sequence[Blocks], keep: Keep) -> Projection:
    """Keeps the groups with the largest norms in every block, and zeroes the others.

    Of one kind, the result is the nearest point of the set. Several kinds are projected in order,
    as the authors do: the result is in all sets, since each projection keeps zeros, but it need not
    be the nearest such point.

    Args:
        blocks: the groups, from `jprune.blocks`, of one kind or of several.
        keep: fraction of the groups of every block, or how many, by block; of several kinds also
            {kind: either of them}.

    Returns:
        `project(parameters)`, None at leaves without such groups; equal norms go by the lowest
        index.

    Raises:
        ArgumentError: a fraction outside (0, 1], or counts that are not one for every block.

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> w = {"w": jnp.array([[3.0, 0.0], [0.0, 2.0], [1.0, 2.0]])}
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], w, jnp.ones(3))
        >>> projection(blocks.rows(groups), keep=0.5)(w)["w"].tolist()
        [[3.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
        >>> projection(blocks.columns(groups), keep={"w": 2})(w)["w"].tolist()
        [[3.0, 0.0], [0.0, 0.0], [1.0, 2.0]]
    """
    sets = [(each, counts_of(each, own)) for each, own in by_kind(blocks, keep, "keep")]

    def project(params: Params) -> PyTree:
        # Z = arg min ||Z - V|| over the set: the groups with the largest norms of V, 0 elsewhere
        near = supports(sets, params)[-1].near if sets else params
        counted = frozenset[str]().union(*(each.counted for each, _ in sets))
        leaves = leaves_of([each for each, _ in sets], near)
        chosen = [leaf if path in counted else None for path, leaf in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(params), chosen)

    return project


class Support(NamedTuple):
    """One kind's projection, after those of the kinds before it.

    Attributes:
        squares: {block: [groups]}: squared norms, left by the projections before this one.
        keep: {block: bool [groups]}: the groups kept.
        near: the variables with zeros at all other groups.
    """

    squares: Mapping[str, Any]
    keep: Mapping[str, Any]
    near: Variables


def supports(
    sets: Sequence[tuple[Blocks, Mapping[str, int]]], variables: Variables
) -> list[Support]:
    """What `projection` keeps, kind by kind.

    Args:
        sets: (blocks, {block: how many groups are kept}), in the order of the projections.
        variables: those of the traced net or a part of them.
    """
    result = []
    for blocks, counts in sets:
        sums = squares(blocks, variables)
        keep = {name: best(square, counts[name]) for name, square in sums.items()}
        # The next kind is projected from here: its norms lack the groups that went.
        variables = scale(blocks, variables, {name: 1.0 * mask for name, mask in keep.items()})
        result.append(Support(sums, keep, variables))
    return result


def _sizes(target: PyTree, params: Params) -> tuple[jax.Array, jax.Array]:
    """||W||, and ||W - Z|| / ||W||."""
    size = norm(_like(target, lambda z, w: w, params))
    return size, norm(_like(target, lambda z, w: w - z, params)) / size


def norm(tree: PyTree) -> jax.Array:
    """The Euclidean norm of all leaves together."""
    return jnp.sqrt(sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), jnp.zeros(())))


def _like(target: PyTree, function: Callable[..., Any], *trees: PyTree) -> PyTree:
    """Maps over the projected leaves; None elsewhere."""
    one = lambda leaf, *others: None if leaf is None else function(leaf, *others)
    return jax.tree.map(one, target, *trees, is_leaf=is_none)


def admm(
    inner: optax.GradientTransformation,
    project: Projection,
    *,
    rho: float,
    every: int,
    growth: float = 1.0,
    limit: float = 100.0,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose weights are pulled towards a sparse copy that follows them.

    The pull rho (W - Z + U) is part of the gradient that `inner` gets: of f, weight decay included.
    Nothing is masked: W is dense. At the end take `projection` of W itself.

    A dual diverges if it is not finite, or longer than `limit` times the first weights. The round
    is then undone: the parameters go back to those of the last good round and stay there, and
    `AdmmState.stopped` says which round it was.

    Args:
        inner: the optimizer of the W-step.
        project: on the set; from `projection`.
        rho: of rho / 2 ||W - Z + U||^2 (authors' code that leaves the half out means twice its
            number).
        every: steps in a round.
        growth: rho is multiplied by this after every round, and the scaled duals divided by it. A
            support is at rest only if max ||df/dW|| / rho over the groups that are dropped is at
            most the smallest norm that is kept: below it the rounds cycle.
        limit: of ||U|| over the norm of the first W.

    Raises:
        ArgumentError: a number out of range; `update` without parameters.
        StructureError: parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> from jprune import blocks
        >>> params = {"w": jnp.array([[2.0, 1.9]])}
        >>> groups = jprune.trace(lambda v, x: x @ v["w"], params, jnp.ones(1))
        >>> tx = admm(optax.sgd(0.5), projection(blocks.rows(groups), 0.5), rho=1.0, every=1)
        >>> state = tx.init(params)
        >>> gradient = jax.tree.map(lambda w: w - jnp.array([[2.0, 1.9]]), params)
        >>> updates, state = tx.update(gradient, state, params)
        >>> print(optax.apply_updates(params, updates)["w"].round(2), state.duals["w"].round(2))
        [[2.   0.95]] [[0.   0.95]]
    """
    if not (rho > 0 and every >= 1 and growth >= 1 and limit > 0):
        raise errors.ArgumentError(
            f"admm(rho={rho}, every={every}, growth={growth}, limit={limit}); rho and limit are "
            "above 0, every and growth 1 or more."
        )
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> AdmmState:
        target = project(params)
        size, gap = at_once(_sizes)(target, params)
        zeros = jax.tree.map(lambda leaf: full(leaf.shape, 0, leaf.dtype), target)
        none = jnp.zeros((), jnp.int32)
        return AdmmState(
            none, target, zeros, as_array(rho), size, gap, full((), 0, gap.dtype), params, none,
            at_once(inner.init)(params),
        )  # fmt: skip

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "admm needs the parameters: call tx.update(gradients, state, params)."
            )
        # In the gradient, and not behind the optimizer: the W-step minimises the whole sum.
        pulled = _pulled(updates, params, state)
        moves, inner_state = inner.update(pulled, state.inner, params, **extra)
        moved = optax.apply_updates(params, moves)
        state = state._replace(step=state.step + 1, inner=inner_state)
        state = jax.lax.cond(
            # After a divergence nothing is refreshed any more: the last good round stays readable.
            (state.step % every == 0) & (state.stopped == 0),
            lambda: _refreshed(state, moved, project, every, growth, limit),
            lambda: state,
        )
        # The update that leads back to the last good
        # parameters; the optimizer's own while all is well.
        back = jax.tree.map(
            lambda good, param, move: jnp.where(state.stopped > 0, good - param, move),
            state.good, params, moves,
        )  # fmt: skip
        return back, state

    return optax.GradientTransformationExtraArgs(init, update)


def _pulled(gradients: PyTree, params: Params, state: AdmmState) -> PyTree:
    """Gradients of f(W) + rho/2 ||W - Z + U||^2."""

    def one(target: Any, dual: Any, gradient: jax.Array, weight: jax.Array) -> jax.Array:
        if target is None:
            return gradient
        # df/dW + rho (W - Z + U)
        return gradient + state.rho.astype(gradient.dtype) * (weight - target + dual)

    return jax.tree.map(one, state.target, state.duals, gradients, params, is_leaf=is_none)


def _refreshed(
    state: AdmmState,
    params: Params,
    project: Projection,
    every: int,
    growth: float,
    limit: float,
) -> AdmmState:
    """The state after a round: a new Z and U, or the mark that they diverged."""
    weights = _like(state.target, lambda z, w: w, params)
    duals = state.duals
    # Z <- projection(W + U)
    ahead = jax.tree.map(lambda u, w: w if u is None else w + u, duals, params, is_leaf=is_none)
    target = project(ahead)
    gap = jax.tree.map(jnp.subtract, weights, target)
    # U <- U + W - Z
    duals = jax.tree.map(jnp.add, duals, gap)
    size = norm(weights)
    good = norm(duals) <= limit * state.size  # False where they are NaN
    change = norm(jax.tree.map(jnp.subtract, target, state.target))
    after = state._replace(
        target=target,
        # The multipliers rho U are what must not jump: U <- U / growth as rho <- growth rho.
        duals=jax.tree.map(lambda dual: dual / growth, duals),
        rho=state.rho * growth,
        primal=norm(gap) / size,
        change=change / size,
        good=params,
    )
    stopped = state._replace(stopped=(state.step // every).astype(jnp.int32))
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), after, stopped)

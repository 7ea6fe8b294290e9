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
from jprune.base import Params, PyTree
from jprune.blocks.members import Blocks, leaves_of, scaled, squares
from jprune.topk import best

Leaves = Mapping[str, jax.Array]
"""{path: array}."""
Projection = Callable[[Leaves], Leaves]
"""Leaves to the nearest ones of a set; leaves that the set says nothing of are left out."""


class AdmmState(NamedTuple):
    """State of `admm`; arrays are {path: ...} of the leaves that are projected."""

    step: jax.Array
    target: Leaves
    """Z."""
    duals: Leaves
    """U, scaled: the multipliers over rho."""
    rho: jax.Array
    size: jax.Array
    """||W|| at the beginning, which the duals are measured by: weights that grow with them say
    nothing."""
    primal: jax.Array
    """||W - Z|| / ||W|| at the last refresh."""
    change: jax.Array
    """||Z - the Z before|| / ||W|| at the last refresh: the dual residual over rho ||W||."""
    good: PyTree
    """The parameters at the last refresh whose duals were good."""
    stopped: jax.Array
    """The round in which the duals diverged; 0: they have not."""
    inner: PyTree


def projection(sets: Sequence[tuple[Blocks, Mapping[str, int]]]) -> Projection:
    """Keeps the groups with the largest norms, so many of every block, and zeroes the others.

    One set's result is the nearest point of it. Several are taken one after the other, as the
    authors do, which is a point of all of them if each keeps what is 0 at 0, and not the nearest.

    Args:
        sets: (blocks, {block: groups kept}).

    Returns:
        `project(leaves)`; equal norms go by the lowest index.

    Example:
        >>> from jprune.blocks.members import Block, Member
        >>> rows = {"w": Block(2, (Member("w", (0,), None),))}
        >>> columns = {"w": Block(3, (Member("w", (1,), None),))}
        >>> w = {"w": jnp.array([[3.0, 0.0, 1.0], [0.0, 2.0, 2.0]])}
        >>> projection([(rows, {"w": 1})])(w)["w"].tolist()
        [[3.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
        >>> projection([(columns, {"w": 2})])(w)["w"].tolist()
        [[3.0, 0.0, 1.0], [0.0, 0.0, 2.0]]
    """
    touched = {m.path for blocks, _ in sets for b in blocks.values() for m in b.members}

    def project(leaves: Leaves) -> Leaves:
        found = {path: leaf for path, leaf in leaves.items() if path in touched}
        return found if not sets else supports(sets, found)[-1].left

    return project


class Support(NamedTuple):
    """What a set keeps of leaves that the sets before it have left."""

    squares: Mapping[str, Any]
    """{block: [groups]}: the squared norms that it has seen."""
    kept: Mapping[str, Any]
    """{block: bool [groups]}."""
    left: Leaves
    """The leaves with zeros at all other groups."""


def supports(
    sets: Sequence[tuple[Blocks, Mapping[str, int]]], leaves: Mapping[str, Any]
) -> list[Support]:
    """What `projection` keeps, set by set."""
    found = []
    for blocks, counts in sets:
        seen = squares(blocks, leaves)
        kept = {name: jnp.asarray(best(square, counts[name])) for name, square in seen.items()}
        factors = {name: kept[name].astype(square.dtype) for name, square in seen.items()}
        leaves = scaled(blocks, leaves, factors)
        found.append(Support(seen, kept, leaves))
    return found


def norm(leaves: Leaves) -> jax.Array:
    """The Euclidean norm of all leaves together."""
    return jnp.sqrt(sum((jnp.sum(leaf**2) for leaf in leaves.values()), jnp.zeros(())))


def admm(
    inner: optax.GradientTransformation,
    project: Projection,
    paths: PyTree,
    *,
    rho: float,
    every: int,
    growth: float = 1.0,
    limit: float = 100.0,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose weights are pulled towards a sparse copy that follows them.

    The pull rho (W - Z + U) is part of the gradient that `inner` gets: of f, weight decay included.
    Nothing is masked: W is dense until it is cut.

    A dual diverges if it is not finite, or longer than `limit` times the first weights. The round
    is then undone: the parameters go back to those of the last good round and stay there, and
    `AdmmState.stopped` says which round it was.

    Args:
        inner: the optimizer of the W-step.
        project: on the set; from `projection`.
        paths: a tree like the parameters, of the leaves' paths.
        rho: of rho / 2 ||W - Z + U||^2 (authors' code that leaves the half out means twice its
            number).
        every: steps in a round.
        growth: rho is multiplied by this after every round, and the scaled duals divided by it. A
            support is at rest only if max ||df/dW|| / rho over the groups that are dropped is at
            most the smallest norm that is kept: below it the rounds cycle.
        limit: of ||U|| over the norm of the first W.

    Raises:
        ArgumentError: a number out of range; `update` without parameters.

    Example:
        >>> from jprune.blocks.members import Block, Member
        >>> project = projection([({"w": Block(2, (Member("w", (0,), None),))}, {"w": 1})])
        >>> tx = admm(optax.sgd(0.5), project, {"w": "w"}, rho=1.0, every=1)
        >>> params = {"w": jnp.array([2.0, 1.9])}
        >>> state = tx.init(params)
        >>> gradient = jax.tree.map(lambda w: w - jnp.array([2.0, 1.9]), params)
        >>> updates, state = tx.update(gradient, state, params)
        >>> print(optax.apply_updates(params, updates)["w"].round(2), state.duals["w"].round(2))
        [2.   0.95] [0.   0.95]
    """
    if not (rho > 0 and every >= 1 and growth >= 1 and limit > 0):
        raise errors.ArgumentError(
            f"admm(rho={rho}, every={every}, growth={growth}, limit={limit}); rho and limit are "
            "above 0, every and growth 1 or more."
        )
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> AdmmState:
        leaves = leaves_of(paths, params)
        target = project(leaves)
        mine = {path: leaves[path] for path in target}
        size = norm(mine)
        gap = norm({path: leaf - target[path] for path, leaf in mine.items()}) / size
        zeros = jax.tree.map(jnp.zeros_like, target)
        none = jnp.zeros((), jnp.int32)
        return AdmmState(
            none, target, zeros, jnp.asarray(rho), size, gap, jnp.zeros_like(gap), params, none,
            inner.init(params),
        )  # fmt: skip

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "admm needs the parameters: call tx.update(gradients, state, params)."
            )
        pulled = _pulled(updates, params, state, paths)
        moves, inner_state = inner.update(pulled, state.inner, params, **extra)
        moved = optax.apply_updates(params, moves)
        state = state._replace(step=state.step + 1, inner=inner_state)
        state = jax.lax.cond(
            (state.step % every == 0) & (state.stopped == 0),
            lambda: _refreshed(state, moved, project, paths, every, growth, limit),
            lambda: state,
        )
        back = jax.tree.map(
            lambda good, param, move: jnp.where(state.stopped > 0, good - param, move),
            state.good, params, moves,
        )  # fmt: skip
        return back, state

    return optax.GradientTransformationExtraArgs(init, update)


def _pulled(gradients: PyTree, params: Params, state: AdmmState, paths: PyTree) -> PyTree:
    """Gradients with rho (W - Z + U)."""

    def one(path: str, gradient: jax.Array, weight: jax.Array) -> jax.Array:
        if path not in state.target:
            return gradient
        away = weight - state.target[path] + state.duals[path]
        return gradient + state.rho.astype(gradient.dtype) * away

    return jax.tree.map(one, paths, gradients, params)


def _refreshed(
    state: AdmmState,
    params: Params,
    project: Projection,
    paths: PyTree,
    every: int,
    growth: float,
    limit: float,
) -> AdmmState:
    """The state after a round: a new Z and U, or the mark that they diverged."""
    leaves = leaves_of(paths, params)
    mine = {path: leaves[path] for path in state.target}
    target = project({path: leaf + state.duals[path] for path, leaf in mine.items()})
    gap = {path: leaf - target[path] for path, leaf in mine.items()}
    duals = {path: state.duals[path] + gap[path] for path in gap}
    size = norm(mine)
    good = norm(duals) <= limit * state.size  # False where they are NaN
    change = norm({path: target[path] - old for path, old in state.target.items()})
    after = state._replace(
        target=target,
        duals=jax.tree.map(lambda dual: dual / growth, duals),
        rho=state.rho * growth,
        primal=norm(gap) / size,
        change=change / size,
        good=params,
    )
    stopped = state._replace(stopped=(state.step // every).astype(jnp.int32))
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), after, stopped)

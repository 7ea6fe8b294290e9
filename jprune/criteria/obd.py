"""Optimal brain damage: the second-order cost of removing a weight, with a diagonal Hessian.

References:
    LeCun, Denker, Solla, Optimal brain damage, 1990, Advances in Neural Information Processing
    Systems 2 [1]: s_k = h_kk w_k^2 / 2 (their formula 5, h_kk u_k^2 / 2).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jprune import errors
from jprune.base import Criterion
from jprune.curvature import Estimator, gauss_newton, mean_diagonal
from jprune.graph.shrink.concrete import on_host

NEGATIVE = ("clip", "keep", "refuse")


def obd(
    fn: Callable[..., Any],
    loss: Callable[..., Any],
    curvature: Estimator | None = None,
    key: jax.Array | None = None,
    negative: str = "clip",
    weight_decay: float = 0.0,
) -> Criterion:
    """h_kk w_k^2 / 2 for every parameter, h_kk = d2E/dw_k2, E the mean loss.

    The gradient is taken to be zero: the net is trained. Pooled by `to_units(groups, scores)`, the
    saliency of a filter is the sum of its weights'.

    Args:
        fn: `fn(variables, batch["image"])`, in inference mode.
        loss: `loss(out, batch) -> [batch]`; E is its mean, weighted by batch["weight"].
        curvature: an estimator of `jprune.curvature`; None is the exact Gauss-Newton diagonal,
            which is never negative. OBD's own is `recursion()`.
        key: of the draws, where the estimator draws.
        negative: what to do where h_kk < 0, away from a minimum: "clip" it at 0, "keep" it (a
            negative saliency predicts that the loss falls), or "refuse" it. With `hutchinson` and
            `exact` many h_kk may be negative, and clipped weights are pruned first, even large
            ones; `gauss_newton`, `fisher` and `recursion(levenberg_marquardt=True)` have none.
        weight_decay: lambda of a penalty lambda w^2 / 2 that is not in the loss; added to h_kk.

    Returns:
        A criterion; scores are a tree like the variables, None for statistics.

    Raises:
        ArgumentError: an unknown rule or a negative weight decay; when scoring: curvature that is
            NaN, or negative and refused.

    Example:
        >>> import jax.numpy as jnp, jprune
        >>> fn, loss = lambda v, x: x @ v["w"], lambda out, batch: 0.5 * out[:, 0] ** 2
        >>> batch, variables = {"image": jnp.array([[2.0, 1.0]])}, {"w": jnp.array([[1.0], [3.0]])}
        >>> jprune.run_criterion(obd(fn, loss), variables, [batch])["w"][:, 0]
        Array([2. , 4.5], dtype=float32)
    """
    if negative not in NEGATIVE:
        raise errors.ArgumentError(f"obd(negative={negative!r}); write {', '.join(NEGATIVE)}.")
    if weight_decay < 0:
        raise errors.ArgumentError(f"obd(weight_decay={weight_decay}); it is 0 or more.")
    # E(w + d) - E(w) ~ g . d + 1/2 d^T H d; with g = 0 (a minimum), H diagonal and d = -w_k e_k
    # what remains is h_kk w_k^2 / 2.
    diagonal = mean_diagonal(fn, loss, gauss_newton() if curvature is None else curvature, key)

    @on_host
    def saliency(xnp: Any, bend: Any, weight: Any) -> Any:
        positive = xnp.maximum(bend, 0) if negative == "clip" else bend
        # s_k = h_kk w_k^2 / 2; a penalty lambda w^2 / 2 adds lambda to h_kk.
        return 0.5 * (positive + weight_decay) * weight**2

    def one(path: Any, bend: jax.Array | None, weight: jax.Array) -> jax.Array | None:
        if bend is None:
            return None
        _check(jax.tree_util.keystr(path, simple=True, separator="/"), bend, negative)
        return saliency(bend, weight)

    def score(state: Any, variables: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            one,
            diagonal.score(state, variables),
            variables,
            is_leaf=lambda leaf: leaf is None,
        )

    return diagonal._replace(score=score)


def _check(name: str, bend: jax.Array, negative: str) -> None:
    """Refuses NaN, and negative curvature where asked to; traced values are not checked."""
    if isinstance(bend, Tracer):
        return
    numbers = np.asarray(bend)
    if np.isnan(numbers).any():
        raise errors.ArgumentError(
            f"the curvature at {name} is NaN: the loss or the variables are not finite. Check them "
            "before pruning."
        )
    if negative == "refuse" and (numbers < 0).any():
        raise errors.ArgumentError(
            f"the curvature at {name} is negative for {(numbers < 0).sum()} of {bend.size} "
            "weights: the net is not at a minimum. Train on, or write negative='clip' or "
            "curvature=gauss_newton()."
        )

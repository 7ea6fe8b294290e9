"""C-OBD, C-OBS, Kron-OBD, Kron-OBS: what a filter costs under a Kronecker-factored Fisher.

W [outputs, patch] is the kernel of a layer, with its bias as the last column: the weight of an
input that is always 1. A and S are its factors (`jprune.curvature.kfac`), and a change D of W
raises the loss by tr(S D A D^T) / 2. The scores of filter i are

    c_obd     1/2 sum_j w_ij^2 S_ii A_jj                        each weight removed alone
    c_obs     1/2 sum_j w_ij^2 / ([S^-1]_ii [A^-1]_jj)          alone, the other weights adapted
    kron_obd  1/2 S_ii w_i A w_i^T                              the filter removed as a whole
    kron_obs  1/2 w_i A w_i^T / [S^-1]_ii                       whole, the other filters adapted

The second and fourth assume that the remaining weights are updated: `jprune.reconstruct.kronecker`.

References:
    Wang, Grosse, Fidler, Zhang, EigenDamage: structured pruning in the Kronecker-factored
    eigenbasis, 2019, arXiv 1905.05934 [28]. The authors' code leaves out the 1/2, and computes
    sum_j (w_i^2 A)_j where w_i A w_i^T is meant (`repo_variant`). In a residual stream it scores
    every producer by itself and keeps a unit if any of them does; here the damages of a unit's
    producers are added, since removing the unit removes all of them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from jprune import errors
from jprune.base import Criterion, Groups, Scores, Variables
from jprune.curvature.blocks import Factors, biased, checked, damped, inverse
from jprune.curvature.kfac import KroneckerLayer, kfac
from jprune.units import leaves_by_path

Rows = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def c_obd_rows(w: np.ndarray, a: np.ndarray, s: np.ndarray) -> np.ndarray:
    """[outputs]: 1/2 sum_j w_ij^2 S_ii A_jj."""
    # The diagonal of S (x) A at weight (i, j) is S_ii A_jj.
    return (w**2 @ np.diag(a)) * np.diag(s) / 2


def c_obs_rows(w: np.ndarray, a: np.ndarray, s: np.ndarray) -> np.ndarray:
    """[outputs]: 1/2 sum_j w_ij^2 / ([S^-1]_ii [A^-1]_jj)."""
    # OBS's w_q^2 / (2 [H^-1]_qq) with H^-1 = S^-1 (x) A^-1.
    return (w**2 @ (1 / _inverse_diagonal(a))) / _inverse_diagonal(s) / 2


def kron_obd_rows(
    w: np.ndarray, a: np.ndarray, s: np.ndarray, repo_variant: bool = False
) -> np.ndarray:
    """[outputs]: 1/2 S_ii w_i A w_i^T, exact where one filter is removed and F = S (x) A.

    Example:
        >>> w, a = np.array([[1.0, 1.0], [1.0, -1.0]]), np.diag([3.0, 1.0])
        >>> kron_obd_rows(w, a, np.array([[2.0, 1.0], [1.0, 2.0]]))
        array([4., 4.])
    """
    # tr(S D A D^T) / 2 with D = -e_i w_i: only row i changes, so of S only S_ii is left.
    return _quadratic(w, a, repo_variant) * np.diag(s) / 2


def kron_obs_rows(
    w: np.ndarray, a: np.ndarray, s: np.ndarray, repo_variant: bool = False
) -> np.ndarray:
    """[outputs]: 1/2 w_i A w_i^T / [S^-1]_ii, the least damage at which filter i is 0."""
    # Minimum over all D with row i = -w_i; reached at D = -(S^-1 e_i / [S^-1]_ii) w_i.
    return _quadratic(w, a, repo_variant) / _inverse_diagonal(s) / 2


def _quadratic(w: np.ndarray, a: np.ndarray, repo_variant: bool) -> np.ndarray:
    """[outputs]: w_i A w_i^T, or sum_j (w_i^2 A)_j as in the authors' code."""
    # ((W A) o W) summed over j is the diagonal of W A W^T, without the [outputs, outputs] matrix.
    return (w**2 @ a).sum(axis=1) if repo_variant else ((w @ a) * w).sum(axis=1)


def _inverse_diagonal(factor: np.ndarray) -> np.ndarray:
    return np.diag(inverse("the layer", factor))


FORMS: dict[str, Rows] = {
    "c_obd": c_obd_rows,
    "c_obs": c_obs_rows,
    "kron_obd": kron_obd_rows,
    "kron_obs": kron_obs_rows,
}
REPO_FORMS: dict[str, Rows] = {
    "kron_obd": partial(kron_obd_rows, repo_variant=True),
    "kron_obs": partial(kron_obs_rows, repo_variant=True),
}
"""As in the authors' code."""


def unit_scores(
    groups: Groups,
    variables: Variables,
    factors: Mapping[str, Factors],
    form: str,
    damping: float = 1e-3,
    repo_variant: bool = False,
) -> dict[str, np.ndarray]:
    """Scores of units from the Kronecker factors of layers.

    Args:
        groups: from `trace`.
        variables: of the net.
        factors: {layer: Factors}, of patches, from `kfac`; with `bias=True`, removing a filter
            costs what removing its bias does too.
        form: a name of `FORMS`.
        damping: of both factors where they are inverted, times their mean eigenvalue.
        repo_variant: "kron_obd" and "kron_obs" as in the authors' code.

    Returns:
        {group: [units]}: for every unit the sum over its producers that have factors. Groups
        without such a producer are left out.

    Raises:
        ArgumentError: an unknown form, `repo_variant` of one that has none, a damping below 0,
            curvature that is not finite or negative, no producer with factors.
    """
    rows = check_form(form, damping, repo_variant)
    leaves = leaves_by_path(groups, variables)
    scores: dict[str, np.ndarray] = {}
    for name, places in groups.places.items():
        for place in places:
            if "kernel" not in place.roles or place.leaf not in factors:
                continue
            # A producer has the unit on its output axis; consumers are skipped.
            layer = groups.layers[place.leaf]
            if place.axis not in layer.outputs:
                continue
            a, s = checked(place.leaf, factors[place.leaf])
            w, a = biased(layer, leaves, a)
            # Only inverses need damping: S^-1 for both "obs" forms, A^-1 for c_obs alone.
            if form.endswith("obs"):
                s, a = damped(s, damping), damped(a, damping) if form == "c_obs" else a
            costs = rows(w, a, s)
            total = scores.setdefault(name, np.zeros(groups.sizes[name]))
            # Output n of the kernel is unit place.units[n], or none (-1). add.at, not +=: several
            # outputs may belong to one unit.
            produced = place.units >= 0
            np.add.at(total, place.units[produced], costs[produced])
    if not scores:
        raise errors.ArgumentError(
            "no group of the net is produced by a layer with Kronecker factors: there is nothing "
            "to prune. See jprune.trace(...).frozen for the reasons."
        )
    return scores


def check_form(form: str, damping: float, repo_variant: bool) -> Rows:
    """The function of a form, once the arguments are checked.

    Raises:
        ArgumentError: an unknown form, `repo_variant` of one that has none, a damping below 0.
    """
    if form not in FORMS:
        raise errors.ArgumentError(f"form={form!r}; write one of {', '.join(FORMS)}.")
    if damping < 0:
        raise errors.ArgumentError(f"damping={damping}; it is 0 or more, 1e-3 for example.")
    if not repo_variant:
        return FORMS[form]
    if form not in REPO_FORMS:
        raise errors.ArgumentError(
            f"repo_variant=True is for {' and '.join(REPO_FORMS)}; {form} is the same in the "
            "authors' code. Leave it out."
        )
    return REPO_FORMS[form]


def kronecker(
    fn: Callable[..., Any],
    loss: Callable[..., Any],
    groups: Groups,
    layers: Mapping[str, KroneckerLayer],
    form: str,
    *,
    key: jax.Array | None = None,
    labels: str = "model",
    damping: float = 1e-3,
    repo_variant: bool = False,
) -> Criterion:
    """One of the four scores as a criterion.

    Args:
        fn: `fn(variables, batch["image"])`, in inference mode.
        loss: `loss(out, batch) -> [batch]`.
        groups: from `trace`.
        layers: from `jprune.curvature.layers_of`.
        form: "c_obd", "c_obs", "kron_obd" or "kron_obs".
        key: of the labels, where they are drawn.
        labels: "model" (true Fisher information) or "data" (empirical).
        damping: of the factors that are inverted, times their mean eigenvalue.
        repo_variant: "kron_obd" and "kron_obs" as in the authors' code.

    Returns:
        A criterion; scores are {group: [units]}.

    Raises:
        ArgumentError: an argument out of range; when scoring: see `unit_scores`.

    Example:
        >>> import jax, jax.numpy as jnp, jprune
        >>> from jprune.curvature import layers_of
        >>> fn = lambda v, x: x @ v["first"] @ v["second"]
        >>> variables = {"first": jnp.array([[1.0, 2.0]]), "second": jnp.ones((2, 1))}
        >>> x, loss = jnp.ones((1, 1)), lambda out, batch: 0.5 * out[:, 0] ** 2
        >>> groups = jprune.trace(fn, variables, x)
        >>> layers = layers_of(fn, groups, variables, x)
        >>> criterion = kronecker(fn, loss, groups, layers, "kron_obd", labels="data")
        >>> jprune.run_criterion(criterion, variables, [{"image": x}])["first"].tolist()
        [4.5, 18.0]
    """
    check_form(form, damping, repo_variant)
    bias = any(groups.layers[path].bias for path in layers)
    curvature = kfac(fn, loss, groups, layers, labels=labels, key=key, bias=bias)

    def score(state: Any, variables: Variables) -> Scores:
        factors = curvature.score(state, variables)
        return unit_scores(groups, variables, factors, form, damping, repo_variant)

    return curvature._replace(score=score)

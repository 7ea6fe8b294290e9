"""C-OBS and Kron-OBS: the remaining filters adapted so that the loss rises least.

W [outputs, patch] is the kernel of a layer, with its bias as the last column where A has one, A and
S are its Kronecker factors, R the removed rows:

    c_obs     dW = -S^-1 (C (.) E_R) A^-1,  C_ij = w_ij / ([S^-1]_ii [A^-1]_jj), E_R the rows of R
    kron_obs  dW = -S^-1[:, R] (S^-1[R, R])^-1 W_R

The first adds up the optimal updates for every removed weight, each computed as if it were removed
alone, as in the authors' code. The second is the minimum of tr(S D A D^T) over all D that remove
the rows together: the kept rows K change by S_KK^-1 S_KR W_R, which needs no inverse of S or A.

References:
    Wang, Grosse, Fidler, Zhang, EigenDamage, 2019, arXiv 1905.05934 [28]. The authors' code takes
    the coefficients of single removals for Kron-OBS too; this is the joint optimum.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, Variables
from jprune.curvature.blocks import Factors, biased, checked, damped, inverse, with_filters
from jprune.units import leaves_by_path

FORMS = ("c_obs", "kron_obs")


def compensated_rows(
    w: np.ndarray, factors: Factors, removed: np.ndarray, form: str, damping: float = 0.0
) -> np.ndarray:
    """A kernel with some rows set to 0, the other rows adapted to compensate.

    Args:
        w: [outputs, patch].
        factors: A [patch, patch] and S [outputs, outputs].
        removed: bool [outputs].
        form: "c_obs" or "kron_obs".
        damping: of the factors that are inverted, times their mean eigenvalue.

    Returns:
        [outputs, patch] float64; removed rows are 0.

    Raises:
        ArgumentError: an unknown form, or factors without an inverse.

    Example:
        >>> factors = Factors(np.eye(1), np.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> compensated_rows(np.ones((2, 1)), factors, np.array([True, False]), "kron_obs").tolist()
        [[0.0], [1.5]]
    """
    if form not in FORMS:
        raise errors.ArgumentError(f"form={form!r}; write {' or '.join(FORMS)}.")
    a, s = checked("the layer", factors)
    s, result, remaining = damped(s, damping), np.array(w, np.float64), ~removed
    if not removed.any() or not remaining.any():
        result[removed] = 0
        return result
    if form == "kron_obs":
        # dW_K = S_KK^-1 S_KR W_R, least squares where S_KK is singular. A drops out: the optimum
        # over D with D_R = -W_R solves S_KK D_K A = S_KR W_R A.
        change = np.linalg.lstsq(
            s[np.ix_(remaining, remaining)], s[np.ix_(remaining, removed)] @ w[removed]
        )[0]
        result[remaining] += change
    else:
        inverse_s, inverse_a = inverse("the layer", s), inverse("the layer", damped(a, damping))
        # C_ij = w_ij / ([S^-1]_ii [A^-1]_jj);  dW = -S^-1[:, R] C_R A^-1
        coefficients = w / np.outer(np.diag(inverse_s), np.diag(inverse_a))
        result -= inverse_s[:, removed] @ coefficients[removed] @ inverse_a
    result[removed] = 0
    return result


def compensate(
    groups: Groups,
    variables: Variables,
    masks: Mapping[str, Any],
    factors: Mapping[str, Factors],
    form: str,
    damping: float = 1e-3,
) -> Variables:
    """Variables with removed filters set to 0 and the others adapted, layer by layer.

    Args:
        groups: from `trace`.
        variables: of the net.
        masks: {group: bool [units]}, True keeps.
        factors: {layer: Factors} of patches; kernels without factors stay as they are. With a row
            and column for the bias, biases are adapted too.
        form: "c_obs" or "kron_obs".
        damping: of the factors that are inverted, times their mean eigenvalue.

    Returns:
        New variables; removed filters are 0 in the kernels (and biases) that were moved.
    """
    leaves = leaves_by_path(groups, variables)
    gone: dict[str, np.ndarray] = {}
    for name, mask in masks.items():
        for place in groups.places.get(name, ()):
            if place.leaf not in factors or "kernel" not in place.roles:
                continue
            # On an output axis the unit is produced, elsewhere it is read.
            if place.axis in groups.layers[place.leaf].outputs:
                outputs_gone = (place.units >= 0) & ~np.asarray(mask)[place.units]
                gone[place.leaf] = gone.get(place.leaf, False) | outputs_gone
    # Layer by layer: F has no terms between layers, so their compensations are independent.
    for path, removed in gone.items():
        if not removed.any():
            continue
        layer = groups.layers[path]
        filters, a = biased(layer, leaves, np.asarray(factors[path].inputs))
        rows = compensated_rows(filters, factors[path]._replace(inputs=a), removed, form, damping)
        kernel, bias = np.split(rows, [layer.fan_in], axis=1)
        leaves[path] = jnp.asarray(with_filters(layer, kernel), leaves[path].dtype)
        if bias.size and layer.bias is not None:
            old = leaves[layer.bias]
            leaves[layer.bias] = jnp.asarray(bias.reshape(old.shape), old.dtype)
    return jax.tree.unflatten(groups.treedef, list(leaves.values()))

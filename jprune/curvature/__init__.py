"""Curvature: second derivatives of the loss, for every method that uses them.

Here belong second derivatives of a batch's mean loss in the parameters, and what follows from them
alone: products with the Hessian, its diagonal by several estimates, per-example rows whose outer
products approximate it, and inverses of it with the deletion step of OBS. Saliencies, masks and new
weights, which methods make of these, are in `criteria` and `reconstruct`.

A net is `fn(variables, x)`, a loss `loss(out, batch) -> [batch]`; the mean over a batch is weighted
by `batch["weight"]` where there is one. Only floating leaves under `params` are differentiated (all
of them in variables without `params`); results are trees like the variables, None elsewhere.

Read `products.py` first (the loss, Hessian-vector products), then `diagonal.py` (estimates of the
diagonal, and their mean over batches), `rows.py` (Gauss-Newton and Fisher factors per example),
`recursion.py` (OBD's own back-propagation of second derivatives), `inverse.py` (OBS),
`partition.py` (inverses of layers and blocks), `low_rank.py` (the Fisher information of few
gradients), `kfac.py` (Kronecker factors of a layer's Fisher block), `blocks.py` (their algebra),
`eigenbasis.py` (the basis in which they are diagonal).
"""

from jprune.curvature.blocks import Factors, damage, filters_of, with_filters
from jprune.curvature.diagonal import (
    Estimator,
    exact,
    fisher,
    gauss_newton,
    hutchinson,
    mean_diagonal,
)
from jprune.curvature.eigenbasis import Rotated, rotated
from jprune.curvature.inverse import (
    damped_inverse,
    deletions,
    identity,
    with_rows,
    without_dead,
)
from jprune.curvature.kfac import KroneckerLayer, kfac, layers_of, mean_factors
from jprune.curvature.low_rank import fisher_rows, inverse_diagonal, inverse_product, removal
from jprune.curvature.partition import Rows, blocks_of, inverses
from jprune.curvature.products import (
    Parameters,
    hessian_product,
    mean_loss,
    parameters_of,
    weights_of,
)
from jprune.curvature.recursion import recursion
from jprune.curvature.rows import gradient_rows, softmax_factors, with_drawn_labels

__all__ = [
    "Estimator",
    "Factors",
    "KroneckerLayer",
    "Parameters",
    "Rotated",
    "Rows",
    "blocks_of",
    "damage",
    "damped_inverse",
    "deletions",
    "exact",
    "filters_of",
    "fisher",
    "fisher_rows",
    "gauss_newton",
    "gradient_rows",
    "hessian_product",
    "hutchinson",
    "identity",
    "inverse_diagonal",
    "inverse_product",
    "inverses",
    "kfac",
    "layers_of",
    "mean_diagonal",
    "mean_factors",
    "mean_loss",
    "parameters_of",
    "recursion",
    "removal",
    "rotated",
    "softmax_factors",
    "weights_of",
    "with_drawn_labels",
    "with_filters",
    "with_rows",
    "without_dead",
]

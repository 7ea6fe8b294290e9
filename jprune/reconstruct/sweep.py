"""A layer's inputs are gone through once: some of their weights go, later inputs make up for them.

References:
    Frantar, Alistarh, SparseGPT: massive language models can be accurately pruned in one-shot,
    2023, arXiv 2301.00774.
"""

import numpy as np

from jprune import errors
from jprune.curvature import damped_inverse, without_dead
from jprune.masks import best
from jprune.reconstruct.moments import checked


def sweep(
    hessian: np.ndarray,
    weights: np.ndarray,
    count: int,
    alive: np.ndarray | None = None,
    block: int = 128,
    damping: float = 0.01,
) -> tuple[np.ndarray, np.ndarray]:
    """Keeps `count` weights of a layer, in one pass over its inputs.

    Block by block, the weights with the lowest (w / U_jj)^2 go, of all outputs together, H^-1 = U^T
    U; then input by input what goes is made up for by all inputs behind it. Inputs before it stay
    as they are, so that one matrix U serves all outputs: n^3 operations where an exact solution
    takes that for every output.

    Args:
        hessian: H [n, n]: 2 X^T X over the number of rows, X the layer's inputs.
        weights: [n, outputs].
        count: how many weights stay; every block keeps the same share.
        alive: bool [n, outputs]: False where a weight is gone already; None: all are there.
        block: inputs whose weights are chosen together; 128 in the paper.
        damping: added to the diagonal, over its mean; 0.01 in the paper. An input that is always 0
            loses its weights at no cost.

    Returns:
        New weights [n, outputs], 0 where a weight is gone; bool [n, outputs]: those that stay.

    Raises:
        ArgumentError: shapes that do not fit, a damping below 0, a block below 1, or more weights
            to keep than there are.

    Example:
        >>> hessian = np.array([[2.0, 1.0], [1.0, 2.0]])
        >>> weights, keep = sweep(hessian, np.array([[1.0], [1.1]]), 1, damping=0.0)
        >>> weights[:, 0].round(6).tolist(), keep[:, 0].tolist()
        ([0.0, 1.6], [False, True])
    """
    if block < 1:
        raise errors.ArgumentError(f"block={block}; it is 1 or more inputs.")
    hessian, weights, alive = checked(hessian, weights, count, alive, damping)
    hessian, weights = without_dead(hessian, weights)
    # H^-1 = U^T U, U upper: row j of U is what the inputs behind j can still do.
    upper = np.linalg.cholesky(damped_inverse(hessian, damping)).T
    keep, chosen, total = alive.copy(), 0, int(alive.sum())
    for start in range(0, len(weights), block):
        part = slice(start, min(start + block, len(weights)))
        # So many of all up to here: rounding never adds up.
        wanted = round(count * int(alive[: part.stop].sum()) / max(total, 1))
        scores = (weights[part] / upper.diagonal()[part, None]) ** 2
        scores = np.where(alive[part], scores, -np.inf)
        keep[part] = best(scores.ravel(), wanted - chosen).reshape(scores.shape)
        chosen = wanted
        failed = np.zeros((part.stop - start, weights.shape[1]))
        for j in range(start, part.stop):
            # e = (w_j - q_j) / U_jj; w_k <- w_k - U_jk e for all k behind j
            failed[j - start] = weights[j] * ~keep[j] / upper[j, j]
            weights[j + 1 : part.stop] -= np.outer(upper[j, j + 1 : part.stop], failed[j - start])
            weights[j] *= keep[j]
        weights[part.stop :] -= upper[part, part.stop :].T @ failed
        # What was gone before moves with the others, and is cleared.
        weights[part.stop :] *= alive[part.stop :]
    return weights, keep

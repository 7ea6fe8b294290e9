"""Optimal brain surgeon: weights are deleted one by one, and all others adapted after each.

References:
    Hassibi, Stork, Second order derivatives for network pruning: optimal brain surgeon, 1993,
    Advances in Neural Information Processing Systems 5 [2]. Blocks instead of the whole inverse:
    Dong, Chen, Pan, Learning to prune deep neural networks via layer-wise optimal brain surgeon,
    2017, arXiv 1705.07565; Singh, Alistarh, WoodFisher, 2020, arXiv 2004.14340.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Batch, Groups, Layer, Masks, Variables, is_none
from jprune.curvature import Rows, blocks_of, deletions, inverses, parameters_of
from jprune.curvature.inverse import Deletion
from jprune.graph import trace

Function = Callable[..., Any]


class Operated(NamedTuple):
    """A net after surgery.

    Attributes:
        variables: with deleted weights 0 and the others adapted.
        masks: like the variables, None where nothing could be deleted.
        losses: [deletions]: L_q of each, in order; their sum is the predicted increase of the loss.
        loss: E, the mean loss before surgery.
    """

    variables: Variables
    masks: Masks
    losses: np.ndarray
    loss: float


def obs(
    fn: Function,
    loss: Function,
    variables: Variables,
    batches: Iterable[Batch],
    remove: int | Callable[[Masks], int],
    *,
    candidates: Masks | None = None,
    masks: Masks | None = None,
    alpha: float = 1e-4,
    block: int | None = None,
    rows: Rows | None = None,
    stop: float | None = None,
    groups: Groups | None = None,
) -> Operated:
    """Deletes the weight of smallest L_q = w_q^2 / (2 [H^-1]_qq), adapts all others, and repeats.

    H is the Gauss-Newton matrix of the mean loss plus alpha I (the paper's outer products, weighted
    for other losses than the squared error), inverted by the recursion over examples. It is
    computed once, for the net before surgery; each deletion removes its weight from the inverse.
    The gradient is assumed to be zero, as it is for a trained net.

    Args:
        fn: `fn(variables, batch["image"])`, in inference mode.
        loss: `loss(out, batch) -> [batch]`; a factor other than the paper's in ||t - o||^2 / 2
            scales H and L_q too.
        variables: of the net.
        batches: examples that the Hessian is made of; kept in memory.
        remove: how many weights; or `remove(masks) -> how many more`, asked until it says 0.
        candidates: a tree like the variables: True where a weight may be deleted, None for leaves
            without such weights; None: all kernels. All weights, candidates or not, are adapted.
        masks: False where a weight is pruned already; such weights stay 0.
        alpha: damping, 1e-8 to 1e-4 in the paper.
        block: None is the paper's full inverse, 8 n^2 bytes for n parameters. A number inverts
            layer by layer, layers with more weights in blocks of at most so many, filter by filter:
            8 n block bytes. A deletion then changes weights of its own block only.
        rows: which rows approximate the Hessian; None is the exact Gauss-Newton matrix.
        stop: the paper's rule: stop once L_q > stop E; None: never.
        groups: of the net: their layers say what a kernel is, and what shares a block. None: the
            net is traced on the first batch.

    Returns:
        The new variables, masks, and the predicted losses.

    Raises:
        ArgumentError: no batch, rows that are not finite, more deletions than candidates, a block
            below 1, or an alpha or stop that is not above 0.

    Example:
        >>> fn, loss = lambda v, x: x @ v["w"], lambda out, batch: 0.5 * out[:, 0] ** 2
        >>> batch = {"image": jnp.array([[1.0, 1.0], [1.0, 0.9]])}
        >>> done = obs(fn, loss, {"w": jnp.array([[1.0], [2.0]])}, [batch], 1)
        >>> done.masks["w"][:, 0].tolist(), done.variables["w"][:, 0].round(2).tolist()
        ([False, True], [0.0, 3.049999952316284])
    """
    if (block is not None and block < 1) or (stop is not None and not stop > 0):
        raise errors.ArgumentError(
            f"obs(block={block}, stop={stop}); block is 1 or more, stop above 0, or None."
        )
    batches = list(batches)
    if groups is None and batches:
        groups = trace(fn, variables, jnp.asarray(batches[0]["image"]))
    layers = {} if groups is None else groups.layers
    chosen = _kernels(variables, layers) if candidates is None else candidates
    flat = np.concatenate([np.ravel(v) for v in parameters_of(variables).values]).astype(np.float64)
    alive = _flat_masks(variables, masks, True)
    may_go = alive & _flat_masks(variables, chosen, False)
    # Pruned weights are no parameters any more: H is made, and inverted, without them.
    blocks = [part[alive[part]] for part in blocks_of(variables, block, layers)]
    inverse_blocks, before = inverses(fn, loss, variables, batches, blocks, alpha, rows or Rows())
    # float64 copies: the deletions write into them, the user's arrays stay.
    parts = [flat[part] for part in blocks]  # copies, written in place by the deletions
    order = _least_first(
        [deletions(w, h, may_go[b]) for w, h, b in zip(parts, inverse_blocks, blocks)]
    )

    def masks_of(alive: np.ndarray) -> Masks:
        by_leaf = iter(_split(variables, alive))
        tree = parameters_of(variables).tree(list(by_leaf))
        return jax.tree.map(lambda c, k: None if c is None else k, chosen, tree, is_leaf=is_none)

    def more(losses: list[float]) -> int:
        return remove(masks_of(alive)) if callable(remove) else remove - len(losses)

    # Stop where L_q is no longer small against E: L_q > stop E.
    limit = np.inf if stop is None else stop * before
    losses = _operate(order, blocks, alive, more, limit)
    # The adapted weights go back to their places; times `alive`, deleted ones are exactly 0.
    for part, values in zip(blocks, parts):
        flat[part] = values
    values = [
        jnp.asarray(new, old.dtype)
        for new, old in zip(_split(variables, flat * alive), parameters_of(variables).values)
    ]
    return Operated(parameters_of(variables).into(values), masks_of(alive), losses, before)


def _operate(
    order: Iterator[tuple[Deletion, int]],
    blocks: Sequence[np.ndarray],
    alive: np.ndarray,
    more: Callable[[list[float]], int],
    limit: float,
) -> np.ndarray:
    """Deletes until `more` is satisfied or L_q exceeds the limit; writes `alive`."""
    losses: list[float] = []
    proposed = next(order, None)
    while (count := more(losses)) > 0:
        for _ in range(count):
            if proposed is None:
                raise errors.ArgumentError(
                    f"obs deleted all {len(losses)} weights that may go, and is to delete more. "
                    "Ask for less."
                )
            deletion, number = proposed
            if deletion.loss > limit:
                return np.array(losses)
            # The number asked for may be any: `more` looks at the masks only after all are done.
            losses.append(deletion.loss)
            alive[blocks[number][deletion.place]] = False
            proposed = next(order, None)
    return np.array(losses)


def _least_first(surgeons: Sequence[Iterator[Deletion]]) -> Iterator[tuple[Deletion, int]]:
    """Deletions of all blocks, the smallest L_q first; asking for the next carries the last out."""
    # One proposal per block suffices: a deletion changes the weights and L_q of its own block only.
    heap = [(deletion, n) for n, one in enumerate(surgeons) if (deletion := next(one, None))]
    heapq.heapify(heap)
    while heap:
        yield heap[0]
        number = heap[0][1]
        following = next(surgeons[number], None)
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (following, number))


def _kernels(variables: Variables, layers: Mapping[str, Layer]) -> Masks:
    """The default candidates: all weights of kernels."""
    path_of = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.ones(leaf.shape, bool) if path_of(path) in layers else None, variables
    )


def _flat_masks(variables: Variables, masks: Masks, otherwise: bool) -> np.ndarray:
    """Bool [parameters]: masks of all leaves, flattened; None leaves are `otherwise`.

    Raises:
        StructureError: masks of another net.
    """
    parameters = parameters_of(variables)
    if masks is None:
        masks = parameters.tree([None] * len(parameters.values))
    structure = jax.tree.structure(variables)
    try:
        # Not `flatten`: the variables may hold None too, where a layer has no bias.
        leaves = structure.flatten_up_to(masks)
    except ValueError:
        raise errors.StructureError(
            f"masks of the structure {jax.tree.structure(masks, is_leaf=is_none)} for variables of "
            f"{structure}. Pass a tree like the variables, None where there is no mask."
        ) from None
    parts = [
        np.full(value.shape, otherwise) if leaves[place] is None else np.asarray(leaves[place])
        for place, value in zip(parameters.places, parameters.values)
    ]
    return np.concatenate([part.ravel() for part in parts])


def _split(variables: Variables, flat: np.ndarray) -> list[np.ndarray]:
    """A vector of all parameters taken apart into arrays of their shapes."""
    values = parameters_of(variables).values
    ends = np.cumsum([value.size for value in values])[:-1]
    return [part.reshape(value.shape) for part, value in zip(np.split(flat, ends), values)]

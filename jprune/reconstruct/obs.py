"""Optimal brain surgeon: weights are deleted one by one, and the others make up for each.

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
    """A net after surgery."""

    variables: Variables
    masks: Masks
    """Like the variables, None where nothing could be deleted."""
    losses: np.ndarray
    """[deletions]: L_q of each, in order; their sum is the predicted increase of the loss."""
    loss: float
    """E, the mean loss before surgery."""


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
    """Deletes the weight with least L_q = w_q^2 / (2 [H^-1]_qq) and moves all others, repeatedly.

    H is the Gauss-Newton matrix of the mean loss plus alpha I (the paper's outer products, weighted
    for other losses than the squared error), inverted by the recursion over examples. It stays
    that of the net before surgery, and every deletion takes its weight out of it. The gradient is
    taken to be zero: the net is trained.

    Args:
        fn: `fn(variables, batch["image"])`, in inference mode.
        loss: `loss(out, batch) -> [batch]`; where it has other factors than the paper's
            ||t - o||^2 / 2, so have H and L_q.
        variables: of the net.
        batches: examples that the Hessian is made of; kept in memory.
        remove: how many weights; or `remove(masks) -> how many more`, asked until it says 0.
        candidates: a tree like the variables: True where a weight may be deleted, None where a leaf
            stays; None: all kernels. Whatever stays is moved nevertheless.
        masks: of weights that are gone already; they stay 0.
        alpha: damping, 1e-8 to 1e-4 in the paper.
        block: None is the paper's full inverse, 8 n^2 bytes for n parameters. A number takes the
            layers one by one and cuts those that are larger into blocks of at most so many
            weights, filter by filter: 8 n block bytes. Weights make up within their block only.
        rows: of the Hessian; None is the exact Gauss-Newton matrix.
        stop: the paper's rule: go no further once L_q > stop E; None: whatever it costs.
        groups: of the net, which say what its layers are; None: traced on the first batch.

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
    kept = _flat_masks(variables, masks, True)
    may_go = kept & _flat_masks(variables, chosen, False)
    blocks = [part[kept[part]] for part in blocks_of(variables, block, layers)]
    found, before = inverses(fn, loss, variables, batches, blocks, alpha, rows or Rows())
    parts = [flat[part] for part in blocks]  # copies, written in place by the deletions
    order = _least_first([deletions(w, h, may_go[b]) for w, h, b in zip(parts, found, blocks)])

    def masks_of(kept: np.ndarray) -> Masks:
        by_leaf = iter(_split(variables, kept))
        tree = parameters_of(variables).tree(list(by_leaf))
        return jax.tree.map(lambda c, k: None if c is None else k, chosen, tree, is_leaf=is_none)

    def more(losses: list[float]) -> int:
        return remove(masks_of(kept)) if callable(remove) else remove - len(losses)

    limit = np.inf if stop is None else stop * before
    losses = _operate(order, blocks, kept, more, limit)
    for part, values in zip(blocks, parts):
        flat[part] = values
    values = [
        jnp.asarray(new, old.dtype)
        for new, old in zip(_split(variables, flat * kept), parameters_of(variables).values)
    ]
    return Operated(parameters_of(variables).into(values), masks_of(kept), losses, before)


def _operate(
    order: Iterator[tuple[Deletion, int]],
    blocks: Sequence[np.ndarray],
    kept: np.ndarray,
    more: Callable[[list[float]], int],
    limit: float,
) -> np.ndarray:
    """Deletes until enough is gone or the next deletion costs too much; writes `kept`."""
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
            losses.append(deletion.loss)
            kept[blocks[number][deletion.place]] = False
            proposed = next(order, None)
    return np.array(losses)


def _least_first(surgeons: Sequence[Iterator[Deletion]]) -> Iterator[tuple[Deletion, int]]:
    """The deletions of all blocks, the least first; going on carries out the last one."""
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
    """Every kernel may lose weights."""
    path_of = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.ones(leaf.shape, bool) if path_of(path) in layers else None, variables
    )


def _flat_masks(variables: Variables, masks: Masks, otherwise: bool) -> np.ndarray:
    """Masks of all parameters side by side; None leaves are `otherwise`.

    Raises:
        StructureError: masks of another net.
    """
    parameters = parameters_of(variables)
    if masks is None:
        masks = parameters.tree([None] * len(parameters.values))
    leaves, structure = jax.tree.flatten(masks, is_leaf=is_none)
    if structure != jax.tree.structure(variables):
        raise errors.StructureError(
            f"masks of the structure {structure} for variables of {jax.tree.structure(variables)}. "
            "Pass a tree like the variables, None where there is no mask."
        )
    parts = [
        np.full(value.shape, otherwise) if leaves[place] is None else np.asarray(leaves[place])
        for place, value in zip(parameters.places, parameters.values)
    ]
    return np.concatenate([part.ravel() for part in parts])


def _split(variables: Variables, flat: np.ndarray) -> list[np.ndarray]:
    """The parts of all parameters side by side, each in its shape."""
    values = parameters_of(variables).values
    ends = np.cumsum([value.size for value in values])[:-1]
    return [part.reshape(value.shape) for part, value in zip(np.split(flat, ends), values)]

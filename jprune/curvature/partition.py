"""Inverse Hessians of blocks of parameters, from per-example rows, batch by batch."""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import errors
from jprune.base import Batch, Layer, Variables
from jprune.curvature.inverse import identity, with_rows
from jprune.curvature.products import Function, mean_loss, parameters_of, weights_of
from jprune.curvature.rows import gradient_rows

NO_LAYERS: Mapping[str, Layer] = {}


class Rows(NamedTuple):
    """Which rows approximate the Hessian: see `jprune.curvature.gradient_rows`.

    Attributes:
        how: "gauss_newton" or "fisher".
        samples: rows an example; None: all.
        key: of the draws of samples.
    """

    how: str = "gauss_newton"
    samples: int | None = None
    key: jax.Array | None = None


def inverses(
    fn: Function,
    loss: Function,
    variables: Variables,
    batches: Sequence[Batch],
    blocks: Sequence[np.ndarray],
    alpha: float,
    rows: Rows,
) -> tuple[list[np.ndarray], float]:
    """The inverse Hessian of every block, and the mean loss.

    Args:
        fn: `fn(variables, batch["image"])`.
        loss: `loss(out, batch) -> [batch]`.
        variables: of the net.
        batches: examples.
        blocks: numbers of each block's parameters, counted through all parameters flattened.
        alpha: damping.
        rows: which rows approximate the Hessian.

    Raises:
        ArgumentError: no batch, rows that are not finite, or inverses beyond this machine's memory.
    """
    if not batches:
        raise errors.ArgumentError(
            "there is no batch, and the Hessian is made of data. Pass a list of batches, for "
            'example [{"image": x, "label": y}].'
        )
    _check_memory(blocks)
    inverted = [identity(len(part), alpha) for part in blocks]
    make, error = _compiled(fn, loss, rows.how, rows.samples)
    counts = [float(weights_of(batch).sum()) for batch in batches]
    mean = 0.0
    for number, (batch, count) in enumerate(zip(batches, counts)):
        key = None if rows.key is None else jax.random.fold_in(rows.key, number)
        # Rows of a batch make up its own mean; sqrt(share) makes r r^T count as in the whole mean.
        share = count / sum(counts)
        gradients = np.asarray(make(variables, batch, key), np.float64) * np.sqrt(share)
        mean += share * float(error(variables, batch))
        if not np.isfinite(gradients).all():
            raise errors.ArgumentError(
                f"the gradients of batch {number} are not finite. Check the net and its data "
                "before surgery."
            )
        # H^-1 <- (H + sum_i r_i r_i^T)^-1 for every block, with the block's columns of all rows.
        inverted = [
            with_rows(inverse, gradients[:, part]) for inverse, part in zip(inverted, blocks)
        ]
    return inverted, mean


def _check_memory(blocks: Sequence[np.ndarray]) -> None:
    # float64: 8 n^2 bytes for a block of n parameters
    needed = sum(8 * len(part) ** 2 for part in blocks)
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > installed:
        longest = max(len(part) for part in blocks)
        raise errors.ArgumentError(
            f"the inverse Hessian of {longest:,} parameters at once takes {needed / 2**30:,.0f} "
            f"GiB of memory (8 n^2 bytes), and this machine has {installed / 2**30:,.0f} GiB. "
            "Invert in smaller blocks: block=1000."
        )


@lru_cache(maxsize=4)  # rounds share what was compiled
def _compiled(fn: Function, loss: Function, how: str, samples: int | None) -> tuple[Any, Any]:
    make = lambda v, batch, key: gradient_rows(fn, loss, v, batch, how, samples, key)
    return jax.jit(make), jax.jit(partial(mean_loss, fn, loss))


def blocks_of(
    variables: Variables, block: int | None, layers: Mapping[str, Layer] = NO_LAYERS
) -> list[np.ndarray]:
    """Which parameters share an inverse: their numbers, counted through all parameters flattened.

    Args:
        variables: of the net.
        block: None for one block; else the largest size of a block.
        layers: `groups.layers` of the net. A kernel and the bias that stands directly behind it
            are together, scale and shift of a norm are; every other leaf is alone. Without layers
            all leaves are.

    Returns:
        What is together, cut into nearly equal blocks along the outputs where it is above the size.

    Example:
        >>> import jprune
        >>> variables = {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)}
        >>> fn = lambda v, x: x @ v["kernel"] + v["bias"]
        >>> layers = jprune.trace(fn, variables, np.ones((1, 2), np.float32)).layers
        >>> [part.tolist() for part in blocks_of(variables, 5, layers)]
        [[0, 1, 2, 3, 6], [4, 7, 5, 8]]
    """
    together: dict[str, dict[str, np.ndarray]] = {}
    owners, shifts = _owners(layers), _shifts(layers)
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    start, places = 0, parameters_of(variables).places
    for path, leaf in (leaves[place] for place in places):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        numbers = start + np.arange(leaf.size).reshape(leaf.shape)
        start += leaf.size
        # Filter by filter: a kernel cut into blocks keeps each filter's weights together, and they
        # are the ones that can make up for each other.
        if name in layers:  # [inputs, window, outputs] -> [outputs, window, inputs]
            numbers = layers[name].matrix(numbers).transpose(2, 1, 0)
        owner = "" if block is None else owners.get(name, name)
        together.setdefault(owner, {})[name] = numbers.ravel()
    if block is None:
        return [np.concatenate(list(parts.values())) for parts in together.values()]
    blocks: list[np.ndarray] = []
    for parts in together.values():
        # Shifts, other leaves, the kernel: blocks are cut alike whatever the order of the tree.
        order = sorted(parts, key=lambda name: (name in layers, name not in shifts))
        layer = np.concatenate([parts[name] for name in order])
        blocks += np.array_split(layer, -(-len(layer) // block))
    return blocks


def _shifts(layers: Mapping[str, Layer]) -> set[str]:
    """Biases, and shifts of norms."""
    return {
        path for layer in layers.values() for path, role in layer.affine.items() if role == "shift"
    }


def _owners(layers: Mapping[str, Layer]) -> dict[str, str]:
    """{leaf: name of what it is together with}."""
    owners: dict[str, str] = {}
    for kernel, layer in layers.items():
        biases = () if layer.bias is None else (layer.bias,)
        for leaf in (kernel, *layer.parts, *biases):
            owners.setdefault(leaf, kernel)
        for leaf in layer.affine:
            owners.setdefault(leaf, f"norm behind {kernel}")
    return owners

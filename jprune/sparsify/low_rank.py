"""Low rank: a penalty on the singular values of kernels, as a step that brings them to 0.

    E(W) = E_D(W) + sum_l lambda_l / K_l sum_k ||unfold_k(W_l)||_*

The modes k of a kernel are its inputs, its outputs and each axis of its window; of a matrix both
modes have the same singular values, so that K is 1 and the step is exact.

References:
    Zhou, Alvarez, Porikli, Less is more: towards compact CNNs, 2016 [14]. The nuclear norm and its
    step: Cai, Candes, Shen, A singular value thresholding algorithm for matrix completion, 2010,
    arXiv 0810.3286; of tensors: Liu, Musialski, Wonka, Ye, Tensor completion for estimating missing
    values in visual data, 2013.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.base import Groups, Layer, Params, Schedule, Variables
from jprune.blocks.grains import weights
from jprune.blocks.members import leaves_of


def kernels_of_rank(groups: Groups, names: Sequence[str] | None = None) -> dict[str, Layer]:
    """Kernels that have a rank, in execution order: those of plain layers, the last one left out.

    Raises:
        StructureError: a name that is none of them, or there is none.
    """
    # The last layer's rank is that of the classes.
    layers = {
        path: layer for path, layer in groups.layers.items() if layer.plain and not layer.last
    }
    unknown = [name for name in names or () if name not in layers]
    if unknown or not layers:
        came = repr([*unknown, "low_rank"][0])
        raise errors.StructureError(
            f"{came}: kernels whose rank can be lowered are {', '.join(layers) or 'none'}: of "
            "plain convolutions and dense layers but the last."
        )
    return {path: layer for path, layer in layers.items() if names is None or path in names}


def modes(layer: Layer) -> tuple[tuple[int, ...], ...]:
    """The modes of a kernel, as axes: one for a matrix, inputs, outputs and windows for others."""
    windows = tuple((axis,) for axis in layer.window if layer.shape[axis] > 1)
    # Unfolded by its inputs a matrix is itself, by its outputs its transpose.
    return (layer.inputs, layer.outputs, *windows) if windows else (layer.inputs,)


def unfolded(kernel: Any, axes: Sequence[int]) -> Any:
    """A kernel as a matrix [these axes, all others], in row-major order."""
    others = [axis for axis in range(kernel.ndim) if axis not in axes]
    rows = int(np.prod([kernel.shape[axis] for axis in axes]))
    return kernel.transpose(*axes, *others).reshape(rows, -1)


def folded(matrix: Any, shape: Sequence[int], axes: Sequence[int]) -> Any:
    """The inverse of `unfolded`, for a kernel of this shape."""
    order = [*axes, *(axis for axis in range(len(shape)) if axis not in axes)]
    return matrix.reshape([shape[axis] for axis in order]).transpose(np.argsort(order).tolist())


def soft_singular(matrix: Any, threshold: Any) -> jax.Array:
    """The matrix with its singular values lowered by a threshold, down to 0.

    Example:
        >>> soft_singular(jnp.diag(jnp.array([5.0, 3.0, 1.0])), 2.0).round(4).tolist()
        [[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    # U max(S - t, 0) V^T
    return (left * jnp.maximum(values - threshold, 0)) @ right


def lowered(layer: Layer, kernel: Any, bias: Any, threshold: Any) -> tuple[Any, Any]:
    """A kernel and its bias after one step against the penalty, t lambda being the threshold.

    A bias, of any shape, is one more input of a matrix; it is None for tensors.
    """
    axes = modes(layer)
    if bias is not None:
        # [W; b], inputs x outputs
        matrix = jnp.concatenate([unfolded(kernel, axes[0]), bias.reshape(1, -1)])
        after = soft_singular(matrix, threshold)
        return folded(after[:-1], layer.shape, axes[0]), after[-1].reshape(bias.shape)
    # 1/K sum_k fold_k(SVT(unfold_k(W), t lambda)): exact for K = 1, else near the step of the sum
    sums = sum(
        folded(soft_singular(unfolded(kernel, mode), threshold), layer.shape, mode) for mode in axes
    )
    return sums / len(axes), bias


def singular_values(
    groups: Groups, variables: Variables, names: Sequence[str] | None = None
) -> dict[str, list[np.ndarray]]:
    """{kernel: [singular values of every mode]}, largest first.

    Args:
        groups: from `trace`.
        variables: those of the traced net or a part of them.
        names: of kernels; None: all that have a rank.

    Example:
        >>> import jprune
        >>> v = {"w": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}
        >>> groups = jprune.trace(lambda v, x: jax.nn.relu(x @ v["w"]) @ v["out"], v, jnp.ones(3))
        >>> [values.round(3).tolist() for values in singular_values(groups, v)["w"]]
        [[3.464, 0.0, 0.0]]
    """
    layers = kernels_of_rank(groups, names)
    leaves = leaves_of(weights(groups, tuple(layers)), variables)
    return {
        path: [
            np.linalg.svd(unfolded(np.asarray(leaves[path], float), mode), compute_uv=False)
            for mode in modes(layer)
        ]
        for path, layer in layers.items()
    }


def low_rank(
    groups: Groups,
    strength: float | Mapping[str, float],
    rate: float | Schedule,
    *,
    names: Sequence[str] | None = None,
    every: int = 1,
) -> optax.GradientTransformation:
    """Takes rate * lambda off every singular value of the kernels in a step, down to 0.

    Place it behind the optimizer, and before `group_lasso` if both act. Filters that are 0 stay so.
    A low rank by itself makes no filter 0. The bias of a matrix is one more input.

    Args:
        groups: from `trace`.
        strength: lambda of all kernels, or {kernel: lambda}.
        rate: size of a step, or step -> size.
        names: paths of kernels; None: all of plain layers but the last.
        every: singular values are dear: once in so many steps, a step is so many times as long.

    Returns:
        An optax transformation whose state is the number of the step.

    Raises:
        ArgumentError: strengths below 0 or of other kernels, `every` below 1; no parameters.
        StructureError: a name that has no rank, or parameters of another net (in `init`).

    Example:
        >>> import jprune
        >>> v = {"w": jnp.diag(jnp.array([3.0, 0.1])), "out": jnp.ones((2, 1))}
        >>> groups = jprune.trace(lambda v, x: jax.nn.relu(x @ v["w"]) @ v["out"], v, jnp.ones(2))
        >>> tx = low_rank(groups, strength=1.0, rate=0.5)
        >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, v), tx.init(v), v)
        >>> optax.apply_updates(v, updates)["w"].tolist()
        [[2.5, 0.0], [0.0, 0.0]]
    """
    layers = kernels_of_rank(groups, names)
    strengths = dict(strength) if isinstance(strength, Mapping) else dict.fromkeys(layers, strength)
    if {*strengths} != {*layers} or not min(strengths.values()) >= 0 or every < 1:
        raise errors.ArgumentError(
            f"low_rank(strength={strength!r}, every={every}); write a number of 0 or more, or one "
            f"for each of {', '.join(layers)}, and 1 or more."
        )
    kernels = weights(groups, tuple(layers))

    def init(params: Params) -> jax.Array:
        leaves_of(kernels, params)  # refuses parameters of another net
        return jnp.zeros((), jnp.int32)

    def step(params: Params, updates: Any, size: Any) -> Any:
        changes, before = leaves_of(kernels, updates), leaves_of(kernels, params)
        for path, layer in layers.items():
            bias = layer.bias if layer.bias in before and len(modes(layer)) == 1 else None
            moved = before[path] + changes[path]
            shift = None if bias is None else before[bias] + changes[bias]
            moved, shift = lowered(layer, moved, shift, size * strengths[path])
            changes[path] = moved - before[path]
            if bias is not None:
                changes[bias] = shift - before[bias]
        return jax.tree.unflatten(jax.tree.structure(updates), list(changes.values()))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise errors.ArgumentError(
                "low_rank needs the parameters: call tx.update(gradients, state, params)."
            )
        size = (rate(state) if callable(rate) else rate) * every
        if every == 1:
            return step(params, updates, size), state + 1
        acts = state % every == every - 1
        return jax.lax.cond(acts, step, lambda _, u, __: u, params, updates, size), state + 1

    return optax.GradientTransformation(init, update)

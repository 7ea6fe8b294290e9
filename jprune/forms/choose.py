"""The form that fits a masked kernel's pattern."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Masks, Variables, is_none
from jprune.forms.csr import CSR
from jprune.forms.layout import Axes, in_order
from jprune.forms.rows import Rows
from jprune.forms.slide import plain_kernels
from jprune.forms.thin import Thin

FORMS = ("rows", "thin", "csr")
"""Forms that a mask alone can choose."""


def leaf_of(
    kernel: jax.Array,
    mask: Any,
    csr_below: float = 0.5,
    axes: Axes = None,
    allowed: Collection[str] = FORMS,
) -> Any:
    """A masked kernel in the form that fits its pattern.

    Args:
        kernel: in any layout.
        mask: bool, of its shape.
        csr_below: density below which an irregular pattern is held as single weights (`CSR`). From
            one half on, values and positions take as much memory as the dense kernel. Where it is
            faster, too, depends on the machine: `jprune.compact` decides that. 0 never uses it.
        axes: of the kernel, as (window..., inputs, outputs); None: they stand in this order.
        allowed: of `FORMS`, those that may be used.

    Returns:
        The kernel itself if nothing is masked; `Rows` if whole inputs and outputs are; `Thin` if
        whole columns are (one tap of one input, over all outputs), perhaps with whole outputs;
        else `CSR`, or the masked array at densities from `csr_below` on.

    Raises:
        StructureError: a mask of another shape, or one that keeps nothing.

    Example:
        >>> mask = np.ones((3, 3, 2, 4), bool)
        >>> mask[0, 1, 1] = False
        >>> type(leaf_of(jnp.ones(mask.shape), mask)).__name__
        'Thin'
    """
    mask = np.asarray(mask, bool)
    if mask.shape != np.shape(kernel) or mask.ndim < 2 or not mask.any():
        raise errors.StructureError(
            f"a mask of shape {mask.shape}, {int(mask.sum())} weights kept, for a kernel of shape "
            f"{np.shape(kernel)}: the mask has its shape, two axes or more, and keeps a weight."
        )
    if mask.all():
        return kernel
    ordered, window = in_order(mask, axes), tuple(range(mask.ndim - 2))
    inputs, outputs = ordered.any(axis=(*window, -1)), ordered.any(axis=(*window, -2))
    # The mask is a product of inputs and outputs: mask[..., c, f] = inputs[c] outputs[f].
    if "rows" in allowed and (ordered == np.logical_and.outer(inputs, outputs)).all():
        return Rows.of(kernel, inputs, outputs, axes)
    # Of columns and outputs: mask[h, w, c, f] = taps[h, w, c] outputs[f].
    taps = ordered.any(axis=-1)
    if "thin" in allowed and (ordered == np.logical_and.outer(taps, outputs)).all():
        return Thin.of(kernel, taps, outputs, axes)
    if "csr" in allowed and mask.mean() < csr_below:
        return CSR.of(kernel, mask, axes)
    return kernel * mask


def compact(
    fn: Callable[..., Any],
    variables: Variables,
    masks: Masks,
    *args: Any,
    csr_below: float = 0.5,
    allowed: Mapping[str, Collection[str]] | None = None,
) -> Variables:
    """Variables whose masked kernels are held in the forms that fit their patterns.

    A kernel is converted if plain contractions alone read it, all in one layout, whichever that is;
    one of a convolution with feature groups to `CSR` alone. Others (tied, reshaped) stay arrays,
    multiplied by their masks. What the
    axes do is read off the contraction. Only functions that `slim` returns can execute such
    variables: lift first, then slim, then compact.

    Args:
        fn: the function that will run, from `slim`.
        variables: its variables, arrays.
        masks: a tree like them; None leaves are whole.
        *args: inputs of `fn`, arrays or shapes.
        csr_below: as in `leaf_of`.
        allowed: {path: forms that the kernel may take}, whatever its density; one that is not named
            stays an array. None: as `leaf_of` chooses.

    Returns:
        The variables with leaf types in place of some arrays.

    Example:
        >>> import jprune
        >>> fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
        >>> variables = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 2))}
        >>> masks = {"first": np.array([[True], [False]]) & np.ones((2, 3), bool), "second": None}
        >>> groups, x = jprune.trace(fn, variables, jnp.ones((1, 2))), jnp.ones((1, 2))
        >>> small_fn = jprune.slim(fn, groups, {})
        >>> held = compact(small_fn, variables, masks, x)
        >>> type(held["first"]).__name__, small_fn(held, x).tolist()
        ('Rows', [[3.0, 3.0]])
    """
    plain = plain_kernels(fn, variables, *args)
    grouped = plain_kernels(fn, variables, *args, grouped=True)

    def one(path: Any, mask: Any, leaf: Any) -> Any:
        if mask is None:
            return leaf
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        may = FORMS if allowed is None else allowed.get(name, ())
        below = csr_below if allowed is None else 1.0
        if name in plain:
            return leaf_of(leaf, mask, below, plain[name], may)
        if name in grouped and "csr" in may and 0 < np.mean(mask) < below:
            return CSR.of(leaf, mask, grouped[name])
        return leaf * jnp.asarray(mask, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, masks, variables, is_leaf=is_none)

"""One call from masks to a net that runs as fast as its pattern allows on the machine at hand."""

import warnings
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import forms, kernels
from jprune import masks as trees
from jprune.base import Masks, Variables
from jprune.cost import Machine, Work, works
from jprune.execute.machine import this_machine
from jprune.graph import slim, slim_params, trace

ITEMSIZE = 4
"""Bytes of a number."""


class Verdict(NamedTuple):
    """What the roofline says of one layer.

    Attributes:
        form: "csr", "thin" or "dense", the fastest of them.
        density: fraction of the kernel's weights that are kept.
        columns: fraction of its columns (one tap of one input, over all outputs) that are kept.
        speedup: {form: how many times faster than the dense layer it can be}.
    """

    form: str
    density: float
    columns: float
    speedup: dict[str, float]


def verdict(
    work: Work, machine: Machine, density: float, columns: float = 1.0, patches: float = 0.0
) -> Verdict:
    """Which form of a layer is the fastest, by arithmetic and bandwidth.

    Args:
        work: of the dense layer.
        machine: that runs it.
        density: fraction of weights that are kept.
        columns: fraction of columns that are kept.
        patches: bytes of the matrix of all patches, written and read; a thin layer moves the kept
            columns of it. 0 for a layer without a window.

    Example:
        >>> from jprune.cost import XEON
        >>> conv5 = Work(macs=74_760_192, activations=432_640, weights=1_769_472)
        >>> verdict(conv5, XEON, 0.09).form, verdict(conv5, XEON, 0.5).form
        ('csr', 'dense')
    """
    # A thin layer is a dense product: an operation, and a weight, cost what they cost there.
    thin = Machine(machine.flops, machine.bandwidth, 1.0, 1.0)
    moved = Work(work.macs, work.activations + patches * columns, work.weights)
    speedup = {
        "csr": work.speedup(machine, density),
        "thin": moved.speedup(thin, columns) if columns < 1 else 0.0,
        "dense": 1.0,
    }
    return Verdict(max(speedup, key=lambda form: speedup[form]), density, columns, speedup)


def verdicts(
    fn: Callable[..., Any],
    variables: Variables,
    masks: Masks,
    *args: Any,
    machine: Machine | None = None,
) -> dict[str, Verdict]:
    """What the roofline says of every masked kernel of a net.

    Args:
        fn: the net, in inference mode.
        variables: its variables, arrays or shapes.
        masks: a tree of weight masks like them; None leaves are whole.
        *args: inputs of the size that it will run on.
        machine: None measures this one (`this_machine`).

    Returns:
        {path of the kernel: verdict}.

    Raises:
        MissingExtraError: no machine came, and numba is not installed.

    Example:
        >>> import jax.numpy as jnp
        >>> from jprune.cost import ATOM
        >>> fn, x = lambda v, x: x @ v["w"], jnp.ones((500, 400))
        >>> mask = {"w": np.arange(400 * 300).reshape(400, 300) % 20 == 0}
        >>> verdicts(fn, {"w": jnp.ones((400, 300))}, mask, x, machine=ATOM)["w"].form
        'csr'
    """
    machine = this_machine() if machine is None else machine
    groups = trace(fn, variables, *args)
    work = works(fn, variables, *args, groups=groups, itemsize=ITEMSIZE)
    result = {}
    for path, mask in jax.tree_util.tree_leaves_with_path(masks):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        mask = np.asarray(mask, bool)
        if name not in work or name not in groups.layers or not mask.any() or mask.all():
            continue
        layer = groups.layers[name]
        kept = mask.any(axis=layer.outputs) if layer.outputs else mask
        # All patches: as many numbers as MACs, over the outputs that share them.
        outputs = max(int(np.prod([mask.shape[axis] for axis in layer.outputs])), 1)
        patches = 2 * ITEMSIZE * work[name].macs / outputs if layer.window else 0.0
        result[name] = verdict(work[name], machine, mask.mean(), kept.mean(), patches)
    return result


def compact(
    fn: Callable[..., Any],
    variables: Variables,
    masks: Masks,
    *args: Any,
    machine: Machine | None = None,
) -> tuple[Callable[..., Any], Variables]:
    """The net under weight masks, in the form that runs fastest on this machine's CPU.

    Units without readers are removed (`lift`, `slim`); every kernel that is still masked becomes a
    sparse kernel, a thin one, or stays dense, as the roofline decides from the constants of the
    machine. Kernels without whole rows of zeros whose sparse form does not pay are dense arrays
    with zeros in them.

    Args:
        fn: the net, in inference mode.
        variables: its variables, arrays.
        masks: a tree of weight masks like them, True keeps; None leaves are whole.
        *args: inputs of the size that it will run on (other sizes work too), arrays or shapes.
        machine: None measures this one once (`execute.this_machine`).

    Returns:
        `(fast_fn, fast_variables)`, to be called as `jax.jit(fast_fn)(fast_variables, x)`. The
        answers are those of `fn(apply_masks(variables, masks), x)`, up to rounding; gradients,
        `vmap` and `jit` work. On other devices than CPUs nothing is sparse: only units and columns
        go.

    Raises:
        MissingExtraError: numba is not installed: `pip install 'jprune[sparse]'`. `forms.compact`
            works without it.
        StructureError: masks of another net.

    Example:
        >>> import jax.numpy as jnp
        >>> from jprune.cost import ATOM
        >>> fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
        >>> variables = {"a": jnp.ones((400, 300)), "b": jnp.ones((300, 10))}
        >>> x = jnp.ones((90, 400))
        >>> masks = {"a": np.arange(400 * 300).reshape(400, 300) % 23 == 0, "b": None}
        >>> fast, held = compact(fn, variables, masks, x, machine=ATOM)
        >>> held["a"], fast(held, x).shape
        (CSR(5218 of 120000 weights, float32), (90, 10))
    """
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu:
        kernels.require()
    else:
        warnings.warn(
            f"sparse kernels run on CPUs; on {jax.default_backend()} only units and whole columns "
            "are taken out.",
            stacklevel=2,
        )
    groups = trace(fn, variables, *args)
    units = trees.lift(groups, masks)
    small_fn = slim(fn, groups, units)
    small = slim_params(groups, units, trees.apply_masks(variables, masks))
    smaller = slim_params(groups, units, masks)
    allowed: dict[str, Collection[str]] | None = None
    if on_cpu:
        decided = verdicts(small_fn, small, smaller, *args, machine=machine)
        allowed = {path: (one.form,) for path, one in decided.items()}
    else:
        allowed = {}
    return small_fn, forms.compact(small_fn, small, smaller, *args, allowed=allowed)

"""Gates that are read off a layer's input: which layers can have them, and nets that hold them.

    y = g(x) * (norm(conv x) + shift),   g [batch, outputs]

A learner says what g is and how it is learned; here is what all of them need. `with_gates` makes a
task of which net and gates are trained together, `as_gated` the net that is handed over: norm and
shift are folded into kernels in a form of `jprune.forms` that has gates.
"""

import math
from collections.abc import Callable, Mapping
from fnmatch import filter as matching
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.base import Batch, Groups, PyTree, Task, Variables
from jprune.forms.slide import plain_kernels
from jprune.graph.look.affine import affine_leaves, affine_of
from jprune.learners.norm_gates import early_shifts
from jprune.units import leaves_by_path


class Gated(NamedTuple):
    """A layer that gets gates.

    Attributes:
        inputs: channels that it reads.
        outputs: channels that it makes; each has a gate.
        scales: paths of the leaves that the gate replaces.
        shifts: paths of the leaves that are added behind the scale.
        means: paths of the running means of its norm.
        early: shifts that the scale multiplies, such as a convolution's bias before its norm.
        least: the smallest number of outputs that win.
    """

    inputs: int
    outputs: int
    scales: tuple[str, ...]
    shifts: tuple[str, ...]
    means: tuple[str, ...]
    early: tuple[str, ...] = ()
    least: int = 1


def boostable_layers(task: Task, groups: Groups, shapes: Variables) -> dict[str, Gated]:
    """{kernel: what its gates need} of all convolutions whose outputs can be suppressed.

    Dense layers get none: a predictor would cost what the layer costs. Nor do grouped
    convolutions, kernels that are used twice, outputs that are frozen, and layers whose raw outputs
    something beside their norm reads (the stem of a pre-activation ResNet or a DenseNet): behind a
    gate that is folded into such a kernel, the other reader would get another value.
    """
    between = affine_leaves(task.fn, groups, shapes, task.example)
    # Gates are a leaf type, and leaf types are for kernels that plain contractions alone read.
    plain = plain_kernels(task.fn, shapes, task.example, casts=True)
    roles = {p.leaf: p.roles for name in groups.names for p in groups.places[name]}
    early = early_shifts(task.fn, groups, shapes, task.example)
    gated = {}
    for site in groups.sites:
        path, layer = site.kernel, groups.layers[site.kernel]
        usable = site.kind == "norm" and site.groups and path in plain and path in early
        if not usable or not layer.window or len(layer.sites) > 1:
            continue
        inputs, outputs = (layer.shape[axis] for axis in (*layer.inputs, *layer.outputs))
        by_role = (
            tuple(
                leaf
                for leaf in between[path]
                if role in roles.get(leaf, ()) and leaf not in early[path]
            )
            for role in ("scale", "shift", "mean")
        )
        gated[path] = Gated(inputs, outputs, *by_role, early=early[path])
    return gated


def chosen_layers(
    groups: Groups, gateable: Mapping[str, Gated], patterns: str, who: str = "fbs"
) -> dict[str, Gated]:
    """The layers that patterns name, with ":" between; without patterns, all of them.

    Args:
        groups: of the net.
        gateable: from `boostable_layers`.
        patterns: of kernels.
        who: the method, for the message.

    Raises:
        FrozenError: a pattern names a layer whose outputs are frozen.
        ArgumentError: a pattern names no layer that can be gated, or there is none at all.
    """
    if not gateable:
        raise errors.ArgumentError(
            f"no convolution of this net can have gates; {who} suppresses channels of "
            "convolutions. `jprune inspect` shows what is frozen."
        )
    named: dict[str, Gated] = {}
    for pattern in filter(None, patterns.split(":")):
        matches = matching(gateable, pattern)
        frozen = [f for f in groups.frozen if matching([f.leaf], pattern) and not matches]
        if frozen:
            last = frozen[-1]
            raise errors.FrozenError(
                f"gates={pattern!r} puts a gate on {last.leaf}, which is frozen: its axis "
                f"{last.axis} is {last.reason}. Write one of {', '.join(gateable)}."
            )
        if not matches:
            raise errors.ArgumentError(
                f"gates={pattern!r} names no layer that can have gates; "
                f"{errors.nearest(pattern, gateable)}there are {', '.join(gateable)}."
            )
        named |= {name: gateable[name] for name in matches}
    return named or dict(gateable)


def counts_at(layers: Mapping[str, Gated], density: float) -> dict[str, int]:
    """How many outputs of a layer win: ceil(d C), and no fewer than its `least`.

    Example:
        >>> counts_at({"a": Gated(3, 16, (), (), ())}, 0.3)
        {'a': 5}
    """
    return {
        name: max(layer.least, math.ceil(density * layer.outputs - 1e-6))
        for name, layer in layers.items()
    }


def along_outputs(groups: Groups, path: str, values: jax.Array) -> jax.Array:
    """A number for each output of a layer in the shape that one of its leaves is multiplied by.

    Args:
        groups: of the net.
        path: of the kernel, or of a leaf with a number for each output.
        values: [outputs].
    """
    shape, axes = groups.leaves[path].shape, range(len(groups.leaves[path].shape))
    outputs = groups.layers[path].outputs if path in groups.layers else axes
    return values.reshape([shape[axis] if axis in outputs else 1 for axis in axes])


def with_ones(groups: Groups, layers: Mapping[str, Gated], net: Variables) -> Variables:
    """The net whose gated layers have scales of 1, where no gradient gets."""
    ones = {path for layer in layers.values() for path in layer.scales}
    leaves = leaves_by_path(groups, net).items()
    return groups.treedef.unflatten([jnp.ones_like(v) if p in ones else v for p, v in leaves])


def with_gates(
    task: Task,
    run: Callable[[Variables, jax.Array, jax.Array], tuple[Any, Any]],
    loss: Callable[[Any, Batch], jax.Array],
    metrics: Callable[[Any, Batch], dict[str, jax.Array]],
) -> Task:
    """The task for variables {"net", "gates", others}: net and gates are trained together.

    Args:
        task: of the plain net.
        run: its `train_fn`: `run(variables, x, key) -> out, (new statistics, others)`, the others
            being what is not trained but changes in every step, such as {"step"}.
        loss: of its outputs.
        metrics: likewise.
    """

    def split(variables: Variables) -> tuple[PyTree, PyTree]:
        params, rest = task.split(variables["net"])
        others = {name: part for name, part in variables.items() if name not in ("net", "gates")}
        return {"net": params, "gates": variables["gates"]}, {"net": rest, **others}

    def merge(params: PyTree, rest: PyTree) -> Variables:
        net = task.merge(params["net"], rest["net"])
        return {**rest, "net": net, "gates": params["gates"]}

    def update(variables: Variables, new: Any) -> Variables:
        return {**variables, "net": task.update(variables["net"], new[0]), **new[1]}

    return task._replace(
        train_fn=run, loss=loss, metrics=metrics, split=split, merge=merge, update=update
    )


def as_gated(
    task: Task,
    groups: Groups,
    layers: Mapping[str, Gated],
    net: Variables,
    form: Callable[[str, Any, Any, Any], Any],
    shift_first: bool = True,
) -> Variables:
    """A net as variables that any function of the net runs: gated kernels.

    Norms and shifts behind a gated kernel are folded into it, so that the norm is an identity.

    Args:
        task: of the plain net.
        groups: of it.
        layers: that are gated.
        net: its variables.
        form: `form(layer, kernel, offset, bonus)`: the kernel with its gates.
        shift_first: whether shifts stand inside the gate; else open outputs get them as a bonus.
    """
    # The factor and offset behind every layer, and then those without the gated layers' scales and
    # shifts: the quotient is what the kernel takes in.
    affine, x = affine_of(task.fn, groups), jnp.zeros(task.example.shape, task.example.dtype)
    folded = affine(net, x)
    leaves = leaves_by_path(groups, with_ones(groups, layers, net))
    bonuses = {}
    for name, layer in layers.items():
        # Shifts are [outputs], [1, 1, 1, outputs] or [outputs, 1, 1], as their library writes them.
        shifts = (jnp.ravel(leaves[path]) for path in layer.shifts)
        shift = sum(shifts, jnp.zeros(layer.outputs))
        # The bonus is added to open outputs only, behind the gate.
        bonuses[name] = jnp.zeros_like(shift) if shift_first else shift
        for path in (*layer.shifts, *layer.means, *layer.early):
            leaves[path] = jnp.zeros_like(leaves[path])
    rest = affine(groups.treedef.unflatten(list(leaves.values())), x)
    for name, layer in layers.items():
        factor, offset = folded[name]
        for path in layer.scales[:1]:
            leaves[path] = leaves[path] / along_outputs(groups, path, rest[name][0])
        scale_left = rest[name][0] if not layer.scales else jnp.ones(())
        leaves[name] = form(
            name,
            leaves[name] * along_outputs(groups, name, factor / scale_left),
            (offset - bonuses[name]) / scale_left,
            bonuses[name] / scale_left,
        )
    return groups.treedef.unflatten(list(leaves.values()))

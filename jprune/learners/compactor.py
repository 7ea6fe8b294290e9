"""Compactors: square matrices behind a group's layers, which are trained and then folded in.

    z = Q (norm(conv x)),   Q [units, units], the identity at first

What the net has learned stays in its weights, and what it shall forget is said by Q alone: a row of
0 is a unit that says nothing. Behind convolution and norm both are linear, so that in inference the
net with Q is a net without, of the same shape.

References:
    Ding, Hao, Tan, Liu, Han, Guo, Ding, ResRep: lossless CNN pruning via decoupling remembering and
    forgetting, 2021, arXiv 2007.03260.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune.base import Groups, Layer, Task, Variables
from jprune.graph.look.affine import affine_of
from jprune.graph.look.intercept import Site, intercept
from jprune.learners.input_gates import along_outputs, with_gates
from jprune.learners.norm_gates import early_shifts
from jprune.units import leaves_by_path

Makers = Mapping[str, tuple[str, ...]]
"""{group: kernels whose outputs are its units}."""


def compactable(task: Task, groups: Groups) -> dict[str, tuple[str, ...]]:
    """{group: the kernels behind which its compactor stands}, of all groups that can have one.

    All layers that make a group's units must be plain ones, that run once, whose outputs nothing
    reads but what is behind their norm, and whose norm has a scale and a shift, if there is one. A
    depthwise layer passes units on: a compactor stands behind the layer before it.

    Example:
        >>> from jprune import data, train, zoo
        >>> task = train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
        >>> compactable(task, train.Net(task).groups)["params/fc1/kernel"]
        ('params/fc1/kernel',)
    """
    shapes = groups.treedef.unflatten(list(groups.leaves.values()))
    early = early_shifts(task.fn, groups, shapes, task.example)
    behind = {site.layer for site in groups.sites if site.kind == "norm"}
    owners = Counter(leaf for layer in groups.layers.values() for leaf in layer.affine)

    def fits(layer: Layer, group: str, units: np.ndarray) -> bool:
        usual = layer.plain and layer.writes == (group,) and len(layer.sites) == 1
        if not usual or layer.sites[0] not in early or layer.sites[0] not in behind:
            return False
        roles, before = {*layer.affine.values()}, early[layer.sites[0]]
        late = [n for n, role in layer.affine.items() if role == "shift" and n not in before]
        # A norm's own scale and shift are what brings the values back behind the new kernel.
        restores = not roles - {"shift"} or (late and "scale" in roles)
        own = all(owners[leaf] == 1 for leaf in layer.affine)
        return bool(restores and own and np.array_equal(units, np.arange(groups.sizes[group])))

    result = {}
    for name in groups.names:
        places = [place for place in groups.places[name] if "kernel" in place.roles]
        layers = [groups.layers[p.leaf] for p in places if p.leaf in groups.layers]
        units = {place.leaf: place.units for place in places}
        # Of a depthwise layer the units come in by the axis by which they go out.
        makers = [layer for layer in layers if not _depthwise(layer)]
        if makers and all(fits(layer, name, units[layer.kernel]) for layer in makers):
            result[name] = tuple(layer.kernel for layer in makers)
    return result


def _depthwise(layer: Layer) -> bool:
    return layer.feature_groups > 1


def compacted_task(task: Task, groups: Groups, makers: Makers) -> Task:
    """The task for variables {"net", "gates"}: the net and its compactors, {group: Q}.

    Args:
        task: of the plain net.
        groups: of it.
        makers: of the groups that have a compactor, from `compactable`.
    """
    owners = {
        groups.layers[path].sites[0]: name for name, paths in makers.items() for path in paths
    }

    def handler(site: Site, value: Any, matrices: Any) -> tuple[Any, Any]:
        if site.layer not in owners:
            return value, matrices
        # z = Q y
        matrix = matrices[owners[site.layer]].astype(value.dtype)
        mixed = jnp.moveaxis(value, site.axis, -1) @ matrix.T
        return jnp.moveaxis(mixed, -1, site.axis), matrices

    run = intercept(task.train_fn, groups, handler, ("norm",))

    def train_fn(variables: Variables, x: jax.Array, key: jax.Array) -> Any:
        (out, new), _ = run(variables["net"], variables["gates"], x, key)
        return out, (new, {})

    return with_gates(task, train_fn, task.loss, task.metrics)


def compacted(
    task: Task, groups: Groups, makers: Makers, matrices: Mapping[str, Any], net: Variables
) -> Variables:
    """The plain net that says, in inference, what a net with compactors says.

    Args:
        task: of the plain net.
        groups: of it.
        makers: as of `compacted_task`.
        matrices: {group: Q [units, units]}.
        net: its variables.
    """
    x = jnp.zeros(task.example.shape, task.example.dtype)
    affine = affine_of(task.fn, groups)(net, x)
    leaves, wanted = leaves_by_path(groups, net), {}
    for name, paths in makers.items():
        for path in paths:
            matrix, layer = jnp.asarray(matrices[name]), groups.layers[path]
            factor, offset = affine[layer.sites[0]]
            # Q (factor (K x) + offset) = (Q factor K) x + Q offset
            rows = jnp.moveaxis(leaves[path] * along_outputs(groups, path, factor), *_first(layer))
            mixed = jnp.tensordot(matrix, rows, axes=1, precision="highest")
            leaves[path] = jnp.moveaxis(mixed, *reversed(_first(layer))).astype(leaves[path].dtype)
            wanted[path] = jnp.matmul(matrix, offset, precision="highest")
    return _restated(task, groups, wanted, groups.treedef.unflatten(list(leaves.values())))


def restated(task: Task, groups: Groups, makers: Makers, net: Variables, batches: Any) -> Variables:
    """The same function, with the statistics that the new kernels' values have.

    A training that goes on normalises by them; in inference nothing changes.

    Args:
        task: of the plain net.
        groups: of it.
        makers: whose norms are written anew; their factors are 1, as `compacted` leaves them.
        net: from `compacted`.
        batches: images, of one batch or several.
    """
    paths = [path for of_group in makers.values() for path in of_group]
    owners = {groups.layers[path].sites[0]: path for path in paths}

    def handler(site: Site, value: Any, seen: Any) -> tuple[Any, Any]:
        if site.layer in owners:
            axes = tuple(axis for axis in range(value.ndim) if axis != site.axis)
            value32 = value.astype(jnp.float32)
            seen = {**seen, owners[site.layer]: (value32.mean(axes), (value32**2).mean(axes))}
        return value, seen

    run = jax.jit(intercept(task.fn, groups, handler, ("out",)))
    each = [run(net, {}, x)[1] for x in batches]
    means = jax.tree.map(lambda *parts: sum(parts) / len(parts), *each)
    offsets = affine_of(task.fn, groups)(net, jnp.zeros(task.example.shape, task.example.dtype))
    leaves = leaves_by_path(groups, net)
    for path, (mean, square) in means.items():
        moments = {"mean": mean, "var": jnp.maximum(square - mean**2, 0)}
        for leaf, role in groups.layers[path].affine.items():
            # A counter that all channels share is no statistic of theirs.
            if role in moments and leaves[leaf].size == mean.size:
                shape, dtype = leaves[leaf].shape, leaves[leaf].dtype
                leaves[leaf] = moments[role].reshape(shape).astype(dtype)
    wanted = {path: offsets[groups.layers[path].sites[0]][1] for path in paths}
    return _restated(task, groups, wanted, groups.treedef.unflatten(list(leaves.values())))


def _restated(
    task: Task, groups: Groups, offsets: Mapping[str, jax.Array], net: Variables
) -> Variables:
    """The net that has (kernel x) + offset behind these kernels, whatever its statistics are."""
    leaves = leaves_by_path(groups, net)
    of_role = {
        path: {
            role: [leaf for leaf, its in groups.layers[path].affine.items() if its == role]
            for role in ("scale", "shift")
        }
        for path in offsets
    }
    for roles in of_role.values():
        leaves |= {leaf: jnp.ones_like(leaves[leaf]) for leaf in roles["scale"]}
        leaves |= {leaf: jnp.zeros_like(leaves[leaf]) for leaf in roles["shift"]}
    x = jnp.zeros(task.example.shape, task.example.dtype)
    bare = affine_of(task.fn, groups)(groups.treedef.unflatten(list(leaves.values())), x)
    for path, offset in offsets.items():
        factor, rest = bare[groups.layers[path].sites[0]]
        scales, shifts = of_role[path]["scale"], of_role[path]["shift"]
        # scale (factor K x + rest) + shift = K x + offset
        along = lambda leaf, values: along_outputs(groups, leaf, values).astype(leaves[leaf].dtype)
        if scales:
            leaves[scales[0]] = leaves[scales[0]] * along(scales[0], 1 / factor)
        else:
            leaves[path] = leaves[path] * along(path, 1 / factor)
            factor = jnp.ones_like(factor)
        # The last shift stands behind the scale.
        if shifts:
            leaves[shifts[-1]] = leaves[shifts[-1]] + along(shifts[-1], offset - rest / factor)
    return groups.treedef.unflatten(list(leaves.values()))


def _first(layer: Layer) -> tuple[int, int]:
    """The move that brings a kernel's outputs to the front."""
    return layer.outputs[0], 0

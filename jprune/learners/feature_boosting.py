"""Feature boosting and suppression: a task whose net chooses its channels for every example.

    s_c = mean over positions of |x_c|,   g = relu(s predictor + level)
    y = pi * (norm(conv x) + shift),   pi_j = g_j for the k = ceil(d C) largest g_j, else 0

pi takes the place of the norm's scale, which is 1 and not trained. A loser is *frozen* for that
example: exactly 0, and no gradient comes through it but that of the penalty on g.

References:
    Gao, Zhao, Dudziak, Mullins, Xu, Dynamic channel pruning: feature boosting and suppression,
    2019, arXiv 1810.05331 [32].
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from fnmatch import filter as matching
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, PyTree, Task, Variables
from jprune.forms.slide import plain_kernels
from jprune.forms.winners import Winners, saliences, winners
from jprune.graph.look.affine import affine_leaves, affine_of
from jprune.graph.look.intercept import Site, intercept
from jprune.learners.norm_gates import early_shifts
from jprune.units import leaves_by_path

STARTS = ("one", "scale")


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


@dataclasses.dataclass(frozen=True)
class Boosting:
    """How a net is gated.

    Attributes:
        lasso: weight of the penalty on g, added to the loss of every example.
        over: what it sums: "gates" (all g of the paper) or "winners" (as in the authors' code).
        start: "one": level 1, and the norm's shift unchanged; "scale": level and shift such that
            without the predictor, at density 1, the outputs are those of the net before.
        std: of the predictor's initial normal distribution, cut at two deviations.
        shift_first: pi * (norm + shift) as in the paper; False: pi * norm + 1[pi > 0] shift, the
            default of the authors' code.
    """

    lasso: float = 1e-8
    over: str = "gates"
    start: str = "one"
    std: float = 0.05
    shift_first: bool = True

    def __post_init__(self):
        if self.over not in ("gates", "winners") or self.start not in STARTS:
            raise errors.ArgumentError(
                f"fbs(over={self.over!r}, start={self.start!r}); over is gates or winners, start "
                f"one of {', '.join(STARTS)}."
            )
        if self.lasso < 0 or self.std < 0:
            raise errors.ArgumentError(
                f"fbs(lasso={self.lasso}, std={self.std}); both are 0 or more."
            )


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


def chosen_layers(groups: Groups, gateable: Mapping[str, Gated], patterns: str) -> dict[str, Gated]:
    """The layers that patterns name, with ":" between; without patterns, all of them.

    Raises:
        FrozenError: a pattern names a layer whose outputs are frozen.
        ArgumentError: a pattern names no layer that can be gated, or there is none at all.
    """
    if not gateable:
        raise errors.ArgumentError(
            "no convolution of this net can have gates; fbs suppresses channels of convolutions. "
            "`jprune inspect` shows what is frozen."
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


def init_gates(
    key: jax.Array, layers: Mapping[str, Gated], levels: Mapping[str, jax.Array], std: float
) -> PyTree:
    """{layer: {"predictor": [inputs, outputs], "level": [outputs]}}."""
    return {
        name: {
            # A normal distribution, cut at two deviations: no channel begins far from the others.
            "predictor": std
            * jax.random.truncated_normal(
                jax.random.fold_in(key, number), -2.0, 2.0, (layer.inputs, layer.outputs)
            ),
            "level": levels[name],
        }
        for number, (name, layer) in enumerate(layers.items())
    }


def prepared(
    groups: Groups, layers: Mapping[str, Gated], boosting: Boosting, variables: Variables
) -> tuple[Variables, dict[str, jax.Array]]:
    """The net with scales of 1 at its gated layers, and the levels of the gates.

    With `start="scale"` the levels are the scales' sizes; a shift is then divided by them (where it
    stands inside the gate), and the sign of a scale moves into the kernel and what is added before
    the scale.
    """
    leaves, levels = leaves_by_path(groups, variables), {}
    for name, layer in layers.items():
        size = jnp.ones(layer.outputs)
        if boosting.start == "scale" and layer.scales:
            scale = math.prod((jnp.ravel(leaves[path]) for path in layer.scales), start=size)
            # Gates are 0 or more: |gamma| is the level, and the sign of gamma goes into what is
            # scaled. 1e-3: shifts are divided by it.
            sign, size = jnp.where(scale < 0, -1.0, 1.0), jnp.maximum(jnp.abs(scale), 1e-3)
            for path in (name, *layer.means, *layer.early):
                leaves[path] = leaves[path] * _along(groups, path, sign)
            if boosting.shift_first:
                # pi (x + shift / gamma) = gamma x + shift where pi = gamma
                leaves |= {p: leaves[p] / _along(groups, p, size) for p in layer.shifts}
        leaves |= {path: jnp.ones_like(leaves[path]) for path in layer.scales}
        levels[name] = size
    return groups.treedef.unflatten(list(leaves.values())), levels


def _along(groups: Groups, path: str, values: jax.Array) -> jax.Array:
    """A number for each output of a layer in the shape that one of its leaves is multiplied by.

    Args:
        groups: of the net.
        path: of the kernel, or of a leaf with a number for each output.
        values: [outputs].
    """
    shape, axes = groups.leaves[path].shape, range(len(groups.leaves[path].shape))
    outputs = groups.layers[path].outputs if path in groups.layers else axes
    return values.reshape([shape[axis] if axis in outputs else 1 for axis in axes])


def boosted_task(
    task: Task,
    groups: Groups,
    layers: Mapping[str, Gated],
    boosting: Boosting,
    counts: Mapping[str, np.ndarray],
    steps: int,
) -> Task:
    """The task for variables {"net", "gates", "step"}: net and gates are trained together.

    Its outputs are (logits, penalty [batch], fraction of the gates that are open [batch]).

    Args:
        task: of the plain net.
        groups: of it.
        layers: from `boostable_layers`.
        boosting: the settings.
        counts: {layer: int [phases], how many outputs win in each}.
        steps: of the whole training, which the phases divide evenly.
    """
    phases = len(next(iter(counts.values())))

    def train_fn(variables: Variables, x: jax.Array, key: jax.Array) -> Any:
        # Traced: the step is data, so one compiled function serves all phases.
        phase = jnp.minimum(variables["step"] * phases // steps, phases - 1)
        net = _with_ones(groups, layers, variables["net"])
        winners_now = {name: jnp.asarray(of_phase)[phase] for name, of_phase in counts.items()}
        handler = _gating(
            layers, boosting, winners_now, variables["gates"], leaves_by_path(groups, net)
        )
        run = intercept(task.train_fn, groups, handler, ("in", "norm"))
        nothing = jnp.zeros(len(x))
        (logits, new), (_, penalty, alive) = run(net, ({}, nothing, nothing), x, key)
        return (logits, penalty, alive), (new, variables["step"] + 1)

    def split(variables: Variables) -> tuple[PyTree, PyTree]:
        params, rest = task.split(variables["net"])
        return {"net": params, "gates": variables["gates"]}, {
            "net": rest, "step": variables["step"]
        }  # fmt: skip

    def merge(params: PyTree, rest: PyTree) -> Variables:
        net = task.merge(params["net"], rest["net"])
        return {"net": net, "gates": params["gates"], "step": rest["step"]}

    def update(variables: Variables, new: Any) -> Variables:
        return {**variables, "net": task.update(variables["net"], new[0]), "step": new[1]}

    return task._replace(
        train_fn=train_fn,
        loss=lambda out, batch: task.loss(out[0], batch) + boosting.lasso * out[1],
        metrics=lambda out, batch: {
            **task.metrics(out[0], batch), "lasso": out[1], "gates_open": out[2]
        },
        split=split,
        merge=merge,
        update=update,
    )  # fmt: skip


def _gating(
    layers: Mapping[str, Gated],
    boosting: Boosting,
    counts: Mapping[str, jax.Array],
    gates: PyTree,
    leaves: Mapping[str, Any],
) -> Callable[[Site, Any, Any], tuple[Any, Any]]:
    """The handler that gates the layers at "norm" by what they read at "in".

    It carries ({layer: g}, penalty [batch], fraction of the gates that are open [batch]).
    """

    def handler(site: Site, value: Any, carry: Any) -> tuple[Any, Any]:
        g_of, penalty, alive = carry
        if site.layer not in layers:
            return value, carry
        if site.kind == "in":
            own = gates[site.layer]
            # s_c = mean |x_c|;  g = relu(s predictor + level)
            g = saliences(value, own["predictor"], own["level"], site.axis)
            return value, ({**g_of, site.layer: g}, penalty, alive)
        g = g_of[site.layer]
        # pi_j = g_j for the k largest g_j, else 0
        pi = winners(g, counts[site.layer])
        # sum_j g_j of the paper's penalty, summed over layers
        penalty = penalty + (g if boosting.over == "gates" else pi).sum(axis=-1)
        alive = alive + (pi > 0).mean(axis=-1) / len(layers)
        # [batch, channels] along the axes of the layer's outputs: gates differ from image to image.
        along = site.along(pi, value.ndim).astype(value.dtype)
        # y = pi (norm(conv x) + shift)
        if boosting.shift_first:
            return along * value, (g_of, penalty, alive)
        paths = layers[site.layer].shifts
        shift = sum((jnp.ravel(leaves[path]) for path in paths), jnp.zeros(()))
        shift = site.along(jnp.broadcast_to(shift, pi.shape[-1:]), value.ndim).astype(value.dtype)
        # y = pi norm(conv x) + 1[pi > 0] shift
        return along * (value - shift) + (along > 0) * shift, (g_of, penalty, alive)

    return handler


def _with_ones(groups: Groups, layers: Mapping[str, Gated], net: Variables) -> Variables:
    """The net whose gated layers have scales of 1, where no gradient gets."""
    ones = {path for layer in layers.values() for path in layer.scales}
    leaves = leaves_by_path(groups, net).items()
    return groups.treedef.unflatten([jnp.ones_like(v) if p in ones else v for p, v in leaves])


def as_winners(
    task: Task,
    groups: Groups,
    layers: Mapping[str, Gated],
    shift_first: bool,
    variables: Variables,
    counts: Mapping[str, int],
) -> Variables:
    """The trained net as variables that any function of the net runs: gated kernels.

    Norms and shifts behind a gated kernel are folded into it, so that the norm is an identity.

    Args:
        task: of the plain net.
        groups: of it.
        layers: that are gated.
        shift_first: see `Boosting`.
        variables: {"net", "gates", ...} of the boosted task.
        counts: {layer: how many outputs win}.
    """
    # The factor and offset behind every layer, and then those without the gated layers' shifts:
    # the quotient is what the kernel takes in.
    net = _with_ones(groups, layers, variables["net"])
    affine, x = affine_of(task.fn, groups), jnp.zeros(task.example.shape, task.example.dtype)
    folded = affine(net, x)
    leaves = leaves_by_path(groups, net)
    bonuses = {}
    for name, layer in layers.items():
        # Shifts are [outputs], [1, 1, 1, outputs] or [outputs, 1, 1], as their library writes them.
        shifts = (jnp.ravel(leaves[path]) for path in layer.shifts)
        shift = sum(shifts, jnp.zeros(layer.outputs))
        # The bonus is added to winners only, behind the gate.
        bonuses[name] = jnp.zeros_like(shift) if shift_first else shift
        for path in (*layer.shifts, *layer.means, *layer.early):
            leaves[path] = jnp.zeros_like(leaves[path])
    rest = affine(groups.treedef.unflatten(list(leaves.values())), x)
    for name, layer in layers.items():
        factor, offset = folded[name]
        for path in layer.scales[:1]:
            leaves[path] = leaves[path] / _along(groups, path, rest[name][0])
        scale_left = rest[name][0] if not layer.scales else jnp.ones(())
        gates = variables["gates"][name]
        leaves[name] = Winners(
            leaves[name] * _along(groups, name, factor / scale_left),
            (offset - bonuses[name]) / scale_left,
            bonuses[name] / scale_left,
            gates["predictor"],
            gates["level"],
            jnp.asarray(counts[name], jnp.int32),
        )
    return groups.treedef.unflatten(list(leaves.values()))

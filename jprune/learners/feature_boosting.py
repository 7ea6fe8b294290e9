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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Groups, PyTree, Task, Variables
from jprune.forms.winners import Winners, saliences, winners
from jprune.graph.look.intercept import Site, intercept
from jprune.learners.input_gates import Gated, along_outputs, as_gated, with_gates, with_ones
from jprune.units import leaves_by_path

STARTS = ("one", "scale")


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
                leaves[path] = leaves[path] * along_outputs(groups, path, sign)
            if boosting.shift_first:
                # pi (x + shift / gamma) = gamma x + shift where pi = gamma
                leaves |= {p: leaves[p] / along_outputs(groups, p, size) for p in layer.shifts}
        leaves |= {path: jnp.ones_like(leaves[path]) for path in layer.scales}
        levels[name] = size
    return groups.treedef.unflatten(list(leaves.values())), levels


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
        net = with_ones(groups, layers, variables["net"])
        winners_now = {name: jnp.asarray(of_phase)[phase] for name, of_phase in counts.items()}
        handler = _gating(
            layers, boosting, winners_now, variables["gates"], leaves_by_path(groups, net)
        )
        run = intercept(task.train_fn, groups, handler, ("in", "norm"))
        nothing = jnp.zeros(len(x))
        (logits, new), (_, penalty, alive) = run(net, ({}, nothing, nothing), x, key)
        return (logits, penalty, alive), (new, {"step": variables["step"] + 1})

    return with_gates(
        task,
        train_fn,
        lambda out, batch: task.loss(out[0], batch) + boosting.lasso * out[1],
        lambda out, batch: {
            **task.metrics(out[0], batch), "lasso": out[1], "gates_open": out[2]
        },
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

    def form(name: str, kernel: Any, offset: Any, bonus: Any) -> Winners:
        gates = variables["gates"][name]
        count = jnp.asarray(counts[name], jnp.int32)
        return Winners(kernel, offset, bonus, gates["predictor"], gates["level"], count)

    net = with_ones(groups, layers, variables["net"])
    return as_gated(task, groups, layers, net, form, shift_first)

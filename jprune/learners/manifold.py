"""Gates that keep the manifold of the images: easy ones pay for channels, like ones share them.

    loss = C + lasso sum_l w_i mean_c pi^l_ic + similarity sum_l |cos(f^l, f^l) - cos(pi^l, pi^l)|^2

pi are saliences that a squeeze branch reads off a layer's input, f the layer's pooled outputs
before the gates, w_i how far the loss C_i of an image lies under that of most images. A channel
whose pi is under the layer's threshold is *frozen* for that image: exactly 0, and the gradient of C
does not come through it; that of the two penalties does.

References:
    Tang, Wang, Xu, Deng, Xu, Tao, Xu, Manifold regularized dynamic network pruning, 2021,
    arXiv 2103.05861 [38].
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Batch, Groups, PyTree, Task, Variables
from jprune.forms.gated import pooled
from jprune.forms.thresholded import Thresholded, passing, squeezed
from jprune.graph.look.intercept import Site, intercept
from jprune.learners.input_gates import Gated, as_gated, with_gates

OPEN = -1e4
"""A threshold that everything reaches."""


@dataclasses.dataclass(frozen=True)
class Manifold:
    """How a net with thresholded gates is trained.

    Attributes:
        lasso: weight of the saliences of easy examples in the loss.
        similarity: weight of the gap between similarities of saliences and of features.
        easy: examples are easy whose loss is under so many times the mean loss; inf: all are, with
            weight 1.
        gamma: power of how easy an example is.
        detach: whether the weight of an example is a constant for the gradient; False: as in the
            authors' code, where it raises the loss of easy examples.
    """

    lasso: float = 5e-3
    similarity: float = 1.0
    easy: float = 0.5
    gamma: float = 1.0
    detach: bool = True

    def __post_init__(self):
        errors.check_numbers(
            "manidp",
            ("lasso", self.lasso, self.lasso >= 0, "0 or more"),
            ("similarity", self.similarity, self.similarity >= 0, "0 or more"),
            ("easy", self.easy, self.easy > 0, "above 0"),
            ("gamma", self.gamma, self.gamma > 0, "above 0"),
        )


def complexity_weights(
    losses: jax.Array, level: Any, easy: float = 0.5, gamma: float = 1.0
) -> jax.Array:
    """How easy examples are: 1 where the loss is 0, 0 from `easy` times the mean loss on.

    Args:
        losses: of the examples.
        level: mean loss that they are compared with.
        easy: see `Manifold`.
        gamma: likewise.

    Example:
        >>> complexity_weights(jnp.array([0.25, 0.5, 2.0]), 1.0, easy=1.0).tolist()
        [0.75, 0.5, 0.0]
    """
    # Cth = easy mean(CE)
    top = easy * jnp.asarray(level, losses.dtype)
    under = losses < top
    # w_i = 1[CE_i < Cth] ((Cth - CE_i) / Cth)^gamma;  1 - CE / Cth, so that Cth may be inf
    share = 1 - jnp.where(under, losses, 0) / jnp.where(top > 0, top, 1)
    return jnp.where(under, share**gamma, 0)


def similarity_gap(pi: jax.Array, features: jax.Array) -> jax.Array:
    """Mean square of the difference between cosines of saliences and of features, of all pairs.

    Args:
        pi: [batch, channels].
        features: [batch, anything].

    Example:
        >>> one = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> [round(float(similarity_gap(one, x)), 4) for x in (one, jnp.ones((2, 3)))]
        [0.0, 0.5]
    """

    def cosines(rows: jax.Array) -> jax.Array:
        # A row of zeros is like none, itself included, and has no gradient.
        size = (rows**2).sum(axis=-1, keepdims=True)
        there = size > 1e-12
        unit = jnp.where(there, rows / jnp.sqrt(jnp.where(there, size, 1)), 0)
        return jnp.matmul(unit, unit.T, precision="highest")

    # L_sim = ||R - S||_F^2 / N^2,  S_ij = cos(pi_i, pi_j), R_ij = cos(f_i, f_j)
    return ((cosines(features) - cosines(pi)) ** 2).mean()


def remaining(number: int, rounds: int, target: float) -> float:
    """The share of channels above the threshold after the `number`-th of so many rounds, from 0 on.

    Example:
        >>> [round(remaining(n, 4, 0.5), 3) for n in range(4)]
        [0.927, 0.75, 0.573, 0.5]
    """
    # rate_e = (1 - r)/2 cos(pi (e + 1)/E) + (1 + r)/2
    return float((1 - target) / 2 * np.cos(np.pi * (number + 1) / rounds) + (1 + target) / 2)


def hidden_of(layer: Gated) -> int:
    """Width of the squeeze branch: half of the outputs, all of them where they are few.

    Example:
        >>> hidden_of(Gated(3, 16, (), (), ())), hidden_of(Gated(3, 80, (), (), ()))
        (16, 40)
    """
    return layer.outputs if layer.outputs < 80 else layer.outputs // 2


def init_branches(key: jax.Array, layers: Mapping[str, Gated]) -> PyTree:
    """{layer: {"squeeze": [inputs, hidden], "excite": [hidden, outputs], "level": [outputs]}}.

    Levels are 1, and the rest is uniform in +-1 / sqrt(inputs).
    """

    def draw(key: jax.Array, inputs: int, outputs: int) -> jax.Array:
        most = inputs**-0.5
        return jax.random.uniform(key, (inputs, outputs), minval=-most, maxval=most)

    branches = {}
    for number, (name, layer) in enumerate(layers.items()):
        one, two = jax.random.split(jax.random.fold_in(key, number))
        branches[name] = {
            "squeeze": draw(one, layer.inputs, hidden_of(layer)),
            "excite": draw(two, hidden_of(layer), layer.outputs),
            "level": jnp.ones(layer.outputs),
        }
    return branches


def first_thresholds(layers: Mapping[str, Gated]) -> PyTree:
    """What changes from step to step, and is no weight; nothing is under a threshold yet."""
    return {
        "step": jnp.zeros((), jnp.int32),
        "thresholds": {name: jnp.float32(OPEN) for name in layers},
        "sums": {name: jnp.zeros(layer.outputs) for name, layer in layers.items()},
        "losses": jnp.float32(0),
        "level": jnp.float32(0),
    }


def manifold_task(
    task: Task, groups: Groups, layers: Mapping[str, Gated], manifold: Manifold
) -> Task:
    """The task for variables {"net", "gates"} and those of `first_thresholds`.

    Its outputs are (logits, {"saliences", "similarity", "open"} [batch] each, the mean loss that
    losses are compared with).

    Args:
        task: of the plain net.
        groups: of it.
        layers: from `boostable_layers`.
        manifold: the settings.
    """
    # The nonlinearity of a sum is named after one of its activations, and is not the layer's own.
    of = lambda kind: {site.layer for site in groups.sites if site.kind == kind}
    acting = of("act") - of("join")

    def train_fn(variables: Variables, x: jax.Array, key: jax.Array) -> Any:
        handler = _gating(layers, acting, variables["gates"], variables["thresholds"])
        run = intercept(task.train_fn, groups, handler, ("in", "norm"))
        nothing = dict.fromkeys(("saliences", "similarity", "open"), jnp.zeros(len(x)))
        (logits, new), (saliences, terms) = run(variables["net"], ({}, nothing), x, key)
        # pbar_l, summed over the steps of a round
        sums = {n: variables["sums"][n] + saliences[n].mean(axis=0) for n in layers}
        others = {"step": variables["step"] + 1, "sums": sums}
        return (logits, terms, variables["level"]), (new, others)

    def weighted(out: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        losses = task.loss(out[0], batch)
        compared = jax.lax.stop_gradient(losses) if manifold.detach else losses
        w = complexity_weights(compared, out[2], manifold.easy, manifold.gamma)
        # sum_l w_i mean_c pi^l_ic
        return losses, w * out[1]["saliences"]

    def loss(out: Any, batch: Batch) -> jax.Array:
        losses, complexity = weighted(out, batch)
        # CE_i + lambda' w_i sum_l mean_c pi + lambda_g L_sim
        gap = manifold.similarity * out[1]["similarity"]
        return losses + manifold.lasso * complexity + gap

    def metrics(out: Any, batch: Batch) -> dict[str, jax.Array]:
        losses, complexity = weighted(out, batch)
        own = {"task_loss": losses, "complexity": complexity}
        told = {"similarity": out[1]["similarity"], "gates_open": out[1]["open"]}
        return {**task.metrics(out[0], batch), **own, **told}

    return with_gates(task, train_fn, loss, metrics)


def _gating(
    layers: Mapping[str, Gated], acting: set[str], branches: PyTree, thresholds: PyTree
) -> Callable[[Site, Any, Any], tuple[Any, Any]]:
    """The handler that gates the layers at "norm" by what they read at "in".

    It carries ({layer: pi}, {term: [batch]}).
    """

    def handler(site: Site, value: Any, carry: Any) -> tuple[Any, Any]:
        saliences, terms = carry
        if site.layer not in layers:
            return value, carry
        if site.kind == "in":
            branch = branches[site.layer]
            squeeze, excite, level = (branch[part] for part in ("squeeze", "excite", "level"))
            salience = squeezed(value, squeeze, excite, level, site.axis)
            return value, ({**saliences, site.layer: salience}, terms)
        pi = saliences[site.layer]
        # m = pi 1[pi >= xi_l]
        gates = passing(pi, thresholds[site.layer])
        # f: pooled outputs just before the gates, behind ReLU where the layer has a nonlinearity
        features = pooled(jax.nn.relu(value) if site.layer in acting else value, site.axis)
        new = {
            "saliences": pi.mean(axis=-1),
            "similarity": similarity_gap(pi, features.astype(pi.dtype)),
            "open": (gates > 0).mean(axis=-1) / len(layers),
        }
        # relu(norm(conv x)) m = relu(m norm(conv x)), since m is 0 or more
        along = site.along(gates, value.ndim).astype(value.dtype)
        return along * value, (saliences, {name: terms[name] + new[name] for name in terms})

    return handler


def refreshed(
    rest: PyTree, loss: jax.Array, counts: Mapping[str, np.ndarray], period: int
) -> PyTree:
    """What is no weight, after a step: at the end of a round, new thresholds and a new mean loss.

    Args:
        rest: with the parts of `first_thresholds`, after the step.
        loss: mean loss of the step's examples.
        counts: {layer: int [rounds], how many mean saliences reach the threshold after each}.
        period: steps in a round.
    """
    step, rounds = rest["step"], len(next(iter(counts.values())))
    number, ends, losses = step // period - 1, step % period == 0, rest["losses"] + loss
    # The first round ends without thresholds, unless it is the only one.
    cuts = ends & ((number >= 1) | (rounds == 1)) & (number < rounds)
    thresholds = {}
    for name, of_round in counts.items():
        falling = -jnp.sort(-rest["sums"][name] / period)
        # xi_l = the ceil(rate_e C)-th largest entry of pbar_l
        threshold = falling[jnp.asarray(of_round)[jnp.clip(number, 0, rounds - 1)] - 1]
        thresholds[name] = jnp.where(cuts, threshold, rest["thresholds"][name])
    # The mean loss of the round before; in the first round, of the steps so far.
    first = losses / jnp.minimum(step, period)
    level = jnp.where(step <= period, first, jnp.where(ends, losses / period, rest["level"]))
    return {
        **rest,
        "thresholds": thresholds,
        "sums": jax.tree.map(lambda sums: jnp.where(ends, 0, sums), rest["sums"]),
        "losses": jnp.where(ends, 0, losses),
        "level": level,
    }


def as_thresholded(
    task: Task, groups: Groups, layers: Mapping[str, Gated], variables: Variables, factor: Any = 1.0
) -> Variables:
    """The trained net as variables that any function of the net runs: gated kernels.

    Args:
        task: of the plain net.
        groups: of it.
        layers: that are gated.
        variables: of the task of `manifold_task`.
        factor: that thresholds are multiplied by.
    """

    def form(name: str, kernel: Any, offset: Any, bonus: Any) -> Thresholded:
        branch, threshold = variables["gates"][name], variables["thresholds"][name]
        # Below OPEN nothing is closed, whatever the factor is; saliences of 0 are closed anyway.
        level = jnp.where(threshold <= OPEN, threshold, factor * jnp.maximum(threshold, 1e-6))
        squeeze, excite, shift = (branch[part] for part in ("squeeze", "excite", "level"))
        return Thresholded(kernel, offset, bonus, squeeze, excite, shift, level)

    return as_gated(task, groups, layers, variables["net"], form)

"""What the fidelity claim compares: damages that criteria predict, and increases of the loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import criteria, curvature, run_criterion, to_units
from jprune.base import Batch, Criterion, Groups, Task, Variables
from jprune.criteria.kronecker import unit_scores
from jprune.curvature import Factors, kfac, layers_of, mean_loss
from jprune.graph import gated
from jprune.units import leaves_by_path

Damages = Mapping[str, Any]
"""{group: [units], or [units, units] whose sum over all pairs of a set is the set's}."""


class Dense(NamedTuple):
    """A trained net and the images that the loss is measured on."""

    task: Task
    groups: Groups
    variables: Variables
    batches: Sequence[Batch]
    key: jax.Array


def _pooled(criterion: Criterion, net: Dense, within: str = "sum") -> Damages:
    scores = run_criterion(criterion, net.variables, net.batches)
    return to_units(net.groups, scores, within=within)


def _obd(net: Dense) -> Damages:
    estimator = curvature.gauss_newton(probes=16)
    return _pooled(criteria.obd(net.task.fn, net.task.loss, estimator, net.key), net)


def _taylor(net: Dense) -> Damages:
    task = net.task
    criterion = criteria.taylor(task.fn, task.loss, net.groups, form="gate", at="in")
    return run_criterion(criterion, net.variables, net.batches)


def _factors(net: Dense, inputs: str) -> Mapping[str, Factors]:
    task, shapes = net.task, jax.eval_shape(lambda: net.variables)
    layers = layers_of(task.fn, net.groups, shapes, task.example)
    criterion = kfac(task.fn, task.loss, net.groups, layers, key=net.key, inputs=inputs)
    return run_criterion(criterion, net.variables, net.batches)


def _c_obs(net: Dense) -> Damages:
    factors = _factors(net, "patches")
    return unit_scores(net.groups, net.variables, factors, "c_obs")


def _eigendamage(net: Dense) -> Damages:
    """Half of tr(S D A D^T) of the change D that removes units, pair by pair: F is S (x) A."""
    leaves, damages = leaves_by_path(net.groups, net.variables), {}
    for path, factors in _factors(net, "channels").items():
        a, s = (np.asarray(factor, float) for factor in factors)
        kernel = np.asarray(leaves[path], float).reshape(-1, len(a), len(s))
        # s_ij sum_w d_wi^T A d_wj / 2, d being the columns of the kernel.
        pairs = s * np.einsum("wai,ab,wbj->ij", kernel, a, kernel) / 2
        for name, places in net.groups.places.items():
            for place in places:
                made = place.leaf == path and place.axis == leaves[path].ndim - 1
                if made and "kernel" in place.roles:
                    size = net.groups.sizes[name]
                    units = np.ix_(place.units, place.units)
                    damages.setdefault(name, np.zeros((size, size)))[units] += pairs
    return damages


def _random(net: Dense) -> Damages:
    keys = jax.random.split(net.key, len(net.groups.sizes))
    return {
        name: jax.random.uniform(k, (n,)) for k, (name, n) in zip(keys, net.groups.sizes.items())
    }


CRITERIA: dict[str, Callable[[Dense], Damages]] = {
    "OBD": _obd,
    "EigenDamage": _eigendamage,
    "C-OBS": _c_obs,
    "Taylor": _taylor,
    "magnitude": lambda net: _pooled(criteria.magnitude(), net),
    "magnitude, mean": lambda net: _pooled(criteria.magnitude(), net, "mean"),
    "random": _random,
}
"""Higher for filters whose loss hurts more."""
CURVED = ("OBD", "EigenDamage", "C-OBS")


def increases(net: Dense, without: np.ndarray) -> np.ndarray:
    """Increase of the loss without some filters.

    Args:
        net: the dense one.
        without: [sets, filters] bool, the filters of all groups side by side.

    Returns:
        [sets].
    """
    run = gated(net.task.fn, net.groups, at="in")
    ends = np.cumsum(list(net.groups.sizes.values()))[:-1].tolist()

    @jax.jit
    def loss(gone: jax.Array, batch: Batch) -> jax.Array:
        parts = jnp.split(1.0 - gone.astype(jnp.float32), ends)
        gates = dict(zip(net.groups.names, parts))
        fn = lambda variables, x: run(variables, gates, x)
        return mean_loss(fn, net.task.loss, net.variables, batch)

    # A call each: in a loop of XLA, convolutions are slow on a CPU.
    of = lambda gone: np.mean([float(loss(jnp.asarray(gone), batch)) for batch in net.batches])
    whole = of(np.zeros(without.shape[1], bool))
    return np.array([of(gone) for gone in without]) - whole


def predicted(net: Dense, damages: Damages, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a criterion predicts for every filter, [filters], and for [sets, filters]."""
    units = [np.asarray(damages[group], float) for group in net.groups.names]
    blocks = [np.diag(each) if each.ndim == 1 else each for each in units]
    scores = np.concatenate([np.diag(block) for block in blocks])
    ends = np.cumsum([len(block) for block in blocks])[:-1]
    # A set's damage: the sum of its block over all pairs of its units.
    parts = zip(np.split(sets.astype(float), ends, axis=1), blocks)
    sums = [np.einsum("su,uv,sv->s", gone, block, gone) for gone, block in parts]
    return scores, np.sum(sums, axis=0)

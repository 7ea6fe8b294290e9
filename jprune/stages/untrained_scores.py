"""Criteria for nets that are not trained yet, as stages take them: made for a task's net."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Criterion, Groups, Task
from jprune.criteria.gradient_flow import gradient_flow
from jprune.criteria.sensitivity import sensitivity
from jprune.criteria.synaptic_flow import synaptic_flow
from jprune.train.net import Net

NORMS = ("inference", "batch")


@dataclasses.dataclass(frozen=True)
class BySensitivity:
    """The share of a connection in how the loss reacts to switches on all of them.

    Attributes:
        norms: "inference": with the running statistics, as they were drawn; or "batch": with those
            of the batch, in training mode.

    References:
        Lee, Ajanthan, Torr, SNIP: single-shot network pruning based on connection sensitivity,
        2019, arXiv 1810.02340.
    """

    norms: str = "inference"

    def __post_init__(self):
        _check_norms(self.norms)

    def __call__(self, task: Task, groups: Groups, key: jax.Array) -> Criterion:
        """The criterion."""
        del groups
        if self.norms == "inference":
            return Net(task).once(_sensitivity, task.loss)
        return sensitivity(in_training(task, key), task.loss, has_aux=True)


@dataclasses.dataclass(frozen=True)
class ByGradientFlow:
    """What a weight adds to the squared norm of the gradient.

    Attributes:
        temperature: that outputs are divided by.
        parts: that a batch is run in.
        redraw_dense: whether dense layers (kernels without a window) are scored with weights drawn
            anew, sqrt(2 / (fan in + fan out)) times a normal number; the net keeps its own.
        norms: "inference" or "batch".

    References:
        Wang, Zhang, Grosse, Picking winning tickets before training by preserving gradient flow,
        2020, arXiv 2002.07376.
    """

    temperature: float = 200.0
    parts: int = 2
    redraw_dense: bool = True
    norms: str = "batch"

    def __post_init__(self):
        _check_norms(self.norms)
        # Raises what it has to say before anything is trained.
        gradient_flow(lambda variables, x: x, lambda out, batch: out, self.temperature, self.parts)

    def __call__(self, task: Task, groups: Groups, key: jax.Array) -> Criterion:
        """The criterion."""
        modes, draws = jax.random.split(key)
        training = self.norms == "batch"
        fn = in_training(task, modes) if training else task.fn
        criterion = gradient_flow(fn, task.loss, self.temperature, self.parts, has_aux=training)
        if not self.redraw_dense:
            return criterion
        swap = lambda variables: _dense_redrawn(Net(task), variables, draws)
        return criterion._replace(
            update=lambda state, variables, batch: criterion.update(state, swap(variables), batch)
        )


@dataclasses.dataclass(frozen=True)
class BySynapticFlow:
    """What a weight carries of a signal of ones through the absolute weights.

    References:
        Tanaka, Kunin, Yamins, Ganguli, Pruning neural networks without any data by iteratively
        conserving synaptic flow, 2020, arXiv 2006.05467.
    """

    def __call__(self, task: Task, groups: Groups, key: jax.Array) -> Criterion:
        """The criterion."""
        del groups, key
        return Net(task).once(_synaptic_flow)


def _synaptic_flow(net: Net) -> Criterion:
    return synaptic_flow(net.task.fn, net.task.example)


def _dense_redrawn(net: Net, variables: Any, key: jax.Array) -> Any:
    """The variables with other dense kernels; what is masked in one stays 0."""
    leaves = net.leaves(variables)
    for number, (path, layer) in enumerate(net.groups.layers.items()):
        if layer.window or layer.parts:
            continue
        # Drawn as [inputs, outputs] in the order of execution: the same in every layout.
        old = np.asarray(leaves[path])
        seed = np.asarray(jax.random.key_data(jax.random.fold_in(key, number)))
        normal = np.random.default_rng(seed).normal(size=layer.matrix(old).shape)
        drawn = layer.array(normal) * (2 / (layer.fan_in + layer.fan_out)) ** 0.5
        alive = (old != 0) | (not old.any())
        leaves[path] = jnp.asarray(drawn * alive, leaves[path].dtype)
    return net.tree(leaves)


def _check_norms(norms: str) -> None:
    """Refuses what is no mode of a norm."""
    if norms not in NORMS:
        raise errors.ArgumentError(
            f"norms={norms!r}; {errors.nearest(norms, NORMS)}write one of {', '.join(NORMS)}."
        )


def in_training(task: Task, key: jax.Array) -> Callable[[Any, Any], Any]:
    """`(variables, x) -> (outputs, statistics)`: the net in training mode, its draws by the key."""
    return lambda variables, x: task.train_fn(variables, x, key)


def _sensitivity(net: Net, loss: Any) -> Criterion:
    return sensitivity(net.task.fn, loss)

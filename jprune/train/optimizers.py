"""Optimizers of plain training: settings that make an optax chain."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jprune.base import (
    Masks,
    Params,
    PyTree,
    Schedule,
)
from jprune.sparsify import hold
from jprune.train.rates import LEARNING_RATES


class Sgd(NamedTuple):
    """Stochastic gradient descent with Nesterov momentum and weight decay on kernels.

    References:
        Sutskever, Martens, Dahl, Hinton, On the importance of initialization and momentum in deep
        learning, 2013.
    """

    learning_rate: float
    """The largest one of the schedule."""
    schedule: str
    """A name of `LEARNING_RATES`."""
    steps: int
    momentum: float
    weight_decay: float
    """Times the weight, added to the gradient; of kernels only, not of biases and norms."""
    begin: int = 0
    """The step of the schedule at which this training begins."""
    stop: int | None = None
    """The step of the schedule at which it stops; None: at its end."""
    sparsify: Callable[[Schedule], optax.GradientTransformation] | None = None
    """Learning rate at a step -> a transformation behind the step: it may move updates so that
    weights become exactly 0. Its update is given the step's `batch`."""

    @property
    def taken(self) -> int:
        """Steps that this training takes."""
        return (self.steps if self.stop is None else self.stop) - self.begin

    def transformation(self, masks: Masks | None) -> optax.GradientTransformationExtraArgs:
        """The optax chain; with masks, it ends in `hold`."""
        whole = LEARNING_RATES[self.schedule](self.learning_rate, self.steps)
        rate = lambda step: whole(step + self.begin)
        chain = [
            optax.add_decayed_weights(self.weight_decay, mask=_kernels),
            optax.trace(self.momentum, nesterov=True),
            optax.scale_by_learning_rate(rate),
            *([] if self.sparsify is None else [self.sparsify(rate)]),
            *([] if masks is None else [hold(masks)]),
        ]
        return optax.chain(*chain)


def _kernels(params: Params) -> PyTree:
    """Which leaves are kernels: all with two axes or more."""
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


class Optimizer(Protocol):
    """What plain training needs of an optimizer: `Sgd`, or a wrapper of one. It can be hashed."""

    @property
    def begin(self) -> int:
        """The step of the schedule at which this training begins."""
        ...

    @property
    def taken(self) -> int:
        """Steps that this training takes."""
        ...

    def transformation(self, masks: Masks | None) -> optax.GradientTransformationExtraArgs:
        """The optax chain; what it depends on beyond equal settings is in its state."""
        ...

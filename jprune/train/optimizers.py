"""Optimizers of plain training, hashable settings that make an optax chain; learning rates."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from jprune.base import (
    Masks,
    PyTree,
    Schedule,
)
from jprune.sparsify import hold


class Sgd(NamedTuple):
    """Stochastic gradient descent with Nesterov momentum and weight decay on kernels.

    Attributes:
        learning_rate: the largest one of the schedule.
        schedule: a name of `LEARNING_RATES`.
        steps: of the whole schedule.
        momentum: in [0, 1).
        weight_decay: times the weight, added to the gradient; of kernels only, not of biases and
            norms.
        begin: the step of the schedule at which this training begins.
        stop: the step of the schedule at which it stops; None: at its end.

    References:
        Sutskever, Martens, Dahl, Hinton, On the importance of initialization and momentum in deep
        learning, 2013.
    """

    learning_rate: float
    schedule: str
    steps: int
    momentum: float
    weight_decay: float
    begin: int = 0
    stop: int | None = None

    @property
    def taken(self) -> int:
        """Steps that this training takes."""
        return (self.steps if self.stop is None else self.stop) - self.begin

    @property
    def rate(self) -> Schedule:
        """Learning rate at a step of this training."""
        whole = LEARNING_RATES[self.schedule](self.learning_rate, self.steps)
        # A part of a schedule goes on where the part before it stopped.
        return lambda step: whole(step + self.begin)

    def transformation(
        self, decayed: PyTree, masks: Masks | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The optax chain; with masks, it ends in `hold`.

        Args:
            decayed: a tree of bools like the parameters, True where weights decay. One bool may
                stand for a whole branch of the tree.
            masks: a tree like the parameters, None leaves are not prunable; or None.
        """
        # With the gradient g, weight decay eta, momentum m and learning rate tau:
        return _held(
            optax.add_decayed_weights(self.weight_decay, mask=decayed),  # g <- g + eta w
            optax.trace(self.momentum, nesterov=True),  # v <- m v + g;  g <- m v + g
            optax.scale_by_learning_rate(self.rate),  # w <- w - tau g
            masks=masks,
        )


class Adam(NamedTuple):
    """AMSGrad at a constant learning rate; weight decay is part of the loss.

    Attributes:
        learning_rate: the same in all steps.
        steps: of this training.
        weight_decay: times the weight, added to the gradient; of kernels only.

    References:
        Reddi, Kale, Kumar, On the convergence of Adam and beyond, 2018, arXiv 1904.09237.
    """

    learning_rate: float
    steps: int
    weight_decay: float

    @property
    def begin(self) -> int:
        """The step of the schedule at which this training begins: the first one."""
        return 0

    @property
    def taken(self) -> int:
        """Steps that this training takes."""
        return self.steps

    @property
    def rate(self) -> Schedule:
        """Learning rate at a step."""
        return constant(self.learning_rate, self.steps)

    def transformation(
        self, decayed: PyTree, masks: Masks | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The optax chain; as `Sgd.transformation`."""
        return _held(
            optax.add_decayed_weights(self.weight_decay, mask=decayed),  # g <- g + eta w
            # m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  g <- m / sqrt(max over steps of v)
            optax.scale_by_amsgrad(),
            optax.scale_by_learning_rate(self.learning_rate),  # w <- w - tau g
            masks=masks,
        )


Optimizer = Sgd | Adam
"""What plain training takes. Another one needs the same members: `begin`, `taken`, `rate` and
`transformation`; training steps of equal optimizers share one compilation."""


def _held(
    *links: optax.GradientTransformation, masks: Masks | None
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(*links, *([] if masks is None else [hold(masks)]))


def one_cycle(peak: float, steps: int) -> Schedule:
    """Up in a line over the first 30 % of the steps, down in a line to nothing.

    References:
        Smith, Topin, Super-convergence, 2018, arXiv 1708.07120 (without its last phase).

    Example:
        >>> [round(float(one_cycle(1.0, 10)(step)), 2) for step in (0, 2, 9)]
        [0.33, 1.0, 0.12]
    """
    warm = max(1, round(0.3 * steps))
    # peak min((t + 1) / warm, (T - t) / (T - warm + 1)): the two lines meet at the peak
    return lambda step: peak * jnp.minimum((step + 1) / warm, (steps - step) / (steps - warm + 1))


def cosine(peak: float, steps: int) -> Schedule:
    """From the peak down to nothing along half a cosine.

    References:
        Loshchilov, Hutter, SGDR, 2017, arXiv 1608.03983 (without restarts).

    Example:
        >>> [round(float(cosine(1.0, 10)(step)), 2) for step in (0, 5, 10)]
        [1.0, 0.5, 0.0]
    """
    # peak (1 + cos(pi t / T)) / 2
    return lambda step: peak * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))


def constant(peak: float, steps: int) -> Schedule:
    """The same all the time.

    Example:
        >>> float(constant(0.5, 10)(3))
        0.5
    """
    del steps
    return lambda step: jnp.full(jnp.shape(step), peak)


def tenths(peak: float, steps: int) -> Schedule:
    """A tenth after a half of the steps, and again after three quarters, each rounded down.

    References:
        He, Zhang, Ren, Sun, Deep residual learning, 2016, arXiv 1512.03385, for CIFAR-10.

    Example:
        >>> [round(float(tenths(1.0, 243)(number)), 2) for number in (120, 121, 181, 182)]
        [1.0, 0.1, 0.1, 0.01]
    """
    # Factors, which multiply: 0.1, then 0.01.
    falls = {steps // 2: 0.1, 3 * steps // 4: 0.1}
    return optax.piecewise_constant_schedule(peak, falls)


LEARNING_RATES: dict[str, Callable[[float, int], Schedule]] = {
    "one_cycle": one_cycle,
    "cosine": cosine,
    "constant": constant,
    "step": tenths,
}

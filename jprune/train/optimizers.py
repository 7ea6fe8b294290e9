"""Optimizers of plain training: hashable settings that make an optax chain."""

from typing import NamedTuple

import optax

from jprune.base import Masks, PyTree, Schedule
from jprune.sparsify import hold
from jprune.train.rates import LEARNING_RATES, constant


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

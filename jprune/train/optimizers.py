"""Optimizers of plain training, hashable settings that make an optax chain; learning rates.

Masked weights are no part of the net: where a step depends on several weights (a norm of the
gradient, a trust ratio, whatever the user's own transformation does), their gradients are 0 before
it looks at them. So the masked net takes the steps of the small one.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune import errors, targets
from jprune.base import (
    Masks,
    Params,
    PyTree,
    Schedule,
    is_none,
)
from jprune.graph.shrink.concrete import at_once
from jprune.masks import hold, masks_of


class Around(NamedTuple):
    """What is done around the steps of any optimizer.

    Attributes:
        warmup: steps in which the learning rate rises in a line to the schedule's first one.
        clip: the largest norm of the whole gradient; longer ones are shortened to it. None: none.
        parts: the batch of a step goes through the net in so many parts of equal size, whose
            gradients are added up: the step of the whole batch, in the memory of one part. Norms of
            batches see the parts one by one.
        average: decay of the running average of the net that training hands on; None: the net
            after the last step. See `jprune.train.step.averaged`.
    """

    warmup: int = 0
    clip: float | None = None
    parts: int = 1
    average: float | None = None


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
        around: what is done around the steps.
        nesterov: whether the momentum is Nesterov's.

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
    around: Around = Around()
    nesterov: bool = True

    @property
    def taken(self) -> int:
        """Steps that this training takes."""
        return (self.steps if self.stop is None else self.stop) - self.begin

    @property
    def rate(self) -> Schedule:
        """Learning rate at a step of this training."""
        return _rate(self)

    @property
    def stride(self) -> Schedule:
        """How far a step moves a weight whose gradient stays 1, once momentum has gathered.

        A penalty beside the step (a proximal one, a decoupled one) takes its strength times this,
        so that weights come to rest at a minimum of loss + penalty.
        """
        # v = 1 + m + m^2 + ... = 1 / (1 - m): of both kinds of momentum
        return lambda step: self.rate(step) / (1 - self.momentum)

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
        inner = _held(
            optax.add_decayed_weights(self.weight_decay, mask=decayed),  # g <- g + eta w
            optax.trace(self.momentum, nesterov=self.nesterov),  # v <- m v + g;  g <- m v + g
            optax.scale_by_learning_rate(self.rate),  # w <- w - tau g
            masks=masks,
        )
        # Each weight moves by itself: nothing of a masked one can reach another.
        alone = self.around.clip is None
        return inner if alone else _of_the_net(inner, self.around.clip, masks is not None)


class Chosen(NamedTuple):
    """An optimizer by name, or of the user's own.

    Attributes:
        name: of `SETTINGS`, a function `make(learning_rate=schedule, **settings)` that returns an
            optax transformation, or such a function as `module:callable`.
        learning_rate: the largest one of the schedule.
        schedule: a name of `LEARNING_RATES`.
        steps: of the whole schedule.
        weight_decay: of kernels only: added to the gradient (adam), or beside the step, times the
            learning rate (adamw, lion, lamb). Of no effect in functions of the user's own.
        settings: (name, value) pairs: of `SETTINGS`, or what the user's function takes.
        begin: the step of the schedule at which this training begins.
        stop: the step of the schedule at which it stops; None: at its end.
        around: what is done around the steps.

    References:
        adam: Kingma, Ba, Adam: a method for stochastic optimization, 2015, arXiv 1412.6980. adamw:
        Loshchilov, Hutter, Decoupled weight decay regularization, 2019, arXiv 1711.05101. lion:
        Chen, Liang, Huang et al., Symbolic discovery of optimization algorithms, 2023, arXiv
        2302.06675. lamb: You, Li, Reddi et al., Large batch optimization for deep learning, 2020,
        arXiv 1904.00962.
    """

    name: str | Callable[..., Any]
    learning_rate: float
    schedule: str
    steps: int
    weight_decay: float
    settings: tuple[tuple[str, Any], ...] = ()
    begin: int = 0
    stop: int | None = None
    around: Around = Around()

    @property
    def taken(self) -> int:
        """Steps that this training takes."""
        return (self.steps if self.stop is None else self.stop) - self.begin

    @property
    def rate(self) -> Schedule:
        """Learning rate at a step of this training."""
        return _rate(self)

    @property
    def stride(self) -> Schedule:
        """How far a step moves a weight whose gradient stays 1: the learning rate.

        Gradients of any other size move it as far: a penalty beside the step is decoupled, and its
        weights come to rest elsewhere than at a minimum of loss + penalty.
        """
        return self.rate

    def transformation(
        self, decayed: PyTree, masks: Masks | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The optax chain; as `Sgd.transformation`."""
        inner = _held(*self._links(decayed), masks=masks)
        # lion and adam move each weight by itself; a trust ratio, and what users write, may not.
        alone = self.around.clip is None and self.name in ("adam", "adamw", "lion")
        return inner if alone else _of_the_net(inner, self.around.clip, masks is not None)

    def _links(self, decayed: PyTree) -> tuple[optax.GradientTransformation, ...]:
        """The chain without `hold`."""
        own, chosen = None if self.name in SETTINGS else function_of(self.name), dict(self.settings)
        if own is not None:
            return (transformation_of(own, self.name, self.rate, chosen),)
        given = {**SETTINGS[str(self.name)], **chosen}
        decay = optax.add_decayed_weights(self.weight_decay, mask=decayed)
        step = optax.scale_by_learning_rate(self.rate)  # w <- w - tau u
        if self.name == "lion":
            # u <- sign(b1 m + (1 - b1) g);  m <- b2 m + (1 - b2) g;  u <- u + eta w
            return optax.scale_by_lion(**given), decay, step
        # m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  u <- m / (sqrt(v) + eps), both means
        # divided by what they are short of at the beginning
        adam = optax.scale_by_adam(**given)
        if self.name == "adam":
            return decay, adam, step  # g <- g + eta w
        if self.name == "adamw":
            return adam, decay, step  # u <- u + eta w
        # u <- (u + eta w) |w| / |u + eta w|, for every leaf
        return adam, decay, optax.scale_by_trust_ratio(), step


SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "lion": {"b1": 0.9, "b2": 0.99},
    "lamb": {"b1": 0.9, "b2": 0.999, "eps": 1e-6},
}
"""{name of an optimizer: its settings and what they are where none is written}."""


def function_of(name: str | Callable[..., Any]) -> Callable[..., Any]:
    """The user's own function behind the name of an optimizer.

    Raises:
        ArgumentError: neither a name of `SETTINGS` nor a function that is there.
    """
    if callable(name):
        return name
    if ":" not in name:
        raise errors.ArgumentError(
            f"there is no optimizer {name!r}; {errors.nearest(name, SETTINGS)}Write one of "
            f"{', '.join(SETTINGS)}, or module:callable of a function that returns an optax "
            "transformation."
        )
    return targets.find(name, "an optax.GradientTransformation")


def transformation_of(
    function: Callable[..., Any],
    name: str | Callable[..., Any],
    rate: Schedule,
    settings: Mapping[str, Any],
) -> optax.GradientTransformation:
    """What the user's own function returns, called with the learning rate and settings.

    Raises:
        ArgumentError: it fails, or returns something else.
    """
    said = f"the optimizer {name if isinstance(name, str) else getattr(name, '__name__', name)}"
    help_ = "It is called as make(learning_rate=schedule, **settings)."
    made = targets.attempt(said, help_, function, learning_rate=rate, **settings)
    if not isinstance(made, optax.GradientTransformation | optax.GradientTransformationExtraArgs):
        raise errors.ArgumentError(
            f"{said} returned a {type(made).__name__}; expected an optax.GradientTransformation, "
            f"such as optax.adam(learning_rate). {help_}"
        )
    return made


def _of_the_net(
    inner: optax.GradientTransformationExtraArgs, clip: float | None, masked: bool
) -> optax.GradientTransformationExtraArgs:
    """The optimizer behind gradients of the net that is there: masked ones are 0, long ones short.

    Its state is that of the optimizer, which holds the masks.
    """
    shorter = None if clip is None else optax.clip_by_global_norm(clip)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if masked:
            zeroed = lambda mask, g: g if mask is None else jnp.where(mask, g, 0)
            updates = jax.tree.map(zeroed, masks_of(state), updates, is_leaf=is_none)
        if shorter is not None:
            # g <- g min(1, c / |g|)
            updates, _ = shorter.update(updates, optax.EmptyState())
        return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


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
    def around(self) -> Around:
        """What is done around the steps: nothing."""
        return Around()

    @property
    def taken(self) -> int:
        """Steps that this training takes."""
        return self.steps

    @property
    def rate(self) -> Schedule:
        """Learning rate at a step."""
        return constant(self.learning_rate, self.steps)

    @property
    def stride(self) -> Schedule:
        """As `Chosen.stride`."""
        return self.rate

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


Optimizer = Sgd | Adam | Chosen
"""What plain training takes. Another one needs the same members: `begin`, `taken`, `rate`,
`stride`, `around` and `transformation`; steps of equal optimizers share one compilation."""


def _rate(optimizer: Sgd | Chosen) -> Schedule:
    """Learning rate at a step of a training, which may be a part of a schedule."""
    warm, peak = optimizer.around.warmup, optimizer.learning_rate
    whole = LEARNING_RATES[optimizer.schedule](peak, optimizer.steps - warm)
    if not warm:
        # A part of a schedule goes on where the part before it stopped.
        return lambda step: whole(step + optimizer.begin)

    def rate(step: Any) -> Any:
        place = step + optimizer.begin
        # tau (t + 1) / (W + 1) for t < W: the schedule's own first rate is the next one
        rising = peak * (place + 1) / (warm + 1)
        return jnp.where(place < warm, rising, whole(jnp.maximum(place - warm, 0)))

    return rate


def _held(
    *links: optax.GradientTransformation, masks: Masks | None
) -> optax.GradientTransformationExtraArgs:
    own = (*links, *([] if masks is None else [hold(masks)]))

    def init(params: Params) -> tuple[PyTree, ...]:
        # One program for what all links begin with; masks are no part of it.
        begun = at_once(lambda params: tuple(link.init(params) for link in links))(params)
        return (*begun, *(link.init(params) for link in own[len(links) :]))

    return optax.GradientTransformationExtraArgs(init, optax.chain(*own).update)


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

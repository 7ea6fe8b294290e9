"""Plain training: gradient steps on weights under masks, as a learner that can stop at any step."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jprune.base import (
    Batch,
    Data,
    Learner,
    Masks,
    Params,
    Pruned,
    PyTree,
    Schedule,
    Task,
    Variables,
)
from jprune.masks import apply_masks
from jprune.sparsify import hold

EVALUATION_BATCH = 256


class TrainState(NamedTuple):
    """What plain training carries."""

    step: jax.Array
    params: Params
    """Float32, whatever type the net computes in."""
    rest: PyTree
    """What is not trained: statistics."""
    opt_state: PyTree
    """With the masks in it (`jprune.masks_of`)."""


def one_cycle(peak: float, steps: int) -> Schedule:
    """Up in a line over the first 30 % of the steps, down in a line to nothing.

    References:
        Smith, Topin, Super-convergence, 2018, arXiv 1708.07120 (without its last phase).

    Example:
        >>> [round(float(one_cycle(1.0, 10)(step)), 2) for step in (0, 2, 9)]
        [0.33, 1.0, 0.12]
    """
    warm = max(1, round(0.3 * steps))
    return lambda step: peak * jnp.minimum((step + 1) / warm, (steps - step) / (steps - warm + 1))


def cosine(peak: float, steps: int) -> Schedule:
    """From the peak down to nothing along half a cosine.

    References:
        Loshchilov, Hutter, SGDR, 2017, arXiv 1608.03983 (without restarts).

    Example:
        >>> [round(float(cosine(1.0, 10)(step)), 2) for step in (0, 5, 10)]
        [1.0, 0.5, 0.0]
    """
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
    falls = {steps // 2: 0.1, 3 * steps // 4: 0.1}
    return optax.piecewise_constant_schedule(peak, falls)


LEARNING_RATES: dict[str, Callable[[float, int], Schedule]] = {
    "one_cycle": one_cycle,
    "cosine": cosine,
    "constant": constant,
    "step": tenths,
}


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


class Functions(NamedTuple):
    """The functions of a task that a step runs."""

    train_fn: Callable[..., Any]
    loss: Callable[..., Any]
    metrics: Callable[..., Any]
    split: Callable[..., Any]
    merge: Callable[..., Any]
    update: Callable[..., Any]


def plain(
    task: Task,
    pruned: Pruned,
    masks: Masks | None,
    sgd: Optimizer,
    key: jax.Array,
    batch_size: int,
) -> Learner:
    """Training of the weights, masked ones held at exactly 0.

    Args:
        task: what is trained on what.
        pruned: where training begins; its arrays are copied.
        masks: a tree like the variables, True keeps, None leaves are not prunable; or None.
        sgd: the optimizer.
        key: determines the order of the data and whatever the net draws.
        batch_size: examples in a step, at most those of the training split.

    Returns:
        A learner whose metrics are means over the batch, of `task.metrics`.
    """
    of_params = None if masks is None else task.split(masks)[0]
    functions = Functions(*(getattr(task, name) for name in Functions._fields))
    stepped = _step(functions, sgd, of_params is not None)

    def init() -> TrainState:
        start = pruned.variables if masks is None else apply_masks(pruned.variables, masks)
        params, rest = task.split(start)
        opt_state = sgd.transformation(of_params).init(params)
        state = TrainState(jnp.zeros((), jnp.int32), params, rest, opt_state)
        return jax.tree.map(jnp.array, state)  # copies: a step gives them away, masks included

    return Learner(
        steps=sgd.taken,
        epoch=task.data.sizes["train"] // batch_size,
        init=init,
        batches=lambda start: stream(task.data, batch_size, key, sgd.begin + start),
        step=lambda state, batch: stepped(state, batch, key),
        variables=lambda state: task.merge(state.params, state.rest),
        finish=lambda state: pruned._replace(variables=task.merge(state.params, state.rest)),
    )


# Rounds of pruning train with the same functions and settings: they share what was compiled.
@functools.lru_cache(maxsize=8)
def _step(functions: Functions, sgd: Optimizer, masked: bool) -> Callable[..., Any]:
    """`step(state, batch, key) -> state, metrics`; the masks are in the state."""
    update = sgd.transformation({} if masked else None).update
    train_fn, loss, metrics, split, merge, write = functions

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Any]:
        here = jax.random.fold_in(key, state.step)
        weight = batch["weight"] / batch["weight"].sum()

        def mean_loss(params: Params):
            out, new = train_fn(merge(params, state.rest), batch["image"], here)
            seen = {name: weight @ value for name, value in metrics(out, batch).items()}
            return weight @ loss(out, batch), (new, seen)

        gradient, (new, seen) = jax.grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = update(gradient, state.opt_state, state.params, batch=batch)
        params = optax.apply_updates(state.params, updates)
        params, rest = split(write(merge(params, state.rest), new))
        return TrainState(state.step + 1, params, rest, opt_state), seen

    return step


def stream(data: Data, batch_size: int, key: jax.Array, start: int = 0) -> Iterator[Batch]:
    """Training batches without end, epoch after epoch, from a step on.

    Args:
        data: whose split "train" is read.
        batch_size: examples in a batch, at most those of the split.
        key: determines the order.
        start: batches to skip.
    """
    seed = int(jax.random.bits(key))
    epoch, skipped = divmod(start, data.sizes["train"] // batch_size)
    while True:
        yield from data.batches("train", batch_size, seed=seed, epoch=epoch, start=skipped)
        epoch, skipped = epoch + 1, 0


def evaluate(
    task: Task, variables: Variables, split: str, fn: Callable[..., Any] | None = None
) -> dict[str, float]:
    """Means of a task's metrics over a split.

    Args:
        task: whose metrics and data.
        variables: of the net.
        split: "train", "validation" or "test".
        fn: another function than `task.fn`, such as the slim one.

    Returns:
        {metric: mean over all examples}.

    Example:
        >>> from jprune import data, train, zoo
        >>> task = train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
        >>> sorted(evaluate(task, task.init(jax.random.key(0)), "test"))
        ['accuracy', 'loss']
    """
    sums = _sums(task.fn if fn is None else fn, task.metrics)
    totals: dict[str, float] = {}
    count = 0.0
    for batch in task.data.batches(split, EVALUATION_BATCH):
        count += float(batch["weight"].sum())
        for name, value in sums(variables, batch).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return {name: total / count for name, total in totals.items()}


@functools.lru_cache(maxsize=8)
def _sums(fn: Callable[..., Any], metrics: Callable[..., Any]) -> Callable[..., Any]:
    @jax.jit
    def sums(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        seen = metrics(fn(variables, batch["image"]), batch)
        return {name: batch["weight"] @ value for name, value in seen.items()}

    return sums

"""Plain training: gradient steps on weights under masks, as a learner that can stop at any step."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
    Task,
    Variables,
    Wrap,
)
from jprune.graph import gateable, gated
from jprune.graph.shrink.concrete import copied
from jprune.masks import apply_masks, held
from jprune.sparsify import masks_of
from jprune.train.net import Net
from jprune.train.optimizers import Around, Optimizer


class TrainState(NamedTuple):
    """State of plain training.

    Attributes:
        step: how many were taken.
        params: float32, whatever type the net computes in.
        rest: what is not trained: statistics.
        opt_state: with the masks in it (`jprune.masks_of`).
        average: (parameters, rest) as `averaged` has them; None where nothing is averaged.
    """

    step: jax.Array
    params: Params
    rest: PyTree
    opt_state: PyTree
    average: PyTree = None


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
    optimizer: Optimizer,
    key: jax.Array,
    batch_size: int,
    wrap: Wrap | None = None,
    decayed: PyTree | None = None,
) -> Learner:
    """Training of the weights, masked ones held at exactly 0.

    Args:
        task: the net, the loss and the data.
        pruned: where training begins; its arrays are copied.
        masks: a tree like the variables, True keeps, None leaves are not prunable; or None.
        optimizer: of the trained parameters.
        key: determines the order of the data and whatever the net draws.
        batch_size: examples in a step, at most those of the training split.
        wrap: how a method takes part. Whatever it does, masked weights are 0 after a step.
        decayed: a tree of bools like the trained parameters, True where weights decay, for a task
            that trains something else than the parameters of its net; None: the net's kernels.

    Returns:
        A learner whose metrics are means over the batch, of `task.metrics`. Where the optimizer
        averages, the net that it hands on and that is evaluated is the average.
    """
    of_params = None if masks is None else task.split(masks)[0]
    net, masked = Net(task), masks is not None
    settings = step_settings(net, optimizer, wrap, decayed)
    stepped = compiled_step(net, settings, masked)

    def init() -> TrainState:
        start = apply_masks(pruned.variables, masks) if masked else pruned.variables
        params, rest = task.split(start)
        # Masks and keys enter through the state, not the
        # compiled step: another mask recompiles nothing.
        opt_state = settings.transformation(net, of_params, key).init(params)
        average = None if optimizer.around.average is None else (params, rest)
        state = TrainState(jnp.zeros((), jnp.int32), params, rest, opt_state, average)
        return copied(state)  # a step gives them away, masks included

    def variables(state: TrainState) -> Variables:
        # What is evaluated, pruned and exported later is the average, where there is one.
        return task.merge(*(state.average or (state.params, state.rest)))

    return Learner(
        steps=optimizer.taken,
        epoch=task.data.sizes["train"] // batch_size,
        init=init,
        batches=lambda start: stream(task.data, batch_size, key, optimizer.begin + start),
        step=lambda state, batch: stepped(state, batch, key),
        variables=variables,
        finish=lambda state: pruned._replace(variables=variables(state)),
    )


class StepSettings(NamedTuple):
    """What a step is compiled for, beside the functions of its task; it can be hashed.

    Attributes:
        optimizer: of the trained parameters.
        wrap: how a method takes part, or None.
        flags: whether weights decay, for every leaf of the structure.
        structure: of the parameters, or of a tree of which they are branches.
    """

    optimizer: Optimizer
    wrap: Wrap | None
    flags: tuple[bool, ...]
    structure: Any

    def transformation(
        self, net: Net, masks: Masks | None, key: jax.Array
    ) -> optax.GradientTransformationExtraArgs:
        """The optax transformation of a step; masks and key are in the state that it begins with.

        Args:
            net: whose parameters are trained.
            masks: a tree like the parameters, or None.
            key: for what the method draws.
        """
        inner = self.optimizer.transformation(self.structure.unflatten(self.flags), masks)
        if self.wrap is None:
            return inner
        return optax.with_extra_args_support(self.wrap(net, self.optimizer.stride, key)(inner))


def step_settings(
    net: Net, optimizer: Optimizer, wrap: Wrap | None = None, decayed: PyTree | None = None
) -> StepSettings:
    """What a step of a net is compiled for; the arguments are those of `plain`."""
    kernels = net.task.split(net.is_kernel)[0] if decayed is None else decayed
    flags, structure = jax.tree.flatten(kernels)
    return StepSettings(optimizer, wrap, tuple(flags), structure)


def compiled_step(net: Net, settings: StepSettings, masked: bool) -> Callable[..., Any]:
    """`step(state, batch, key) -> state, metrics`, jitted; the masks are in the state.

    Rounds of pruning train with the same functions and settings, and so share one compilation.
    """
    run = net.task._replace(train_fn=net.train_fn)
    functions = Functions(*(getattr(run, name) for name in Functions._fields))
    return net.once(_step, functions, settings, masked)


def _step(
    net: Net, functions: Functions, settings: StepSettings, masked: bool
) -> Callable[..., Any]:
    # Masks, clusters and keys are read from the state: those passed here have no effect.
    change = settings.transformation(net, {} if masked else None, jax.random.key(0)).update
    train_fn, loss, metrics, split, merge, write = functions
    around = settings.optimizer.around
    at = getattr(settings.wrap, "gates", None)
    with_gates, ones_for = _with_gates(net, train_fn, at)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Any]:
        # A function of key and step: a resumed run draws what an undisturbed one does.
        of_step = jax.random.fold_in(key, state.step)
        # A mean over examples, padded ones left out.
        weight = batch["weight"] / batch["weight"].sum()

        def of_part(rest: PyTree, part: Batch, weight: jax.Array, key: jax.Array):
            """((gradient, that of gates), (new statistics, means)) of a part of the batch."""

            def mean_loss(params: Params, gates: Any):
                out, new = with_gates(merge(params, rest), gates, part["image"], key)
                means = {name: weight @ value for name, value in metrics(out, part).items()}
                return weight @ loss(out, part), (new, means)

            return jax.grad(mean_loss, (0, 1), has_aux=True)(state.params, ones_for(len(weight)))

        # Statistics of this forward pass, at the parameters before the step.
        if around.parts == 1:
            (gradient, slopes), (new, means) = of_part(state.rest, batch, weight, of_step)
            written = lambda params: split(write(merge(params, state.rest), new))
        else:
            after = lambda rest, new: split(write(merge(state.params, rest), new))[1]
            rest, gradient, means = _in_parts(of_part, after, state, batch, weight, of_step, around)
            written, slopes = lambda params: (params, rest), {}
        if at is not None:
            # dC_n/dz of every example, whatever its weight in the mean
            each = jnp.where(weight > 0, weight, 1)[:, None]
            batch = {**batch, "slopes": {name: slope / each for name, slope in slopes.items()}}
        updates, opt_state = change(
            gradient, state.opt_state, state.params, batch=batch, rest=state.rest
        )
        if masked and settings.wrap is not None:  # it may have moved what `hold` has brought to 0
            updates = held(updates, state.params, masks_of(opt_state))
        params = optax.apply_updates(state.params, updates)
        params, rest = written(params)
        average = state.average
        if around.average is not None:
            average = averaged(average, (params, rest), state.step, around.average)
        return TrainState(state.step + 1, params, rest, opt_state, average), means

    return step


def _with_gates(net: Net, train_fn: Callable[..., Any], at: str | None):
    """`run(variables, gates, x, key)`, and gates of one for so many examples.

    Gates have an axis of examples, so that the backward pass of the weights gives the slope of each
    example beside. Without a kind of site there are none.
    """
    if at is None:
        return lambda variables, gates, *args: train_fn(variables, *args), lambda count: {}
    sizes = {name: net.groups.sizes[name] for name in gateable(net.groups, at)}
    ones_for = lambda count: {name: jnp.ones((count, size)) for name, size in sizes.items()}
    return gated(train_fn, net.groups, at), ones_for


def _in_parts(
    of_part: Callable[..., Any],
    after: Callable[[PyTree, Any], PyTree],
    state: TrainState,
    batch: Batch,
    weight: jax.Array,
    key: jax.Array,
    around: Around,
) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
    """Statistics, gradient and means of a batch whose parts go through the net one by one.

    `of_part` and `after` are those of a step: what a part gives, and the statistics with its own.
    """
    apart = lambda leaf: leaf.reshape(around.parts, -1, *leaf.shape[1:])
    split_up = jax.tree.map(apart, (dict(batch), weight))
    zeros = jax.tree.map(jnp.zeros_like, state.params)

    def one(carry: tuple[PyTree, PyTree], inputs: Any):
        rest, total = carry
        (part, shares), number = inputs
        (gradient, _), (new, means) = of_part(rest, part, shares, jax.random.fold_in(key, number))
        # The weights of all parts together sum to 1, so gradients and means are plain sums.
        return (after(rest, new), jax.tree.map(jnp.add, total, gradient)), means

    parts = (split_up, jnp.arange(around.parts))
    (rest, gradient), means = jax.lax.scan(one, (state.rest, zeros), parts)
    return rest, gradient, {name: value.sum() for name, value in means.items()}


def averaged(average: PyTree, new: PyTree, step: jax.Array, decay: float) -> PyTree:
    """The running average of parameters and statistics after a step; masked ones stay 0.

    a <- d a + (1 - d) w, with d = min(decay, (1 + t) / (10 + t)) after t steps, so that the first
    weights do not count for long. What is no float is taken as it is.
    """
    taken = (step + 1).astype(jnp.float32)
    rest = 1 - jnp.minimum(decay, (1 + taken) / (10 + taken))

    def one(mean: jax.Array, value: jax.Array) -> jax.Array:
        if not jnp.issubdtype(mean.dtype, jnp.floating):
            return value
        # a + (1 - d) (w - a): what does not change keeps its last bit, and 0 stays 0
        return mean + (rest * (value - mean)).astype(mean.dtype)

    return jax.tree.map(one, average, new)


def stream(data: Data, batch_size: int, key: jax.Array, start: int = 0) -> Iterator[Batch]:
    """Training batches without end, epoch after epoch, from a step on.

    Args:
        data: whose split "train" is read.
        batch_size: examples in a batch, at most those of the split.
        key: determines the order.
        start: batches to skip.
    """
    seed = int(jax.random.bits(key))
    # Batches are a function of (seed, epoch, number): nothing is read to skip.
    epoch, skipped = divmod(start, data.sizes["train"] // batch_size)
    while True:
        yield from data.batches("train", batch_size, seed=seed, epoch=epoch, start=skipped)
        epoch, skipped = epoch + 1, 0


def few_batches(data: Data, batches: int, batch_size: int, key: jax.Array) -> list[Batch]:
    """Training batches to calibrate on, no image twice.

    Args:
        data: whose split "train" is read.
        batches: how many; as many as there are at most, and one at least.
        batch_size: examples in a batch; the whole split where that has fewer.
        key: determines which.
    """
    size = min(batch_size, data.sizes["train"])
    few = min(batches, max(1, data.sizes["train"] // size))
    return [*itertools.islice(stream(data, size, key), few)]

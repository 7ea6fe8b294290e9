"""Plain training: gradient steps on weights under masks, as a learner that can stop at any step."""

import functools
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
)
from jprune.masks import apply_masks
from jprune.train.net import Net
from jprune.train.optimizers import Optimizer


class TrainState(NamedTuple):
    """What plain training carries."""

    step: jax.Array
    params: Params
    """Float32, whatever type the net computes in."""
    rest: PyTree
    """What is not trained: statistics."""
    opt_state: PyTree
    """With the masks in it (`jprune.masks_of`)."""


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
    run = task._replace(train_fn=Net(task).train_fn)
    functions = Functions(*(getattr(run, name) for name in Functions._fields))
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

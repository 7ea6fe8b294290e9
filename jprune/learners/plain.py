"""Plain training, under masks or without."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune.base import Batch, Learner, Params, Pruned, PyTree, Task


class PlainState(NamedTuple):
    """Everything that a step changes."""

    params: Params
    rest: PyTree
    """Statistics."""
    opt_state: PyTree
    """The masks are in it, if there are any."""


def plain(task: Task, tx: optax.GradientTransformation) -> Learner:
    """Minimises the mean loss of every batch.

    Gradients meet masks *frozen*: `hold` at the end of `tx` keeps what is pruned at exactly zero.

    Args:
        task: loss and net in training mode.
        tx: optimizer; `Optimizer.build` makes one.
    """
    tx = optax.with_extra_args_support(tx)

    def init(pruned: Pruned, key: jax.Array) -> PlainState:
        del key
        params, rest = task.split(pruned.variables)
        return PlainState(params, rest, tx.init(params))

    @jax.jit
    def step(
        state: PlainState, batch: Batch, key: jax.Array
    ) -> tuple[PlainState, dict[str, jax.Array]]:
        def objective(params: Params) -> tuple[jax.Array, Any]:
            variables = task.merge(params, state.rest)
            out, new = task.train_fn(variables, batch["image"], key)
            return jnp.mean(task.loss(out, batch)), (out, new)

        (loss, (out, new)), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params, batch=batch)
        params = optax.apply_updates(state.params, updates)
        _, rest = task.split(task.update(task.merge(params, state.rest), new))
        metrics = {name: value.mean() for name, value in task.metrics(out, batch).items()}
        return PlainState(params, rest, opt_state), {**metrics, "loss": loss}

    def finish(state: PlainState, pruned: Pruned) -> Pruned:
        return pruned._replace(variables=task.merge(state.params, state.rest))

    return Learner(init, step, lambda state: state, finish)

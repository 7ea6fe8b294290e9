"""Distillation: a task whose loss also compares the outputs with a teacher's."""

import jax
import jax.numpy as jnp

from jprune import errors
from jprune.base import Batch, Task, Variables


def distilled(task: Task, teacher: Variables, weight: float, temperature: float = 4.0) -> Task:
    """The task with a loss that also compares the outputs with the teacher's.

    loss = (1 - weight) task.loss + weight T^2 KL(softmax(teacher / T) || softmax(net / T)), with T
    the temperature and both nets' outputs taken as logits [batch, ..., classes]; where there are
    several positions, their mean.

    Args:
        task: what is trained; its inference function runs the teacher.
        teacher: variables of the teacher, in inference mode.
        weight: of the teacher's part, in (0, 1].
        temperature: above 0; higher ones weigh the teacher's small outputs more.

    Returns:
        A task whose training function returns both nets' outputs and whose loss and metrics take
        them; metrics and `fn` are those of the net alone.

    Raises:
        ArgumentError: a weight or temperature outside its range, or outputs that are no logits.

    References:
        Hinton, Vinyals, Dean, Distilling the knowledge in a neural network, 2015, arXiv
        1503.02531, section 2; the weight of 0.9 and T = 4 that are common are not the paper's.

    Example:
        >>> from jprune import data, train, zoo
        >>> task = train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
        >>> taught = distilled(task, task.init(jax.random.key(0)), weight=0.9)
        >>> same = jnp.array([[3.0, 1.0]])
        >>> alone = task.loss(same, {"label": jnp.array([0])})
        >>> bool(jnp.allclose(taught.loss((same, same), {"label": jnp.array([0])}), 0.1 * alone))
        True
    """
    if not (0 < weight <= 1 and temperature > 0):
        raise errors.ArgumentError(
            f"distilled(weight={weight}, temperature={temperature}): the weight is in (0, 1] and "
            "the temperature above 0. Write weight=0.9, temperature=4.0."
        )

    outputs = jax.eval_shape(task.fn, teacher, task.example)
    if len(getattr(outputs, "shape", ())) < 2 or outputs.shape[-1] < 2:
        raise errors.ArgumentError(
            f"distillation takes outputs as logits [batch, ..., classes], and {task.name} returns "
            f"{outputs}. Write distill=0."
        )

    def train_fn(variables: Variables, x: jax.Array, key: jax.Array):
        out, new = task.train_fn(variables, x, key)
        # The teacher is a constant: no gradient, and no memory for one.
        return (out, jax.lax.stop_gradient(task.fn(teacher, x))), new

    def loss(outs: tuple[jax.Array, jax.Array], batch: Batch) -> jax.Array:
        own, taught = (jax.nn.log_softmax(out / temperature, axis=-1) for out in outs)
        # KL(softmax(teacher / T) || softmax(net / T))
        divergence = jnp.sum(jnp.exp(taught) * (taught - own), axis=-1)
        # [batch, positions...] -> [batch]
        divergence = divergence.reshape(len(divergence), -1).mean(axis=1)
        # T^2: gradients of softened outputs are 1 / T^2 as large
        return (1 - weight) * task.loss(outs[0], batch) + weight * temperature**2 * divergence

    return task._replace(
        train_fn=train_fn, loss=loss, metrics=lambda outs, batch: task.metrics(outs[0], batch)
    )

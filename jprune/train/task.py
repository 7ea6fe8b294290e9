"""A net and data as a task: classification with softmax cross entropy."""

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Batch, Data, Task


def cross_entropy(out: jax.Array, batch: Batch) -> jax.Array:
    """Softmax cross entropy: [batch] from logits [batch, classes] and labels [batch]."""
    return optax.softmax_cross_entropy_with_integer_labels(out, batch["label"])


def classification_metrics(out: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """{"loss": [batch], "accuracy": [batch] of 0 and 1}."""
    right = jnp.argmax(out, axis=-1) == batch["label"]
    return {"loss": cross_entropy(out, batch), "accuracy": right.astype(jnp.float32)}


def task(net, data: Data) -> Task:
    """Puts a net of the zoo (or one of the same form) and a data set together.

    Args:
        net: `jprune.zoo.Net`: name, init, fn, train_fn, example.
        data: from `jprune.data.load`.

    Raises:
        ArgumentError: a net for images of another shape than the data has.
    """
    if tuple(net.example.shape[1:]) != tuple(data.shape):
        raise errors.ArgumentError(
            f"{net.name} takes images of {tuple(net.example.shape[1:])}; {data.name} has "
            f"{tuple(data.shape)}. Build the net with shape={tuple(data.shape)}."
        )
    return Task(
        name=net.name,
        fn=net.fn,
        train_fn=net.train_fn,
        loss=cross_entropy,
        metrics=classification_metrics,
        init=net.init,
        example=net.example,
        data=data,
        split=lambda variables: (variables["params"], variables["stats"]),
        merge=lambda params, rest: {"params": params, "stats": rest},
        update=lambda variables, new: {**variables, "stats": new},
    )

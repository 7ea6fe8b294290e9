"""A net and a data set put together: what everything else trains, prunes and measures."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from jprune import errors
from jprune.base import Batch, Data, Params, PyTree, Task, Variables


class Model(Protocol):
    """What a net brings; `jprune.zoo.Net` is one."""

    @property
    def name(self) -> str:
        """Of the net."""
        ...

    @property
    def init(self) -> Any:
        """`init(key) -> {"params": ..., "stats": ...}`."""
        ...

    @property
    def fn(self) -> Any:
        """`fn(variables, x) -> logits`, in inference mode."""
        ...

    @property
    def train_fn(self) -> Any:
        """`train_fn(variables, x, key) -> (logits, new statistics)`."""
        ...

    @property
    def example(self) -> Any:
        """Shape and type of the input for one image."""
        ...


def task(net: Model, data: Data) -> Task:
    """Classification with softmax cross entropy.

    Args:
        net: its variables are {"params", "stats"}; the first are trained, the second are the norms'
            statistics.
        data: images and labels.

    Returns:
        A task whose metrics are `loss` [nats] and `accuracy` [0..1].

    Raises:
        ArgumentError: the net takes other images, or has another number of outputs, than the data.

    Example:
        >>> from jprune import data, zoo
        >>> of = task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
        >>> of.loss(jnp.array([[0.0, 0.0]]), {"label": jnp.array([1])})
        Array([0.6931472], dtype=float32)
    """
    if tuple(net.example.shape[1:]) != tuple(data.shape):
        raise errors.ArgumentError(
            f"{net.name} takes images of shape {tuple(net.example.shape[1:])}, and those of "
            f"{data.name} have {tuple(data.shape)}. Write zoo.build({net.name!r}, "
            f"shape={tuple(data.shape)})."
        )
    variables = jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)))
    outputs = jax.eval_shape(net.fn, variables, net.example).shape[-1]
    if outputs != data.classes:
        raise errors.ArgumentError(
            f"{net.name} has {outputs} outputs for the {data.classes} classes of {data.name}. "
            f"Write zoo.build({net.name!r}, classes={data.classes})."
        )
    return Task(
        name=net.name,
        fn=net.fn,
        train_fn=net.train_fn,
        loss=cross_entropy,
        metrics=loss_and_accuracy,
        init=net.init,
        example=net.example,
        data=data,
        split=split,
        merge=merge,
        update=update,
    )


def cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Softmax cross entropy of every example, in nats: [batch]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def loss_and_accuracy(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """`loss`, and `accuracy` (1 where the largest output is the label): each [batch]."""
    right = jnp.argmax(logits, axis=-1) == batch["label"]
    return {"loss": cross_entropy(logits, batch), "accuracy": right.astype(jnp.float32)}


def split(variables: Variables) -> tuple[Params, PyTree]:
    """(parameters, statistics)."""
    return variables["params"], variables["stats"]


def merge(params: Params, rest: PyTree) -> Variables:
    """Variables of parameters and statistics."""
    return {"params": params, "stats": rest}


def update(variables: Variables, new: Any) -> Variables:
    """Variables with the statistics of a training step."""
    return {**variables, "stats": new}

"""A net and a data set put together: what everything else trains, prunes and measures."""

import functools
from collections.abc import Callable, Mapping
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
        """`fn(variables, x) -> out`, in inference mode."""
        ...

    @property
    def train_fn(self) -> Any:
        """`train_fn(variables, x, key) -> (out, new statistics)`."""
        ...

    @property
    def example(self) -> Any:
        """Shape and type of the input for one image."""
        ...


def task(
    net: Model,
    data: Data,
    *,
    loss: Callable[[Any, Batch], jax.Array] | None = None,
    metrics: Callable[[Any, Batch], dict[str, jax.Array]] | None = None,
) -> Task:
    """A net and a data set put together: classification, or whatever the loss says.

    Args:
        net: any object with `name`, `init`, `fn`, `train_fn` and `example`, as `Model` has them;
            its variables are {"params", "stats"}: the first are trained, the second are the norms'
            statistics ({} where there are none).
        data: images and labels.
        loss: `loss(out, batch) -> [batch]`; None: softmax cross entropy with integer labels.
        metrics: `metrics(out, batch) -> {name: [batch]}`; None: `loss` [nats] and `accuracy`
            [0..1], and with another loss `loss` alone. What has an `accuracy` is judged by it,
            everything else by its loss.

    Returns:
        The task.

    Raises:
        ArgumentError: the net takes other images than the data, has variables of another structure,
            or lacks something; its outputs do not fit the classes, or the loss and the metrics
            that are given are not one number an example.

    Example:
        >>> from jprune import data, zoo
        >>> net, digits = zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits")
        >>> task(net, digits).loss(jnp.array([[0.0, 0.0]]), {"label": jnp.array([1])})
        Array([0.6931472], dtype=float32)
        >>> brightness = lambda out, batch: (out.mean(-1) - batch["image"].mean((1, 2, 3))) ** 2
        >>> task(net, digits, loss=brightness).name
        'lenet300'
    """
    out = _outputs(net, data)
    if loss is None:
        last = getattr(out, "shape", ())[-1:]
        if last != (data.classes,):
            has = f"has {last[0]} outputs" if last else f"returns {out}"
            raise errors.ArgumentError(
                f"{net.name} {has} for the {data.classes} classes of {data.name}. Write "
                f"zoo.build({net.name!r}, classes={data.classes}) for a net of the zoo, or give "
                "train.task(..., loss=...) a loss for these outputs."
            )
        loss, metrics = cross_entropy, loss_and_accuracy if metrics is None else metrics
    elif metrics is None:
        metrics = functools.partial(_loss_alone, loss)
    # The default ones fit by construction; a user's are run on two examples' shapes.
    if (loss, metrics) != (cross_entropy, loss_and_accuracy):
        _check_numbers(net, data, {"loss": loss, "metrics": metrics})
    return Task(
        name=net.name,
        fn=net.fn,
        train_fn=net.train_fn,
        loss=loss,
        metrics=metrics,
        init=net.init,
        example=net.example,
        data=data,
        split=split,
        merge=merge,
        update=update,
    )


def _outputs(net: Model, data: Data) -> Any:
    """Shapes and types of the outputs for one example.

    Raises:
        ArgumentError: something is missing, or the images or variables are others.
    """
    parts = ("name", "init", "fn", "train_fn", "example")
    if missing := [part for part in parts if not hasattr(net, part)]:
        raise errors.ArgumentError(
            f"train.task got a {type(net).__name__} without {', '.join(missing)}. Give it an "
            f"object with {', '.join(parts)}, such as jprune.zoo.Net(...)."
        )
    if tuple(net.example.shape[1:]) != tuple(data.shape):
        raise errors.ArgumentError(
            f"{net.name} takes images of shape {tuple(net.example.shape[1:])}, and those of "
            f"{data.name} have {tuple(data.shape)}. Write zoo.build({net.name!r}, "
            f"shape={tuple(data.shape)}) for a net of the zoo, or give the net another example."
        )
    variables = jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)))
    if not isinstance(variables, Mapping) or {*variables} != {"params", "stats"}:
        has = list(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise errors.ArgumentError(
            f"the variables of {net.name} are {has}; train.task takes {{'params': what is trained, "
            "'stats': statistics of norms, {} where there are none}. Let init return these two, or "
            "make a jprune.base.Task with split, merge and update of your own."
        )
    return jax.eval_shape(net.fn, variables, net.example)


def _check_numbers(net: Model, data: Data, functions: Mapping[str, Callable[..., Any]]) -> None:
    """Refuses losses and metrics that are not one number an example.

    Raises:
        ArgumentError: another shape; two examples are looked at.
    """
    # Two: an output of shape [1] by chance is then not taken for one number an example.
    batch = next(data.batches("train", min(2, data.sizes["train"])))
    variables = jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)))
    count = len(batch["weight"])
    for name, function in functions.items():
        run = lambda v, batch, function=function: function(net.fn(v, batch["image"]), batch)
        numbers = jax.eval_shape(run, variables, batch)
        wrong = {n.shape for n in jax.tree.leaves(numbers)} - {(count,)}
        if wrong or (name == "metrics" and not isinstance(numbers, dict)):
            shape = "{name: [batch]}" if name == "metrics" else "[batch]"
            raise errors.ArgumentError(
                f"the {name} of {net.name} returned {numbers} for {count} examples; write one "
                f"number an example, {shape}: means over a batch are taken later."
            )


def _loss_alone(loss: Callable[..., Any], out: Any, batch: Batch) -> dict[str, jax.Array]:
    return {"loss": loss(out, batch)}


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

"""Tasks: a net and data put together, at another resolution, or with a teacher in the loss.

A task is what everything else trains, prunes and measures.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import errors
from jprune.base import Batch, Data, Params, Pruned, PyTree, Task, Variables
from jprune.curvature import softmax_factors


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
    if loss is None and not data.classes:
        raise errors.ArgumentError(
            f"the labels of {data.name} are no classes: there is no loss without one of your own. "
            "Write train.task(net, data, loss=lambda out, batch: ...), one number an example."
        )
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
    # Of several inputs, a tree of shapes.
    taken = jax.tree.map(lambda leaf: tuple(leaf.shape[1:]), net.example)
    shape = data.shape if isinstance(data.shape, Mapping) else tuple(data.shape)
    if taken != shape:
        raise errors.ArgumentError(
            f"{net.name} takes images of shape {taken}, and those of "
            f"{data.name} have {shape}. Write zoo.build({net.name!r}, "
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


# What curvature would otherwise decompose for every example.
cast(Any, cross_entropy).output_factors = softmax_factors


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


Size = tuple[int, int]


def resize(images: Any, size: Size) -> Any:
    """Resized images: means of old pixels, weighted by a triangle as wide as two new pixels.

    Args:
        images: [batch, h, w, c], NumPy or JAX.
        size: (height, width).

    Example:
        >>> resize(np.arange(8.0).reshape(1, 2, 4, 1), (1, 2))[0, 0, :, 0].round(2)
        array([2.71, 4.29])
    """
    if tuple(images.shape[1:3]) == tuple(size):
        return images
    rows, columns = (_weights(old, new) for old, new in zip(images.shape[1:3], size))
    batch, height, width, channels = images.shape
    # Two products of matrices: on the host `np.einsum` of three takes 900 times as long.
    shorter = rows @ images.reshape(batch, height, width * channels)
    return columns @ shorter.reshape(batch, size[0], width, channels)


@functools.lru_cache(maxsize=64)
def _weights(old: int, new: int) -> np.ndarray:
    """Float32 [new, old]: the weight of every old pixel in a new one; rows sum to 1."""
    # At least one old pixel wide, so that enlarging interpolates linearly.
    wide = max(1.0, old / new)
    # Pixels are areas: the centre of pixel i is i + 1/2.
    centres = (np.arange(new) + 0.5) * old / new
    apart = np.abs(np.arange(old) + 0.5 - centres[:, None]) / wide
    # max(0, 1 - |x - centre| / width)
    weights = np.maximum(0.0, 1.0 - apart)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def seen_at(fn: Callable[..., Any], resolution: Any) -> Callable[..., Any]:
    """The net that first resizes its images; the net itself if the resolution is None.

    Args:
        fn: `fn(variables, x) -> out`.
        resolution: [height, width], or None.
    """
    return fn if resolution is None else _seen_at(fn, size_of(resolution))


def size_of(resolution: Any) -> Size:
    """A resolution as plain numbers."""
    height, width = np.asarray(resolution).tolist()
    return int(height), int(width)


@functools.lru_cache(maxsize=8)  # the same function for the same net: it is what JAX compiles for
def _seen_at(fn: Callable[..., Any], size: Size) -> Callable[..., Any]:
    def resized(variables: Variables, x: Any) -> Any:
        return fn(variables, resize(jnp.asarray(x), size))

    return resized


def at_resolution(task: Task, pruned: Pruned) -> Task:
    """The task whose images have the resolution of the net; the task itself where that is None."""
    return task if pruned.resolution is None else at_size(task, size_of(pruned.resolution))


def at_size(task: Task, size: Size) -> Task:
    """The task with images of another size; its cost is that of the net on these."""
    *_, channels = task.data.shape
    batches = functools.partial(_batches, task.data.batches, size)
    shape = (*size, channels)
    return task._replace(
        example=jax.ShapeDtypeStruct((1, *shape), task.example.dtype),
        data=task.data._replace(shape=shape, batches=batches),
    )


def _batches(
    batches: Callable[..., Iterator[Batch]], size: Size, *args: Any, **options: Any
) -> Iterator[Batch]:
    """As `base.Data.batches`, resized."""
    for batch in batches(*args, **options):
        yield {**batch, "image": resize(batch["image"], size)}


def check_size(task: Task, size: Size, instead: str) -> None:
    """Refuses images that a net cannot take.

    Args:
        task: of the net.
        size: (height, width).
        instead: what to write instead, for the message.

    Raises:
        ArgumentError: the net does not run on such images, or nothing is left of them inside it.
    """
    variables = jax.eval_shape(task.init, jax.eval_shape(lambda: jax.random.key(0)))
    example = at_size(task, size).example
    try:
        program = jax.make_jaxpr(task.fn)(variables, example)
        # A loss for every pixel wants outputs as large as the labels are.
        out = jax.eval_shape(task.fn, variables, example)
        batch = jax.tree.map(jnp.asarray, next(iter(task.data.batches("validation", 1))))
        jax.eval_shape(task.loss, out, {**batch, "image": example})
        why = "its layers leave no pixel of them"
    except Exception as error:  # libraries have types of their own for weights that fit one size
        program, why = None, str(error).splitlines()[0]
    values = [] if program is None else [v for e in program.eqns for v in e.outvars]
    if program is None or any(0 in getattr(v.aval, "shape", ()) for v in values):
        raise errors.ArgumentError(
            f"{task.name} cannot take images of {size[0]} x {size[1]}: {why}. {instead}"
        )

"""Smaller images: resizing, tasks whose images have another size, sizes that a net cannot take."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import errors
from jprune.base import Batch, Pruned, Task, Variables

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
        why = "its layers leave no pixel of them"
    except Exception as error:  # libraries have types of their own for weights that fit one size
        program, why = None, str(error).splitlines()[0]
    values = [] if program is None else [v for e in program.eqns for v in e.outvars]
    if program is None or any(0 in getattr(v.aval, "shape", ()) for v in values):
        raise errors.ArgumentError(
            f"{task.name} cannot take images of {size[0]} x {size[1]}: {why}. {instead}"
        )

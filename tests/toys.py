"""A toy data set and task for tests of training: quick to train, nothing to download."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jprune import train, zoo
from jprune.base import Data, Task
from jprune.zoo import layers

CLASSES, SHAPE = 3, (8, 8, 1)


def toy_data(train_size: int = 48, validation_size: int = 10) -> Data:
    """Images that are bright in one of three corners."""
    rng = np.random.default_rng(0)

    def split(size):
        labels = np.arange(size, dtype=np.int32) % CLASSES
        images = rng.uniform(0, 0.5, (size, *SHAPE)).astype(np.float32)
        for image, label in zip(images, labels):
            image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 0.4
        return images, labels

    splits = {"train": split(train_size), "validation": split(validation_size), "test": split(12)}

    def batches(name, batch_size, seed=None, epoch=0, start=0):
        # Grain's shuffle takes half a millisecond an image for sets as small as these.
        images, labels = splits[name]
        order = np.arange(len(labels))
        if seed is not None:
            np.random.default_rng([seed, epoch]).shuffle(order)
        whole = len(order) // batch_size if seed is not None else -(-len(order) // batch_size)
        for number in range(start, whole):
            chosen = order[number * batch_size :][:batch_size]
            weight = np.zeros(batch_size, np.float32)
            weight[: len(chosen)] = 1
            padded = np.pad(chosen, (0, batch_size - len(chosen)), mode="edge")
            yield {"image": images[padded], "label": labels[padded], "weight": weight}

    sizes = {name: len(labels) for name, (_, labels) in splits.items()}
    return Data("toy", SHAPE, CLASSES, sizes, batches)


class Tiny(nnx.Module):
    """A residual block with norms, and a dense layer: two groups."""

    def __init__(self, classes, channels, dtype, rngs: nnx.Rngs):
        self.conv1 = layers.conv(channels, 8, 3, dtype, rngs, stride=2)
        self.norm1 = layers.norm(8, rngs)
        self.conv2 = layers.conv(8, 12, 3, dtype, rngs)
        self.norm2 = layers.norm(12, rngs)
        self.conv3 = layers.conv(12, 8, 3, dtype, rngs)
        self.norm3 = layers.norm(8, rngs)
        self.fc = layers.dense(8, classes, dtype, rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(x)))
        x = nnx.relu(x + self.norm3(self.conv3(y)))
        return self.fc(layers.global_average(x))


def tiny(classes, shape, dtype) -> zoo.Net:
    """As `tests.toys:tiny` on the command line."""
    return zoo.from_nnx(lambda rngs: Tiny(classes, shape[2], dtype, rngs), shape)


def running(classes, shape, dtype) -> zoo.Net:
    """Two dense layers with a running sum over the channels between them."""
    sizes = {"first": (int(np.prod(shape)), 16), "second": (16, classes)}

    def init(key):
        draw = lambda name: 0.1 * jax.random.normal(jax.random.fold_in(key, len(name)), sizes[name])
        return {"params": {name: draw(name) for name in sizes}, "stats": {}}

    def fn(variables, x):
        hidden = jax.nn.softplus(x.reshape(x.shape[0], -1) @ variables["params"]["first"])
        return jnp.cumsum(hidden, -1) @ variables["params"]["second"]

    train_fn = lambda variables, x, key: (fn(variables, x), variables["stats"])
    return zoo.Net("running", init, fn, train_fn, jax.ShapeDtypeStruct((1, *shape), dtype))


def toy_task(model: str = "tiny", dtype=jnp.float32, **sizes: int) -> Task:
    make = tiny if model == "tiny" else partial(zoo.build, model)
    net = make(classes=CLASSES, shape=SHAPE, dtype=dtype)
    return train.task(net, toy_data(**sizes))


def drawn(task: Task):
    """Variables drawn by NumPy: a net's own `init` takes seconds to compile."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim > 1:
            values = rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            values = np.full(leaf.shape, path[-1].key in ("scale", "var"))
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(task.init, jax.random.key(0)))


def equal(a, b) -> bool:
    """Whether two trees are the same, bit for bit."""
    same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(jax.tree.leaves(same))

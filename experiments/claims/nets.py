"""Nets of claims that the zoo does not have."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.claims.claim import Shape
from jprune import zoo
from jprune.zoo import layers

WIDTHS = (16, 16, 32, 32, 32, 48, 48, 48)
STRIDES = (1, 1, 2, 1, 1, 2, 1, 1)
"""Of CifarNet's convolutions."""


class Dense(nnx.Module):
    """Dense layers with ReLU between."""

    def __init__(self, widths: Sequence[int], rngs: nnx.Rngs):
        float32, pairs = jnp.dtype("float32"), itertools.pairwise(widths)
        made = [layers.dense(inputs, outputs, float32, rngs) for inputs, outputs in pairs]
        self.names = layers.number(self, "fc", made)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> logits."""
        x = x.reshape(x.shape[0], -1)
        for name in self.names[:-1]:
            x = nnx.relu(getattr(self, name)(x))
        return getattr(self, self.names[-1])(x)


def dense(name: str, *hidden: int) -> Callable[[Shape, int], zoo.Net]:
    """Makes a net of some hidden layers."""
    return lambda shape, classes: zoo.from_nnx(
        lambda rngs: Dense((int(np.prod(shape)), *hidden, classes), rngs), shape, name=name
    )


class CifarNet(nnx.Module):
    """M-CifarNet at a quarter of its widths: eight convolutions with norms, the first unpadded."""

    def __init__(self, classes: int, channels: int, rngs: nnx.Rngs):
        float32, made = jnp.dtype("float32"), []
        for inputs, outputs, stride in zip((channels, *WIDTHS), WIDTHS, STRIDES):
            padding = None if made else "VALID"
            conv = layers.conv(inputs, outputs, 3, float32, rngs, stride=stride, padding=padding)
            made.append(Layer(conv, layers.norm(outputs, rngs)))
        self.layers = layers.number(self, "layer", made)
        self.fc = layers.dense(WIDTHS[-1], classes, float32, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> logits [batch, classes]."""
        return self.fc(layers.global_average(layers.chain(self, self.layers, x)))


class Layer(nnx.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, conv: nnx.Conv, norm: nnx.Module):
        self.conv, self.norm = conv, norm

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> [batch, h', w', outputs]."""
        return nnx.relu(self.norm(self.conv(x)))


def cifarnet(shape: Shape, classes: int) -> zoo.Net:
    """CifarNet for images of a shape."""
    return zoo.from_nnx(lambda rngs: CifarNet(classes, shape[2], rngs), shape)


class Normed(nnx.Module):
    """LeNet-5 with a batch norm and ReLU behind every hidden layer; small images are padded."""

    def __init__(self, shape: Shape, classes: int, rngs: nnx.Rngs):
        dtype = jnp.dtype("float32")
        padding = None if min(shape[:2]) < 16 else 0
        self.conv1 = layers.conv(shape[2], 20, 5, dtype, rngs, padding=padding)
        self.norm1 = layers.norm(20, rngs)
        self.conv2 = layers.conv(20, 50, 5, dtype, rngs, padding=padding)
        self.norm2 = layers.norm(50, rngs)
        after = lambda size: size // 4 if padding is None else ((size - 4) // 2 - 4) // 2
        pixels = after(shape[0]) * after(shape[1])
        self.fc1 = layers.dense(50 * pixels, 500, dtype, rngs)
        self.norm3 = layers.norm(500, rngs)
        self.fc2 = layers.dense(500, classes, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> logits."""
        x = layers.max_pool(nnx.relu(self.norm1(self.conv1(x))))
        x = layers.max_pool(nnx.relu(self.norm2(self.conv2(x))))
        x = nnx.relu(self.norm3(self.fc1(x.reshape(x.shape[0], -1))))
        return self.fc2(x)


def normed(shape: Shape, classes: int) -> zoo.Net:
    """The net for images of a shape."""
    return zoo.from_nnx(lambda rngs: Normed(shape, classes, rngs), shape, name="lenet5_bn")

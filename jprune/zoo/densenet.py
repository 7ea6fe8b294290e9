"""DenseNet-40 for CIFAR.

References:
    Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, 2017,
    arXiv:1608.06993, the form without bottlenecks and compression.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jprune.zoo import layers

STAGES = 3
LAYERS = 12


class DenseLayer(nnx.Module):
    """BN, ReLU, 3 x 3 convolution; the result is appended to the input's channels.

    Args:
        inputs: channels that come in.
        growth: channels that are added.
        dtype: compute type.
        rngs: source of the initial values.
    """

    def __init__(self, inputs: int, growth: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = layers.norm(inputs, rngs)
        self.conv = layers.conv(inputs, growth, 3, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, inputs] -> [batch, h, w, inputs + growth]."""
        return jnp.concatenate([x, self.conv(nnx.relu(self.norm(x)))], axis=-1)


class Transition(nnx.Module):
    """BN, ReLU, 1 x 1 convolution, 2 x 2 mean.

    Args:
        channels: in and out.
        dtype: compute type.
        rngs: source of the initial values.
    """

    def __init__(self, channels: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = layers.norm(channels, rngs)
        self.conv = layers.conv(channels, channels, 1, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, channels] -> [batch, h // 2, w // 2, channels]."""
        return layers.average_pool(self.conv(nnx.relu(self.norm(x))))


class DenseNet40(nnx.Module):
    """Three stages of twelve layers, each of which sees all before it; 1,019,722 parameters.

    Args:
        classes: number of outputs.
        shape: (height, width, channels) of an image; at least 4 x 4.
        dtype: compute type.
        rngs: source of the initial values.
        growth: channels that every layer adds, the paper's k.
        stem: filters of the first convolution. The paper has 16; pruning papers often have 24
            (1,059,298 parameters).
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, int, int],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        growth: int = 12,
        stem: int = 16,
    ):
        layers.require_side("densenet40", shape, 4, "lenet300")
        # x_l = [x_(l-1), H_l(x_(l-1))]: channels grow by k at every layer, and a transition keeps
        # their number.
        steps: list[nnx.Module] = []
        channels = stem
        for stage in range(STAGES):
            # Between stages only: the first begins at the stem, the last ends in the mean.
            if stage:
                steps.append(Transition(channels, dtype, rngs))
            for _ in range(LAYERS):
                steps.append(DenseLayer(channels, growth, dtype, rngs))
                channels += growth
        self.conv1 = layers.conv(shape[2], stem, 3, dtype, rngs)
        self.steps = layers.number(self, "step", steps)
        # Layers normalise what they read, so the last result needs a normalisation of its own.
        self.norm = layers.norm(channels, rngs)
        self.fc = layers.dense(channels, classes, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> logits [batch, classes]."""
        x = layers.chain(self, self.steps, self.conv1(x))
        return self.fc(layers.global_average(nnx.relu(self.norm(x))))

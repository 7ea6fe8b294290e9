"""ResNet-50 for ImageNet.

References:
    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016, arXiv:1512.03385. As in
    torchvision and most papers since, a stage's stride is at its first 3 x 3 convolution ("v1.5",
    4.09 GMACs); the paper has it at the 1 x 1 before (3.86 GMACs).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jprune.zoo import layers

BLOCKS = (3, 4, 6, 3)
EXPANSION = 4


class Bottleneck(nnx.Module):
    """1 x 1 down, 3 x 3, 1 x 1 up, each with BN, ReLU between; the shortcut is added, then a ReLU.

    Args:
        inputs: channels that come in.
        width: channels inside; four times as many go out.
        stride: of the 3 x 3 convolution and of the shortcut.
        dtype: compute type.
        rngs: source of the initial values.
    """

    def __init__(self, inputs: int, width: int, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        outputs = EXPANSION * width
        # The first block of every stage, also of the first: 64 channels come in, 256 go out.
        self.projects = stride > 1 or inputs != outputs
        self.conv1 = layers.conv(inputs, width, 1, dtype, rngs)
        self.norm1 = layers.norm(width, rngs)
        self.conv2 = layers.conv(width, width, 3, dtype, rngs, stride=stride)
        self.norm2 = layers.norm(width, rngs)
        self.conv3 = layers.conv(width, outputs, 1, dtype, rngs)
        self.norm3 = layers.norm(outputs, rngs)
        if self.projects:
            self.conv4 = layers.conv(inputs, outputs, 1, dtype, rngs, stride=stride)
            self.norm4 = layers.norm(outputs, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, inputs] -> [batch, ceil(h / stride), ceil(w / stride), 4 width]."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.projects:
            x = self.norm4(self.conv4(x))
        return nnx.relu(x + y)


class ResNet50(nnx.Module):
    """A 7 x 7 convolution, a pool, sixteen bottlenecks; 25,557,032 parameters at 1000 classes.

    Args:
        classes: number of outputs.
        shape: (height, width, channels) of an image; any, 224 x 224 in the original.
        dtype: compute type.
        rngs: source of the initial values.
    """

    def __init__(self, classes: int, shape: tuple[int, int, int], dtype: jnp.dtype, rngs: nnx.Rngs):
        blocks = []
        inputs = 64
        for stage, repeats in enumerate(BLOCKS):
            # 64, 128, 256, 512 inside; four times as many between blocks.
            width = 64 * 2**stage
            for position in range(repeats):
                stride = 2 if stage and not position else 1
                blocks.append(Bottleneck(inputs, width, stride, dtype, rngs))
                inputs = EXPANSION * width
        self.conv1 = layers.conv(shape[2], 64, 7, dtype, rngs, stride=2)
        self.norm1 = layers.norm(64, rngs)
        self.blocks = layers.number(self, "block", blocks)
        self.fc = layers.dense(inputs, classes, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> logits [batch, classes]."""
        x = nnx.relu(self.norm1(self.conv1(x)))
        # Padded by one on all sides, as torch does: 112 -> 56.
        x = layers.max_pool(x, size=3, padding=((1, 1), (1, 1)))
        x = layers.chain(self, self.blocks, x)
        return self.fc(layers.global_average(x))

"""VGG-16 with batch normalisation, in the form that pruning papers use for CIFAR.

References:
    Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, 2015,
    arXiv:1409.1556. The CIFAR form (no bias, one dense layer) is that of Liu et al.: Learning
    Efficient Convolutional Networks through Network Slimming, 2017, arXiv:1708.06519.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jprune.zoo import layers

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nnx.Module):
    """Thirteen 3 x 3 convolutions in five stages, each with BN and ReLU; 14,724,042 parameters.

    A maximum pool stands between stages, the mean over all pixels at the end, then one dense layer
    512 -> classes.

    Args:
        classes: number of outputs.
        shape: (height, width, channels) of an image; at least 16 x 16.
        dtype: compute type.
        rngs: source of the initial values.
    """

    def __init__(self, classes: int, shape: tuple[int, int, int], dtype: jnp.dtype, rngs: nnx.Rngs):
        layers.require_side("vgg16", shape, 16, "resnet8 or resnet20")
        # Layers are numbered through, conv1 ... conv13, as papers name them.
        widths = [width for stage in STAGES for width in stage]
        inputs = [shape[2], *widths[:-1]]
        self.convs = layers.number(
            self, "conv", (layers.conv(a, b, 3, dtype, rngs) for a, b in zip(inputs, widths))
        )
        self.norms = layers.number(self, "norm", (layers.norm(width, rngs) for width in widths))
        self.fc = layers.dense(widths[-1], classes, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> logits [batch, classes]."""
        # The pools have no name of their own: they stand between stages, where the number of layers
        # differs.
        names = iter(zip(self.convs, self.norms))
        for position, stage in enumerate(STAGES):
            if position:
                x = layers.max_pool(x)
            for _ in stage:
                conv, norm = next(names)
                x = nnx.relu(layers.chain(self, (conv, norm), x))
        return self.fc(layers.global_average(x))

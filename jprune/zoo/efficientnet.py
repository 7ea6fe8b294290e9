"""EfficientNet-Lite0.

References:
    Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019,
    arXiv:1905.11946. The Lite form, with ReLU6 and without squeeze-and-excitation, is that of the
    authors' repository, tensorflow/tpu, models/official/efficientnet/lite (2020).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jprune.zoo import layers
from jprune.zoo.mobilenet import InvertedResidual

STAGES = (
    # expansion, kernel side, channels, blocks, stride of the first block
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
# TensorFlow's default, which the published weights were trained with; torch's is 1e-5.
EPSILON = 1e-3


class EfficientNetLite0(nnx.Module):
    """Sixteen inverted residuals between two convolutions; 4,652,008 parameters at 1000 classes.

    Padding is TensorFlow's SAME (at stride 2 one pixel more after than before), as the published
    weights want. The dropout before the last layer is left out.

    Args:
        classes: number of outputs.
        shape: (height, width, channels) of an image; any, 224 x 224 in the original.
        dtype: compute type.
        rngs: source of the initial values.
    """

    def __init__(self, classes: int, shape: tuple[int, int, int], dtype: jnp.dtype, rngs: nnx.Rngs):
        blocks = []
        inputs = 32
        for expansion, size, outputs, repeats, stride in STAGES:
            for position in range(repeats):
                blocks.append(
                    InvertedResidual(
                        inputs,
                        outputs,
                        expansion,
                        # A stage's stride stands at its first block: the others add their input, so
                        # shapes must agree.
                        1 if position else stride,
                        dtype,
                        rngs,
                        size=size,
                        padding="SAME",
                        epsilon=EPSILON,
                    )
                )
                inputs = outputs
        self.conv1 = layers.conv(shape[2], 32, 3, dtype, rngs, stride=2, padding="SAME")
        self.norm1 = layers.norm(32, rngs, EPSILON)
        self.blocks = layers.number(self, "block", blocks)
        # The Lite forms fix stem and head: 32 and 1280 filters, whatever the stages have.
        self.conv2 = layers.conv(inputs, 1280, 1, dtype, rngs)
        self.norm2 = layers.norm(1280, rngs, EPSILON)
        self.fc = layers.dense(1280, classes, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> logits [batch, classes]."""
        x = nnx.relu6(self.norm1(self.conv1(x)))
        x = layers.chain(self, self.blocks, x)
        x = nnx.relu6(self.norm2(self.conv2(x)))
        return self.fc(layers.global_average(x))

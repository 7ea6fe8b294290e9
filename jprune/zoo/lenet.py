"""The two LeNets of the pruning papers.

References:
    LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, 1998.
    The 20-50-500 form is that of Caffe's MNIST example (Jia et al., 2014, arXiv:1408.5093).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jprune.zoo import layers


class LeNet300(nnx.Module):
    """LeNet-300-100: three dense layers with ReLU between; 266,610 parameters on MNIST.

    Args:
        classes: number of outputs.
        shape: (height, width, channels) of an image; any.
        dtype: compute type.
        rngs: source of the initial values.
        dropout: rate behind both hidden layers, in training; 0: none.
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, int, int],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        dropout: float = 0.0,
    ):
        self.fc1 = layers.dense(math.prod(shape), 300, dtype, rngs, dropout)
        self.fc2 = layers.dense(300, 100, dtype, rngs, dropout)
        self.fc3 = layers.dense(100, classes, dtype, rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[batch, h, w, c] -> logits [batch, classes]; a key switches dropout on."""
        # One key for each dropout: with the same one, both layers would drop correlated units.
        keys = (None, None) if key is None else jax.random.split(key)
        x = x.reshape(x.shape[0], -1)
        x = self.fc1.dropped(nnx.relu(self.fc1(x)), keys[0])
        x = self.fc2.dropped(nnx.relu(self.fc2(x)), keys[1])
        return self.fc3(x)


class LeNet5(nnx.Module):
    """LeNet-5 as in Caffe: conv 20, pool, conv 50, pool, fc 500, ReLU, fc; 431,080 parameters.

    Convolutions are 5 x 5 without padding, pools take the maximum of 2 x 2. Caffe's net, on which
    most papers' figures stand, has **no** ReLU after the convolutions; that is the default here.

    Args:
        classes: number of outputs.
        shape: (height, width, channels) of an image; at least 16 x 16.
        dtype: compute type.
        rngs: source of the initial values.
        conv_relu: ReLU after both convolutions. Methods that count the zero activations of a
            convolution (Network Trimming, [6]) need it.
        dropout: rate behind fc1, in training; 0: none.
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, int, int],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        conv_relu: bool = False,
        dropout: float = 0.0,
    ):
        layers.require_side("lenet5", shape, 16, "lenet300 or resnet8")
        # side -> (side - 4) a 5 x 5 convolution without padding -> half of it a pool, twice: 28 ->
        # 12 -> 4.
        height, width = (((side - 4) // 2 - 4) // 2 for side in shape[:2])
        self.conv1 = layers.conv(shape[2], 20, 5, dtype, rngs, padding="VALID", bias=True)
        self.conv2 = layers.conv(20, 50, 5, dtype, rngs, padding="VALID", bias=True)
        self.fc1 = layers.dense(height * width * 50, 500, dtype, rngs, dropout)
        self.fc2 = layers.dense(500, classes, dtype, rngs)
        # A branch of Python, so a net without the ReLU has no trace of it in its program.
        self.activation = nnx.relu if conv_relu else nnx.identity

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[batch, h, w, c] -> logits [batch, classes]; a key switches dropout on."""
        x = layers.max_pool(self.activation(self.conv1(x)))
        x = layers.max_pool(self.activation(self.conv2(x)))
        # [batch, h, w, 50] -> [batch, h w 50], channels last: unit c of conv2 is read at c, c + 50,
        # ...
        x = x.reshape(x.shape[0], -1)
        return self.fc2(self.fc1.dropped(nnx.relu(self.fc1(x)), key))

"""Residual nets for CIFAR: ResNet-8, 20, 32, 44, 56, 110.

References:
    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016, arXiv:1512.03385,
    section 4.2 (three stages of 16, 32, 64 filters, depth 6 n + 2).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jprune import errors
from jprune.zoo import layers


class Block(nnx.Module):
    """conv, BN, ReLU, conv, BN, then the shortcut is added and a ReLU follows.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution and of the shortcut.
        shortcut: "A" or "B", see `CifarResNet`.
        dtype: compute type.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        shortcut: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.outputs = outputs
        self.stride = stride
        # Option B projects where the shape changes; option A has no parameters anywhere.
        self.projects = shortcut == "B" and (stride > 1 or inputs != outputs)
        self.conv1 = layers.conv(inputs, outputs, 3, dtype, rngs, stride=stride)
        self.norm1 = layers.norm(outputs, rngs)
        self.conv2 = layers.conv(outputs, outputs, 3, dtype, rngs)
        self.norm2 = layers.norm(outputs, rngs)
        if self.projects:
            self.conv3 = layers.conv(inputs, outputs, 1, dtype, rngs, stride=stride)
            self.norm3 = layers.norm(outputs, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, inputs] -> [batch, ceil(h / stride), ceil(w / stride), outputs]."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.projects:
            x = self.norm3(self.conv3(x))
        else:
            x = subsample_and_pad(x, self.stride, self.outputs)
        # y = ReLU(F(x) + shortcut(x)), equations 1 and 2: the ReLU comes after the sum.
        return nnx.relu(x + y)


def subsample_and_pad(x: jax.Array, stride: int, channels: int) -> jax.Array:
    """The option-A shortcut: every `stride`-th pixel, zero channels half before and half after.

    Args:
        x: [batch, h, w, c]; returned as it is where nothing changes.
        stride: 1 or more.
        channels: number of channels wanted, at least those of `x`.

    Returns:
        [batch, ceil(h / stride), ceil(w / stride), channels].

    Example:
        >>> subsample_and_pad(jnp.ones((1, 4, 4, 2)), 2, 4)[0, 0, 0].tolist()
        [0.0, 1.0, 1.0, 0.0]
    """
    if stride > 1:
        # A strided slice and a pad, no gather: every channel that stays keeps its place.
        x = jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1))
    missing = channels - x.shape[-1]
    if missing:
        # Half on either side, as in the project whose trained weights `pretrained.py` reads.
        before = missing // 2
        x = jax.lax.pad(
            x,
            jnp.zeros((), x.dtype),
            [(0, 0, 0), (0, 0, 0), (0, 0, 0), (before, missing - before, 0)],
        )
    return x


class CifarResNet(nnx.Module):
    """Three stages of `width`, 2 `width` and 4 `width` filters; 269,722 parameters at depth 20.

    Args:
        classes: number of outputs.
        shape: (height, width, channels) of an image; any.
        dtype: compute type.
        rngs: source of the initial values.
        depth: 6 n + 2: 8, 20, 32, 44, 56, 110.
        shortcut: where the stream changes its shape, "A" takes every second pixel and pads zero
            channels (no parameters; the choice for CIFAR), "B" is a 1 x 1 convolution with BN.
        width: filters of the first stage.

    Raises:
        ArgumentError: `depth`, `shortcut` or `width` is none of these.
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, int, int],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        depth: int,
        shortcut: str = "A",
        width: int = 16,
    ):
        if depth < 8 or (depth - 2) % 6:
            raise errors.ArgumentError(f"CifarResNet got depth {depth}; write 6 n + 2, such as 20.")
        if shortcut not in ("A", "B"):
            raise errors.ArgumentError(
                f'A CIFAR ResNet got shortcut={shortcut!r}; write "A" (subsample and pad) or "B" '
                "(1 x 1 convolution)."
            )
        if width < 1:
            raise errors.ArgumentError(
                f"A CIFAR ResNet got width={width}; write 16, or 1 at least."
            )
        blocks = []
        inputs = width
        for stage, outputs in enumerate((width, 2 * width, 4 * width)):
            for position in range((depth - 2) // 6):
                # The first block of the second and third stage halves the sides: 32, 16, 8.
                stride = 2 if stage and not position else 1
                blocks.append(Block(inputs, outputs, stride, shortcut, dtype, rngs))
                inputs = outputs
        self.conv1 = layers.conv(shape[2], width, 3, dtype, rngs)
        self.norm1 = layers.norm(width, rngs)
        self.blocks = layers.number(self, "block", blocks)
        self.fc = layers.dense(inputs, classes, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> logits [batch, classes]."""
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = layers.chain(self, self.blocks, x)
        return self.fc(layers.global_average(x))

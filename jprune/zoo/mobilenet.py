"""MobileNetV2, for ImageNet and for CIFAR.

References:
    Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted Residuals and Linear Bottlenecks,
    2018, arXiv:1801.04381.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jprune import errors
from jprune.zoo import layers

STAGES = (
    # expansion, channels, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nnx.Module):
    """1 x 1 up, depthwise, 1 x 1 down; added to the input where the shape stays.

    ReLU6 after the first two, nothing after the last. Without expansion the first is left out.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        expansion: hidden channels as a multiple of `inputs`.
        stride: of the depthwise convolution.
        dtype: compute type.
        rngs: source of the initial values.
        size: side of the depthwise kernel.
        padding: of the depthwise convolution; None pads `size // 2` on all sides.
        epsilon: of the batch normalisations.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        stride: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        *,
        size: int = 3,
        padding: str | None = None,
        epsilon: float = 1e-5,
    ):
        hidden = expansion * inputs
        self.expands = expansion > 1
        # The paper's rule: no shortcut where the shape changes, not even a projection.
        self.adds = stride == 1 and inputs == outputs
        if self.expands:
            self.expand = layers.conv(inputs, hidden, 1, dtype, rngs)
            self.norm1 = layers.norm(hidden, rngs, epsilon)
        self.depthwise = layers.conv(
            # groups = channels: every filter reads its own channel alone; the kernel is [size,
            # size, 1, hidden].
            hidden,
            hidden,
            size,
            dtype,
            rngs,
            stride=stride,
            groups=hidden,
            padding=padding,
        )
        self.norm2 = layers.norm(hidden, rngs, epsilon)
        self.project = layers.conv(hidden, outputs, 1, dtype, rngs)
        self.norm3 = layers.norm(outputs, rngs, epsilon)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, inputs] -> [batch, h / stride, w / stride, outputs]."""
        y = nnx.relu6(self.norm1(self.expand(x))) if self.expands else x
        y = nnx.relu6(self.norm2(self.depthwise(y)))
        # A linear bottleneck: no ReLU here, where it would lose information (section 3.2 of the
        # paper).
        y = self.norm3(self.project(y))
        return x + y if self.adds else y


class MobileNetV2(nnx.Module):
    """Seventeen inverted residuals between two convolutions; 3,504,872 parameters at 1000 classes.

    The paper's dropout before the last layer is left out.

    Args:
        classes: number of outputs.
        shape: (height, width, channels) of an image; any.
        dtype: compute type.
        rngs: source of the initial values.
        form: "imagenet" divides the sides by 32; "cifar" leaves out the strides of the first
            convolution and of the second stage, so that 32 x 32 images end as 4 x 4; "auto" takes
            "cifar" for images of at most 64 x 64.

    Raises:
        ArgumentError: `form` is none of these.
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, int, int],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        form: str = "auto",
    ):
        if form not in ("auto", "cifar", "imagenet"):
            raise errors.ArgumentError(
                f'mobilenetv2 got form={form!r}; write "auto", "cifar" or "imagenet".'
            )
        small = form == "cifar" or (form == "auto" and max(shape[:2]) <= 64)
        blocks = []
        inputs = 32
        for stage, (expansion, outputs, repeats, stride) in enumerate(STAGES):
            for position in range(repeats):
                # On small images only stages 3, 4 and 6 halve the sides: 32 -> 16 -> 8 -> 4.
                first = 1 if position or (small and stage == 1) else stride
                blocks.append(InvertedResidual(inputs, outputs, expansion, first, dtype, rngs))
                inputs = outputs
        self.conv1 = layers.conv(shape[2], 32, 3, dtype, rngs, stride=1 if small else 2)
        self.norm1 = layers.norm(32, rngs)
        self.blocks = layers.number(self, "block", blocks)
        self.conv2 = layers.conv(inputs, 1280, 1, dtype, rngs)
        self.norm2 = layers.norm(1280, rngs)
        self.fc = layers.dense(1280, classes, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] -> logits [batch, classes]."""
        x = nnx.relu6(self.norm1(self.conv1(x)))
        x = layers.chain(self, self.blocks, x)
        x = nnx.relu6(self.norm2(self.conv2(x)))
        return self.fc(layers.global_average(x))

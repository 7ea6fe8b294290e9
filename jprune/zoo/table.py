"""The names of the nets, and `build`."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jprune import errors
from jprune.zoo.densenet import DenseNet40
from jprune.zoo.efficientnet import EfficientNetLite0
from jprune.zoo.flax_nets import from_nnx
from jprune.zoo.lenet import LeNet5, LeNet300
from jprune.zoo.mobilenet import MobileNetV2
from jprune.zoo.net import Net
from jprune.zoo.resnet import CifarResNet
from jprune.zoo.resnet_imagenet import ResNet50
from jprune.zoo.vgg import VGG16

NETS: dict[str, Callable[..., nnx.Module]] = {
    "lenet300": LeNet300,
    "lenet5": LeNet5,
    "vgg16": VGG16,
    "resnet8": partial(CifarResNet, depth=8),
    "resnet20": partial(CifarResNet, depth=20),
    "resnet32": partial(CifarResNet, depth=32),
    "resnet44": partial(CifarResNet, depth=44),
    "resnet56": partial(CifarResNet, depth=56),
    "resnet110": partial(CifarResNet, depth=110),
    "densenet40": DenseNet40,
    "mobilenetv2": MobileNetV2,
    "efficientnet_lite0": EfficientNetLite0,
    "resnet50": ResNet50,
}
COMMON = ("classes", "shape", "dtype", "rngs")


def names() -> tuple[str, ...]:
    """Names that `build` and the command line take.

    Example:
        >>> names()[:3]
        ('lenet300', 'lenet5', 'vgg16')
    """
    return tuple(NETS)


def options(name: str) -> tuple[str, ...]:
    """Names of the options that a net takes beyond those of every net.

    Example:
        >>> options("resnet20")
        ('shortcut', 'width')
    """
    maker = _maker(name)
    kind, fixed = (maker.func, maker.keywords) if isinstance(maker, partial) else (maker, {})
    taken = inspect.signature(kind.__init__).parameters  # the class itself shows NNX's metaclass
    return tuple(option for option in taken if option not in ("self", *COMMON, *fixed))


def build(
    name: str,
    classes: int = 10,
    shape: tuple[int, int, int] = (32, 32, 3),
    dtype: Any = jnp.float32,
    **chosen: Any,
) -> Net:
    """Builds a net of the zoo.

    Args:
        name: one of `names()`.
        classes: number of outputs.
        shape: (height, width, channels) of one image.
        dtype: compute type, float32 or bfloat16. Parameters, statistics and logits are float32.
        **chosen: options of the family, such as `shortcut="B"`; `options(name)` lists them and the
            family's class explains them.

    Returns:
        The net.

    Raises:
        ArgumentError: an unknown name or option, another type, or images that the net cannot take.

    Example:
        >>> net = build("resnet8", shape=(8, 8, 1))
        >>> net.example.shape
        (1, 8, 8, 1)
    """
    # Compared here, or a wrong keyword would be a TypeError from deep inside Flax.
    maker = _maker(name)
    unknown = sorted(set(chosen) - set(options(name)))
    if unknown:
        raise errors.ArgumentError(
            f"{name} has no option {', '.join(unknown)}; it takes "
            f"{', '.join(options(name)) or 'none beyond classes, shape and dtype'}."
        )
    if classes < 1:
        raise errors.ArgumentError(f"{name} got classes={classes}; write the number of outputs.")
    shape = check_shape(shape)
    # `rngs` is left open: the net is built once on shapes, then once for every `init`.
    make = partial(maker, classes=classes, shape=shape, dtype=check_dtype(dtype), **chosen)
    return from_nnx(make, shape, name=name)


def check_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Checks the shape of an image and returns it as integers.

    Raises:
        ArgumentError: it is not three positive integers.
    """
    if len(shape) != 3 or any(side < 1 for side in shape):
        raise errors.ArgumentError(
            f"shape={tuple(shape)} is no image; write (height, width, channels), such as "
            "(32, 32, 3)."
        )
    height, width, channels = shape
    return int(height), int(width), int(channels)


def check_dtype(dtype: Any) -> jnp.dtype:
    """Checks a compute type and returns it as a `jnp.dtype`.

    Raises:
        ArgumentError: it is neither float32 nor bfloat16.
    """
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise errors.ArgumentError(
            f"dtype={dtype} is no compute type of the zoo; write jnp.float32 or jnp.bfloat16 "
            "(parameters stay float32 with both)."
        )
    return jnp.dtype(dtype)


def _maker(name: str) -> Callable[..., nnx.Module]:
    """The constructor behind a name."""
    if name not in NETS:
        hint = errors.nearest(name, NETS)
        raise errors.ArgumentError(
            f"There is no net {name!r}; {hint}The zoo has {', '.join(NETS)}. For a net of your own "
            "write module:callable."
        )
    return NETS[name]

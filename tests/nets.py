"""One zoo of small nets for all tests of the engine: plain functions, all axis sizes different.

`Net.groups` is the number of units of every group, derived by hand. Parameters, biases and
statistics are random, so that nothing passes by accident.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NHWC = ("NHWC", "HWIO", "NHWC")


class Net(NamedTuple):
    """A net to test with."""

    name: str
    fn: Callable[..., Any]
    shapes: dict[str, Any]
    """Shapes of the variables; names that end in `var` are drawn positive."""
    inputs: tuple[tuple[int, ...], ...]
    groups: dict[str, int]
    """{group: units}."""
    bound: float = 1e-5
    """Of the law, in the net's own precision."""


def draw(net: Net, seed: int = 0, dtype: Any = jnp.float32) -> tuple[Any, tuple[Any, ...]]:
    """Random variables and inputs."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        fan = max(1, int(np.prod(shape[:-1])))
        value = rng.normal(size=shape) / np.sqrt(fan) if len(shape) > 1 else rng.normal(size=shape)
        return jnp.asarray(np.abs(value) + 0.5 if name.endswith("var") else value, dtype)

    is_shape = lambda node: isinstance(node, tuple)
    variables = jax.tree_util.tree_map_with_path(leaf, net.shapes, is_leaf=is_shape)
    return variables, tuple(jnp.asarray(rng.normal(size=s), dtype) for s in net.inputs)


def conv(x, kernel, stride=1, padding="SAME", groups=1, dilation=1):
    """NHWC convolution."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * 2,
        padding,
        rhs_dilation=(dilation,) * 2,
        dimension_numbers=NHWC,
        feature_group_count=groups,
    )


def norm(x, p):
    """Batch norm in inference mode."""
    return (x - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-3) * p["scale"] + p["shift"]


def norm_shapes(width):
    """Shapes for `norm`."""
    return {"mean": (width,), "var": (width,), "scale": (width,), "shift": (width,)}


def pool(x):
    """2x2 max pooling."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def head(x, v):
    """Global average pooling and a dense layer."""
    return x.mean((1, 2)) @ v["head"]["kernel"] + v["head"]["bias"]


def head_shapes(width):
    """Shapes for `head`."""
    return {"kernel": (width, 4), "bias": (4,)}


def lenet(v, x):
    """Convolutions, flatten, dense."""
    x = pool(jnp.tanh(conv(x, v["conv1"]["kernel"]) + v["conv1"]["bias"]))
    x = pool(jax.nn.relu(conv(x, v["conv2"]["kernel"]) + v["conv2"]["bias"]))
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.sigmoid(x @ v["dense1"]["kernel"] + v["dense1"]["bias"])
    return x @ v["dense2"]["kernel"] + v["dense2"]["bias"]


def vgg(v, x):
    """Convolutions with batch norm."""
    for name in ("1", "2", "3"):
        x = jax.nn.relu(norm(conv(x, v["conv" + name]), v["norm" + name]))
    return head(jax.nn.softplus(pool(x)), v)


def resnet_identity(v, x):
    """Two residual blocks on one stream."""
    x = jax.nn.relu(norm(conv(x, v["stem"]), v["norm0"]))
    for name in ("a", "b"):
        h = jax.nn.sigmoid(norm(conv(x, v["conv1" + name]), v["norm1" + name]))
        x = jax.nn.relu(x + norm(conv(h, v["conv2" + name]), v["norm2" + name]))
    return head(x, v)


def resnet_projected(v, x):
    """A residual block with a projection."""
    x = jax.nn.relu(norm(conv(x, v["stem"]), v["norm0"]))
    h = jax.nn.gelu(norm(conv(x, v["conv1"], 2), v["norm1"]))
    h = norm(conv(h, v["conv2"]), v["norm2"])
    return head(jax.nn.relu(h + norm(conv(x, v["project"], 2), v["norm3"])), v)


def resnet_padded(v, x):
    """Option A: the shortcut skips pixels and pads channels before and behind."""
    x = jax.nn.relu(conv(x, v["stem"]) + v["bias"])
    h = jnp.tanh(norm(conv(x, v["conv1"], 2), v["norm1"]))
    h = norm(conv(h, v["conv2"]), v["norm2"])
    x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 2)))
    return head(jax.nn.relu(h + x), v)


FIRST_CUT = [
    Net(
        "lenet",
        lenet,
        {
            "conv1": {"kernel": (3, 2, 3, 5), "bias": (5,)},
            "conv2": {"kernel": (3, 2, 5, 7), "bias": (7,)},
            "dense1": {"kernel": (2 * 3 * 7, 9), "bias": (9,)},
            "dense2": {"kernel": (9, 4), "bias": (4,)},
        },
        ((6, 8, 12, 3),),
        {"conv1/kernel": 5, "conv2/kernel": 7, "dense1/kernel": 9},
    ),
    Net(
        "vgg",
        vgg,
        {
            "conv1": (3, 3, 3, 5),
            "conv2": (3, 3, 5, 7),
            "conv3": (3, 3, 7, 6),
            "norm1": norm_shapes(5),
            "norm2": norm_shapes(7),
            "norm3": norm_shapes(6),
            "head": head_shapes(6),
        },
        ((2, 8, 10, 3),),
        {"conv1": 5, "conv2": 7, "conv3": 6},
    ),
    Net(
        "resnet_identity",
        resnet_identity,
        {
            "stem": (3, 3, 3, 8),
            "conv1a": (3, 3, 8, 5),
            "conv2a": (3, 3, 5, 8),
            "conv1b": (3, 3, 8, 6),
            "conv2b": (3, 3, 6, 8),
            "norm0": norm_shapes(8),
            "norm1a": norm_shapes(5),
            "norm2a": norm_shapes(8),
            "norm1b": norm_shapes(6),
            "norm2b": norm_shapes(8),
            "head": head_shapes(8),
        },
        ((2, 7, 9, 3),),
        {"stem": 8, "conv1a": 5, "conv1b": 6},
    ),
    Net(
        "resnet_projected",
        resnet_projected,
        {
            "stem": (3, 3, 3, 5),
            "conv1": (3, 3, 5, 6),
            "conv2": (3, 3, 6, 7),
            "project": (1, 1, 5, 7),
            "norm0": norm_shapes(5),
            "norm1": norm_shapes(6),
            "norm2": norm_shapes(7),
            "norm3": norm_shapes(7),
            "head": head_shapes(7),
        },
        ((2, 8, 10, 3),),
        {"stem": 5, "conv1": 6, "conv2": 7},
    ),
    Net(
        "resnet_padded",
        resnet_padded,
        {
            "stem": (3, 3, 3, 5),
            "bias": (5,),
            "conv1": (3, 3, 5, 6),
            "conv2": (3, 3, 6, 8),
            "norm1": norm_shapes(6),
            "norm2": norm_shapes(8),
            "head": head_shapes(8),
        },
        ((2, 8, 10, 3),),
        # Of the eight channels behind the join, one and two stand beside the stem's five: they are
        # groups of their own, since they touch other places.
        {"stem": 5, "conv1": 6, "conv2": 3},
    ),
]

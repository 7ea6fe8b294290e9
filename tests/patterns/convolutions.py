"""Kinds of convolutions and the blocks that are made of them."""

import jax
import jax.numpy as jnp

from tests.nets import Net, conv, head, head_shapes, norm, norm_shapes, pool


def preactivation(v, x):
    """Norm and nonlinearity before each convolution; the stream itself is linear."""
    x = conv(x, v["stem"])
    for name in ("a", "b"):
        h = conv(jax.nn.relu(norm(x, v["norm1" + name])), v["conv1" + name])
        x = x + conv(jax.nn.sigmoid(norm(h, v["norm2" + name])), v["conv2" + name])
    return head(jax.nn.softplus(norm(x, v["norm0"])), v)


def bottleneck(v, x):
    """1x1, 3x3, 1x1, and a projected shortcut."""
    x = jax.nn.relu(norm(conv(x, v["stem"]), v["norm0"]))
    h = jax.nn.sigmoid(norm(conv(x, v["conv1"]), v["norm1"]))
    h = jax.nn.relu(norm(conv(h, v["conv2"], 2), v["norm2"]))
    h = norm(conv(h, v["conv3"]), v["norm3"])
    return head(jax.nn.relu(h + norm(conv(x, v["project"], 2), v["norm4"])), v)


def inverted_residual(v, x):
    """Expand, depthwise, project, with a swish inside and squeeze-excite on the wide part."""
    x = norm(conv(x, v["stem"], 2), v["norm0"])
    h = jax.nn.silu(norm(conv(x, v["expand"]), v["norm1"]))
    h = jax.nn.relu6(norm(conv(h, v["depthwise"], groups=7), v["norm2"]))
    gate = h.mean((1, 2), keepdims=True)
    gate = jax.nn.relu(conv(gate, v["squeeze"]) + v["squeeze_bias"])
    h = h * jax.nn.sigmoid(conv(gate, v["excite"]) + v["excite_bias"])
    return head(jax.nn.sigmoid(x + norm(conv(h, v["project"]), v["norm3"])), v)


def spatial_gate(v, x):
    """A gate per pixel, one channel wide, and one per channel."""
    x = jax.nn.sigmoid(conv(x, v["a"]) + v["bias"])
    x = x * jax.nn.sigmoid(conv(x, v["pixels"]))
    gate = jax.nn.sigmoid(x.mean((1, 2)) @ v["channels"])
    return head(conv(x * gate[:, None, None, :], v["b"]), v)


def multiplier(v, x):
    """Depthwise with three outputs per channel."""
    x = jax.nn.sigmoid(conv(x, v["a"]) + v["bias"])
    x = jax.nn.relu(norm(conv(x, v["depthwise"], groups=5), v["norm"]))
    return head(conv(x, v["b"]), v)


def grouped(v, x):
    """Three groups of four inputs and five outputs each, then depthwise."""
    x = jax.nn.sigmoid(norm(conv(x, v["a"]), v["norm"]))
    x = jax.nn.relu(conv(x, v["grouped"], 2, groups=3) + v["bias"])
    return head(conv(x, v["b"]), v)


def grouped_input(v, x):
    """Groups on the network's input: only outputs, the same in every group, can go."""
    return head(conv(jax.nn.sigmoid(conv(x, v["a"], groups=2)), v["b"]), v)


def transposed(v, x):
    """Transposed and dilated convolutions."""
    x = jax.nn.sigmoid(conv(x, v["a"], dilation=2) + v["bias"])
    x = jax.lax.conv_transpose(
        x, v["up"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(norm(x, v["norm"]))
    x = jax.lax.conv_transpose(
        x,
        v["up2"],
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        transpose_kernel=True,
    )
    return head(jax.nn.tanh(x), v)


def one_dimensional(v, x):
    """Sequences: channels in the middle (NCW), kernels OIW."""
    numbers = ("NCW", "OIW", "NCW")
    x = jax.lax.conv_general_dilated(x, v["a"], (1,), "SAME", dimension_numbers=numbers)
    x = jax.nn.sigmoid(x + v["bias"][:, None])
    x = jax.lax.conv_general_dilated(
        x, v["b"], (2,), [(3, 0)], rhs_dilation=(2,), dimension_numbers=numbers
    )
    x = jax.nn.relu(x).reshape(x.shape[0], -1)
    return jax.nn.tanh(x @ v["dense"]) @ v["out"]


def three_dimensional(v, x):
    """Volumes."""
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    x = jax.lax.conv_general_dilated(x, v["a"], (1, 1, 1), "SAME", dimension_numbers=numbers)
    x = jax.nn.sigmoid(x * v["scale"] + v["bias"])
    x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 2, 1), (1, 2, 2, 2, 1), "VALID")
    x = jax.lax.conv_general_dilated(x, v["b"], (1, 1, 1), "VALID", dimension_numbers=numbers)
    return jax.nn.relu(x).mean((1, 2, 3)) @ v["dense"]


def dense_to_map(v, x):
    """A decoder: a dense layer makes a map, and convolutions make an image."""
    x = jax.nn.sigmoid(x @ v["dense"] + v["bias"]).reshape(x.shape[0], 2, 3, 5)
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return conv(jax.nn.relu(conv(x, v["a"]) + v["shift"]), v["b"])


def flattened(v, x):
    """NCHW activations, flattened: a channel is a run of the dense layer's inputs."""
    x = x.transpose(0, 3, 1, 2)
    numbers = ("NCHW", "OIHW", "NCHW")
    x = jax.lax.conv_general_dilated(x, v["a"], (1, 1), "SAME", dimension_numbers=numbers)
    x = jax.nn.sigmoid(x + v["bias"][:, None, None])
    return jnp.tanh(x.reshape(x.shape[0], -1) @ v["dense"]) @ v["out"]


def unet(v, x):
    """Down and up again, with joins across."""
    a = jax.nn.sigmoid(norm(conv(x, v["a"]), v["norm1"]))
    b = jax.nn.relu(conv(pool(a), v["b"]) + v["bias"])
    c = jax.nn.relu(norm(conv(pool(b), v["c"]), v["norm2"]))
    up = lambda y, like: jax.image.resize(y, (*like.shape[:3], y.shape[-1]), "nearest")
    b = jax.nn.silu(conv(jnp.concatenate([b, up(c, b)], -1), v["d"]))
    a = jax.nn.relu(conv(jnp.concatenate([up(b, a), a], -1), v["e"]))
    return conv(a, v["out"])


CONVOLUTIONS = [
    Net(
        "preactivation",
        preactivation,
        {
            "stem": (3, 3, 3, 8),
            "norm0": norm_shapes(8),
            "norm1a": norm_shapes(8),
            "norm2a": norm_shapes(5),
            "norm1b": norm_shapes(8),
            "norm2b": norm_shapes(6),
            "conv1a": (3, 3, 8, 5),
            "conv2a": (3, 3, 5, 8),
            "conv1b": (3, 3, 8, 6),
            "conv2b": (3, 3, 6, 8),
            "head": head_shapes(8),
        },
        ((2, 7, 9, 3),),
        {"stem": 8, "conv1a": 5, "conv1b": 6},
    ),
    Net(
        "bottleneck",
        bottleneck,
        {
            "stem": (3, 3, 3, 8),
            "conv1": (1, 1, 8, 5),
            "conv2": (3, 3, 5, 6),
            "conv3": (1, 1, 6, 9),
            "project": (1, 1, 8, 9),
            "norm0": norm_shapes(8),
            "norm1": norm_shapes(5),
            "norm2": norm_shapes(6),
            "norm3": norm_shapes(9),
            "norm4": norm_shapes(9),
            "head": head_shapes(9),
        },
        ((2, 10, 12, 3),),
        {"stem": 8, "conv1": 5, "conv2": 6, "conv3": 9},
    ),
    Net(
        "inverted_residual",
        inverted_residual,
        {
            "stem": (3, 3, 3, 5),
            "norm0": norm_shapes(5),
            "expand": (1, 1, 5, 7),
            "norm1": norm_shapes(7),
            "depthwise": (3, 3, 1, 7),
            "norm2": norm_shapes(7),
            "squeeze": (1, 1, 7, 4),
            "squeeze_bias": (4,),
            "excite": (1, 1, 4, 7),
            "excite_bias": (7,),
            "project": (1, 1, 7, 5),
            "norm3": norm_shapes(5),
            "head": head_shapes(5),
        },
        ((2, 12, 16, 3),),
        # The gate has the channels that it multiplies; its own four are free.
        {"stem": 5, "expand": 7, "squeeze": 4},
    ),
    Net(
        "spatial_gate",
        spatial_gate,
        {
            "a": (3, 3, 3, 6),
            "bias": (6,),
            "pixels": (3, 3, 6, 1),
            "channels": (6, 6),
            "b": (3, 3, 6, 5),
            "head": head_shapes(5),
        },
        ((2, 7, 9, 3),),
        # The one channel of the gate per pixel is broadcast: it couples nothing, and stays.
        {"a": 6, "b": 5},
    ),
    Net(
        "multiplier",
        multiplier,
        {
            "a": (3, 3, 3, 5),
            "bias": (5,),
            "depthwise": (3, 3, 1, 15),
            "norm": norm_shapes(15),
            "b": (3, 3, 15, 7),
            "head": head_shapes(7),
        },
        ((2, 8, 9, 3),),
        # A channel takes its three outputs along; one of the three can go from all channels.
        {"a": 5, "depthwise": 3, "b": 7},
    ),
    Net(
        "grouped",
        grouped,
        {
            "a": (3, 3, 3, 12),
            "norm": norm_shapes(12),
            "grouped": (3, 3, 4, 15),
            "bias": (15,),
            "b": (3, 3, 15, 7),
            "head": head_shapes(7),
        },
        ((2, 9, 11, 3),),
        # Three groups, with their inputs and outputs; four inputs and five outputs per group.
        {"a": 3, "a@2": 4, "grouped": 5, "b": 7},
    ),
    Net(
        "grouped_input",
        grouped_input,
        {"a": (3, 3, 3, 10), "b": (3, 3, 10, 7), "head": head_shapes(7)},
        ((2, 8, 9, 6),),
        {"a": 5, "b": 7},
    ),
    Net(
        "transposed",
        transposed,
        {
            "a": (3, 3, 3, 5),
            "bias": (5,),
            "up": (3, 3, 5, 6),
            "norm": norm_shapes(6),
            "up2": (2, 2, 7, 6),
            "head": head_shapes(7),
        },
        ((2, 4, 8, 3),),
        {"a": 5, "up": 6, "up2": 7},
    ),
    Net(
        "one_dimensional",
        one_dimensional,
        {
            "a": (5, 3, 3),
            "bias": (5,),
            "b": (6, 5, 2),
            "dense": (36, 7),
            "out": (7, 4),
        },
        ((2, 3, 11),),
        {"a": 5, "b": 6, "dense": 7},
    ),
    Net(
        "three_dimensional",
        three_dimensional,
        {
            "a": (3, 3, 3, 2, 5),
            "scale": (5,),
            "bias": (5,),
            "b": (2, 1, 3, 5, 7),
            "dense": (7, 4),
        },
        ((3, 4, 6, 8, 2),),
        {"a": 5, "b": 7},
    ),
    Net(
        "dense_to_map",
        dense_to_map,
        {
            "dense": (8, 30),
            "bias": (30,),
            "a": (3, 3, 5, 7),
            "shift": (7,),
            "b": (3, 3, 7, 2),
        },
        ((4, 8),),
        # Of the 2 * 3 * 5 outputs of the dense layer the five channels; the image has two.
        {"dense": 5, "a": 7},
    ),
    Net(
        "flattened",
        flattened,
        {"a": (5, 2, 3, 3), "bias": (5,), "dense": (5 * 6 * 7, 8), "out": (8, 4)},
        ((3, 6, 7, 2),),
        {"a": 5, "dense": 8},
    ),
    Net(
        "unet",
        unet,
        {
            "a": (3, 3, 3, 5),
            "norm1": norm_shapes(5),
            "b": (3, 3, 5, 6),
            "bias": (6,),
            "c": (3, 3, 6, 8),
            "norm2": norm_shapes(8),
            "d": (3, 3, 14, 7),
            "e": (3, 3, 12, 9),
            "out": (1, 1, 9, 2),
        },
        ((2, 8, 12, 3),),
        {"a": 5, "b": 6, "c": 8, "d": 7, "e": 9},
    ),
]

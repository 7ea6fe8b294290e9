"""Norms that look over channels: what they reduce over stays, the rest can go."""

import jax

from tests.nets import Net, conv, head, head_shapes


def standardised(x, axes):
    """To mean 0 and variance 1."""
    mean = x.mean(axes, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(axes, keepdims=True) + 1e-3)


def group_norm(v, x):
    """Three groups of four channels."""
    x = conv(x, v["a"])
    shape = x.shape
    x = standardised(x.reshape(*shape[:3], 3, 4), (1, 2, 4)).reshape(shape)
    return head(conv(jax.nn.sigmoid(x * v["scale"] + v["shift"]), v["b"]), v)


def instance_norm(v, x):
    """Every channel by itself."""
    x = standardised(conv(x, v["a"]), (1, 2)) * v["scale"] + v["shift"]
    return head(conv(jax.nn.sigmoid(x), v["b"]), v)


def layer_norm(v, x):
    """Over all channels."""
    x = standardised(conv(x, v["a"]), (3,)) * v["scale"] + v["shift"]
    return head(conv(jax.nn.sigmoid(x), v["b"]), v)


def rms_norm(v, x):
    """Over all channels, without a mean."""
    x = conv(jax.nn.sigmoid(conv(x, v["a"])), v["b"])
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-3) * v["scale"]
    return head(conv(x, v["c"]), v)


def softmax(v, x):
    """Channels that compete."""
    x = jax.nn.softmax(conv(jax.nn.sigmoid(conv(x, v["a"])), v["b"]))
    return head(conv(x, v["c"]), v)


def weight_standardised(v, x):
    """Kernels that are standardised over their inputs: the inputs stay, the outputs can go."""
    kernel = standardised(v["b"], (0, 1, 2)) * v["gain"]
    x = jax.nn.sigmoid(conv(x, v["a"]) + v["bias"])
    return head(jax.nn.relu(conv(x, kernel)), v)


NORMS = [
    Net(
        "group_norm",
        group_norm,
        {
            "a": (3, 3, 5, 12),
            "scale": (12,),
            "shift": (12,),
            "b": (3, 3, 12, 7),
            "head": head_shapes(7),
        },
        ((2, 6, 8, 5),),
        # Whole groups can go, the four channels of a group cannot.
        {"a": 3, "b": 7},
    ),
    Net(
        "instance_norm",
        instance_norm,
        {
            "a": (3, 3, 3, 5),
            "scale": (5,),
            "shift": (5,),
            "b": (3, 3, 5, 7),
            "head": head_shapes(7),
        },
        ((2, 6, 8, 3),),
        {"a": 5, "b": 7},
    ),
    Net(
        "layer_norm",
        layer_norm,
        {
            "a": (3, 3, 3, 5),
            "scale": (5,),
            "shift": (5,),
            "b": (3, 3, 5, 7),
            "head": head_shapes(7),
        },
        ((2, 6, 8, 3),),
        {"b": 7},
    ),
    Net(
        "rms_norm",
        rms_norm,
        {
            "a": (3, 3, 3, 5),
            "b": (3, 3, 5, 6),
            "scale": (6,),
            "c": (1, 1, 6, 7),
            "head": head_shapes(7),
        },
        ((2, 9, 8, 3),),
        {"a": 5, "c": 7},
    ),
    Net(
        "softmax",
        softmax,
        {"a": (3, 3, 3, 5), "b": (3, 3, 5, 6), "c": (1, 1, 6, 7), "head": head_shapes(7)},
        ((2, 9, 8, 3),),
        {"a": 5, "c": 7},
    ),
    Net(
        "weight_standardised",
        weight_standardised,
        {
            "a": (3, 3, 3, 5),
            "bias": (5,),
            "b": (3, 3, 5, 7),
            "gain": (7,),
            "head": head_shapes(7),
        },
        ((2, 9, 8, 3),),
        {"b": 7},
    ),
]

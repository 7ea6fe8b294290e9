"""Streams that meet: tokens of two sources, levels of a pyramid, shared layers, gated halves."""

import jax
import jax.numpy as jnp

from tests.nets import Net, conv, head, head_shapes
from tests.patterns.attention import attend, dense, dense_shapes


def token_concat(v, image, text):
    """Tokens of two sources behind a class token: an axis that nothing can be removed from."""
    pixels = dense(image.reshape(image.shape[0], -1, image.shape[-1]), v["pixels"])
    words = dense(text, v["words"]) * v["gain"]
    token = jnp.broadcast_to(v["token"], (image.shape[0], 1, 7))
    x = jnp.concatenate([token, pixels, words], 1) + v["positions"]
    mixed = jnp.einsum("ts,bsc->btc", v["mix"], jax.nn.sigmoid(x))
    return dense((x + mixed)[:, 0], v["head"])


def cross_attention(v, x, memory):
    """Queries of one stream, keys and values of another: the two share heads, not channels."""
    batch, tokens, _ = x.shape
    x, memory = dense(x, v["embed"]), jax.nn.sigmoid(dense(memory, v["memory"]))
    q = dense(x, v["q"]).reshape(batch, tokens, 2, 3)
    k = dense(memory, v["k"]).reshape(batch, -1, 2, 3)
    w = dense(memory, v["v"]).reshape(batch, -1, 2, 4)
    x = x + dense(attend(q, k, w).reshape(batch, tokens, 8), v["project"])
    return dense(jax.nn.gelu(x).mean(1), v["head"])


def gated_halves(v, x):
    """SwiGLU in one kernel: a hidden unit is a channel of both halves."""
    x = dense(x, v["embed"])
    gate, value = jnp.split(x @ v["both"], 2, axis=-1)
    return dense(x + dense(jax.nn.sigmoid(gate) * value, v["out"]), v["head"])


def pyramid(v, x):
    """Lateral convolutions, sums from the top down, one head for all levels."""
    low = jax.nn.sigmoid(conv(x, v["low"], 2))
    high = jax.nn.relu(conv(low, v["high"], 2) + v["bias"])
    top = conv(high, v["from_high"])
    below = conv(low, v["from_low"]) + jax.image.resize(top, (2, 4, 6, 7), "nearest")
    return [conv(jnp.tanh(level), v["head"]) for level in (top, below)]


def siamese(v, left, right):
    """One set of layers on two inputs, compared by the distance of what they see."""
    see = lambda x: jax.nn.sigmoid(conv(x, v["a"]) + v["bias"]).mean((1, 2)) @ v["b"]
    return jnp.abs(see(left) - see(right)) @ v["out"]


def unfolded(v, x):
    """Patches as channels, channel by channel, and a dense layer on them: a convolution by hand."""
    x = jax.nn.sigmoid(conv(x, v["a"]))
    x = jax.lax.conv_general_dilated_patches(
        x, (3, 2), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return head(jax.nn.relu(x @ v["b"] + v["bias"]), v)


STREAMS = [
    Net(
        "token_concat",
        token_concat,
        {
            "pixels": dense_shapes(3, 7),
            "words": dense_shapes(8, 7),
            "gain": (7,),
            "token": (1, 1, 7),
            "positions": (1, 12, 7),
            "mix": (12, 12),
            "head": dense_shapes(7, 4),
        },
        ((2, 3, 2, 3), (2, 5, 8)),
        # The stream of seven, in both embeddings, the token and the positions. Of the twelve
        # tokens five are inputs, and all meet in the sum of positions.
        {"pixels/kernel": 7},
    ),
    Net(
        "cross_attention",
        cross_attention,
        {
            "embed": dense_shapes(9, 7),
            "memory": dense_shapes(10, 5),
            "q": dense_shapes(7, 6),
            "k": dense_shapes(5, 6),
            "v": dense_shapes(5, 8),
            "project": dense_shapes(8, 7),
            "head": dense_shapes(7, 11),
        },
        ((3, 6, 9), (3, 13, 10)),
        # Both streams; two heads of all three projections, three dimensions of q and k, four of v.
        {"embed/kernel": 7, "memory/kernel": 5, "q/kernel": 2, "q/kernel@2": 3, "v/kernel": 4},
    ),
    Net(
        "gated_halves",
        gated_halves,
        {
            "embed": dense_shapes(9, 7),
            "both": (7, 10),
            "out": dense_shapes(5, 7),
            "head": dense_shapes(7, 4),
        },
        ((6, 9),),
        # Outputs i and i + 5 of one kernel are one unit.
        {"embed/kernel": 7, "both": 5},
    ),
    Net(
        "pyramid",
        pyramid,
        {
            "low": (3, 3, 3, 5),
            "high": (3, 3, 5, 6),
            "bias": (6,),
            "from_high": (1, 1, 6, 7),
            "from_low": (1, 1, 5, 7),
            "head": (3, 3, 7, 4),
        },
        ((2, 8, 12, 3),),
        # The sums tie what both lateral convolutions make.
        {"low": 5, "high": 6, "from_high": 7},
    ),
    Net(
        "siamese",
        siamese,
        {"a": (3, 3, 3, 5), "bias": (5,), "b": (5, 7), "out": (7, 4)},
        ((2, 6, 8, 3), (2, 9, 10, 3)),
        {"a": 5, "b": 7},
    ),
    Net(
        "unfolded",
        unfolded,
        {"a": (3, 3, 3, 5), "b": (30, 7), "bias": (7,), "head": head_shapes(7)},
        ((2, 8, 9, 3),),
        # Five channels times six taps are the inputs of b: a tap can go from all channels at once.
        # Nothing with weights makes it, so its group is named after b, behind b's outputs.
        {"a": 5, "b": 7, "b@2": 6},
    ),
]

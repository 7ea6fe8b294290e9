"""Attention: heads, head dimensions, hidden units; tokens are no channels."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.nets import Net


def dense(x, v):
    """A dense layer on the last axis."""
    return x @ v["kernel"] + v["bias"]


def dense_shapes(inputs, outputs):
    """Shapes for `dense`."""
    return {"kernel": (inputs, outputs), "bias": (outputs,)}


def layer_norm(x, v):
    """Over the last axis."""
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-3) * v["scale"] + v["shift"]


def attend(q, k, v):
    """Softmax attention of [batch, tokens, heads, dimension]."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)


def mlp(x, v):
    """Two dense layers."""
    return dense(jax.nn.sigmoid(dense(x, v["hidden"])), v["out"])


def multi_head(v, x):
    """Separate projections, written as [inputs, heads, dimension] kernels."""
    x = dense(x, v["embed"])
    q, k, w = (jnp.einsum("bnc,chd->bnhd", x, v[name]) + v[name + "_bias"] for name in "qkv")
    x = x + jnp.einsum("bnhd,hdc->bnc", attend(q, k, w), v["project"])
    return dense(mlp(x, v).mean(1), v["head"])


def vit(v, x):
    """One fused projection, a class token, positions, layer norms."""
    x = jax.lax.conv_general_dilated(
        x, v["patches"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    token = jnp.broadcast_to(v["token"], (x.shape[0], 1, x.shape[-1]))
    x = jnp.concatenate([token, x], 1) + v["positions"]
    y = layer_norm(x, v["norm1"])
    qkv = dense(y, v["qkv"]).reshape(*y.shape[:2], 3, 2, 5)
    q, k, w = jnp.moveaxis(qkv, 2, 0)
    y = attend(q, k, w).reshape(*y.shape[:2], 10)
    x = x + dense(y, v["project"])
    x = x + mlp(layer_norm(x, v["norm2"]), v)
    return dense(layer_norm(x, v["norm3"])[:, 0], v["head"])


def grouped_query(v, x):
    """Six query heads share two heads of keys and values."""
    batch, tokens, _ = x.shape
    q = dense(x, v["q"]).reshape(batch, tokens, 6, 5)
    k = dense(x, v["k"]).reshape(batch, tokens, 2, 5)
    w = dense(x, v["v"]).reshape(batch, tokens, 2, 7)
    y = attend(q, jnp.repeat(k, 3, axis=2), jnp.repeat(w, 3, axis=2))
    y = dense(y.reshape(batch, tokens, -1), v["project"])
    return dense(jax.nn.sigmoid(y).mean(1), v["head"])


def rotary(v, x):
    """Head dimensions are rotated in pairs: each pair is one unit."""
    batch, tokens, _ = x.shape
    angle = jnp.arange(tokens)[:, None, None] * (0.3 + jnp.arange(3))

    def rotate(y):
        first, second = jnp.split(y, 2, axis=-1)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    q, k = (rotate(dense(x, v[name]).reshape(batch, tokens, 2, 6)) for name in "qk")
    w = dense(x, v["v"]).reshape(batch, tokens, 2, 5)
    y = dense(attend(q, k, w).reshape(batch, tokens, 10), v["project"])
    return dense(jax.nn.sigmoid(y).mean(1), v["head"])


def rotary_form(rotate, before_heads=False):
    """Attention whose neighbours 2 i and 2 i + 1 are turned together, in each head or before."""

    def net(v, x):
        batch, tokens, _ = x.shape
        split = lambda y: y.reshape(batch, tokens, 2, 6)
        turn = (lambda y: split(rotate(y))) if before_heads else (lambda y: rotate(split(y)))
        q, k = (turn(dense(x, v[name])) for name in "qk")
        w = dense(x, v["v"]).reshape(batch, tokens, 2, 5)
        y = dense(attend(q, k, w).reshape(batch, tokens, 10), v["project"])
        return dense(jax.nn.sigmoid(y).mean(1), v["head"])

    return net


def angles(y):
    """Of every token and pair of [batch, tokens, ..., channels]."""
    pairs = 0.3 + jnp.arange(y.shape[-1] // 2)
    return jnp.expand_dims(jnp.arange(y.shape[1]), tuple(range(1, y.ndim - 1))) * pairs


def neighbours(y):
    """Strided halves that are turned, stacked and flattened."""
    even, odd, angle = y[..., ::2], y[..., 1::2], angles(y)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], -1).reshape(y.shape)


def complex_numbers(y):
    """The same as a product of complex numbers."""
    pairs = y.reshape(*y.shape[:-1], -1, 2)
    turned = jax.lax.complex(pairs[..., 0], pairs[..., 1]) * jnp.exp(1j * angles(y))
    return jnp.stack([turned.real, turned.imag], -1).reshape(y.shape)


def linear_attention(v, x):
    """A softplus feature map: a cleared producer does not clear the product."""
    q, k = jax.nn.softplus(dense(x, v["q"])), jax.nn.softplus(dense(x, v["k"]))
    y = jnp.einsum("bqd,bkd,bkc->bqc", q, k, dense(x, v["v"]))
    return dense(jax.nn.sigmoid(y).mean(1), v["head"])


def swin(v, x):
    """Shifted windows with relative positions, then merged patches."""
    x = dense(x, v["embed"])
    y = layer_norm(x, v["norm1"])
    y = jnp.roll(y, (-1, -1), (1, 2))
    batch, height, width, channels = y.shape
    y = y.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    y = y.reshape(-1, 4, channels)
    qkv = dense(y, v["qkv"]).reshape(-1, 4, 3, 3, 5).transpose(2, 0, 3, 1, 4)
    q, k, w = qkv[0] * 5**-0.5, qkv[1], qkv[2]
    row, column = np.divmod(np.arange(4), 2)
    relative = (row[:, None] - row + 1) * 3 + column[:, None] - column + 1
    bias = v["table"][relative.reshape(-1)].reshape(4, 4, 3).transpose(2, 0, 1)
    scores = jax.nn.softmax(q @ k.swapaxes(-1, -2) + bias[None])
    y = (scores @ w).swapaxes(1, 2).reshape(-1, 4, 15)
    y = dense(y, v["project"]).reshape(batch, height // 2, width // 2, 2, 2, channels)
    y = y.swapaxes(2, 3).reshape(batch, height, width, channels)
    x = x + jnp.roll(y, (1, 1), (1, 2))
    x = x + mlp(layer_norm(x, v["norm2"]), v)
    corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    x = layer_norm(jnp.concatenate(corners, -1), v["norm3"]) @ v["merge"]
    return dense(jax.nn.relu(x).mean((1, 2)), v["head"])


def mixer(v, x):
    """An MLP over tokens and one over channels."""
    x = dense(x, v["embed"])
    y = dense(jax.nn.sigmoid(dense(x.swapaxes(1, 2), v["tokens1"])), v["tokens2"])
    x = x + y.swapaxes(1, 2)
    x = x + mlp(x, v)
    return dense(x.mean(1), v["head"])


def norm_shapes(width):
    """Shapes for `layer_norm`."""
    return {"scale": (width,), "shift": (width,)}


MLP = {"hidden": dense_shapes(7, 11), "out": dense_shapes(11, 7)}

ATTENTION = [
    Net(
        "multi_head",
        multi_head,
        {
            "embed": dense_shapes(8, 7),
            **{name: (7, 2, 5) for name in "qkv"},
            **{name + "_bias": (2, 5) for name in "qkv"},
            "project": (2, 5, 7),
            **MLP,
            "head": dense_shapes(7, 4),
        },
        ((3, 6, 8),),
        # The stream of seven, the two heads that q, k, v and the projection share, the five
        # dimensions that q and k share, those of v alone, the eleven hidden units. What leaves the
        # MLP (no residual around it here) goes to the head: seven of their own.
        {"embed/kernel": 7, "q": 2, "q@2": 5, "v": 5, "hidden/kernel": 11, "out/kernel": 7},
    ),
    Net(
        "vit",
        vit,
        {
            "patches": (2, 2, 3, 7),
            "token": (1, 1, 7),
            "positions": (1, 13, 7),
            "norm1": norm_shapes(7),
            "norm2": norm_shapes(7),
            "norm3": norm_shapes(7),
            "qkv": dense_shapes(7, 30),
            "project": dense_shapes(10, 7),
            **MLP,
            "head": dense_shapes(7, 4),
        },
        ((2, 6, 8, 3),),
        # Layer norms freeze the stream. One kernel makes q, k and v: two heads and five dimensions
        # that all three share.
        {"qkv/kernel": 2, "qkv/kernel@2": 5, "hidden/kernel": 11},
    ),
    Net(
        "grouped_query",
        grouped_query,
        {
            "q": dense_shapes(8, 30),
            "k": dense_shapes(8, 10),
            "v": dense_shapes(8, 14),
            "project": dense_shapes(42, 9),
            "head": dense_shapes(9, 4),
        },
        ((3, 11, 8),),
        # Query heads are two groups (with a key head and a value head) times three members: the
        # members can go from all groups at once. Dimensions: five of q and k, seven of v.
        {"q/kernel": 2, "q/kernel@2": 3, "q/kernel@3": 5, "v/kernel": 7, "project/kernel": 9},
    ),
    Net(
        "rotary",
        rotary,
        {
            "q": dense_shapes(8, 12),
            "k": dense_shapes(8, 12),
            "v": dense_shapes(8, 10),
            "project": dense_shapes(10, 9),
            "head": dense_shapes(9, 4),
        },
        ((3, 7, 8),),
        # Two heads; dimensions i and i + 3 of q and k go together: three pairs; five of v.
        {"q/kernel": 2, "q/kernel@2": 3, "v/kernel": 5, "project/kernel": 9},
    ),
    *(
        Net(
            name,
            fn,
            {
                "q": dense_shapes(8, 12),
                "k": dense_shapes(8, 12),
                "v": dense_shapes(8, 10),
                "project": dense_shapes(10, 9),
                "head": dense_shapes(9, 4),
            },
            ((3, 7, 8),),
            # The same in every form: the axis of the stack is no leaf's, and goes nowhere.
            {"q/kernel": 2, "q/kernel@2": 3, "v/kernel": 5, "project/kernel": 9},
        )
        for name, fn in (
            ("rotary_neighbours", rotary_form(neighbours)),
            ("rotary_complex", rotary_form(complex_numbers)),
            ("rotary_before_heads", rotary_form(neighbours, before_heads=True)),
            ("rotary_complex_before_heads", rotary_form(complex_numbers, before_heads=True)),
        )
    ),
    Net(
        "linear_attention",
        linear_attention,
        {
            "q": dense_shapes(8, 5),
            "k": dense_shapes(8, 5),
            "v": dense_shapes(8, 7),
            "head": dense_shapes(7, 4),
        },
        ((3, 6, 8),),
        # softplus(0) * softplus(0) is not zero: the dimensions of q and k are frozen.
        {"v/kernel": 7},
    ),
    Net(
        "swin",
        swin,
        {
            "embed": dense_shapes(9, 7),
            "norm1": norm_shapes(7),
            "norm2": norm_shapes(7),
            "norm3": norm_shapes(28),
            "qkv": dense_shapes(7, 45),
            "table": (9, 3),
            "project": dense_shapes(15, 7),
            **MLP,
            "merge": (28, 13),
            "head": dense_shapes(13, 10),
        },
        ((2, 4, 6, 9),),
        # As in `vit`; the three heads have a column of the table of positions too.
        {"qkv/kernel": 3, "qkv/kernel@2": 5, "hidden/kernel": 11, "merge": 13},
    ),
    Net(
        "mixer",
        mixer,
        {
            "embed": dense_shapes(8, 7),
            "tokens1": dense_shapes(6, 9),
            "tokens2": dense_shapes(9, 6),
            **MLP,
            "head": dense_shapes(7, 4),
        },
        ((3, 6, 8),),
        # The stream, and the hidden units over tokens and over channels; tokens stay.
        {"embed/kernel": 7, "tokens1/kernel": 9, "hidden/kernel": 11},
    ),
]

"""Channels that are split, moved, repeated and put together again."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.nets import Net, conv, head, head_shapes, norm, norm_shapes


def cascaded(v, x):
    """Two concatenations with splits between them."""
    x = jnp.concatenate([conv(x, v["a"]), jnp.tanh(conv(x, v["b"]))], -1)
    first, second = jax.nn.sigmoid(x[..., :3]), jax.nn.relu(x[..., 3:])
    x = jnp.concatenate([second, conv(first, v["c"])], -1)
    return head(conv(x[..., 2:], v["d"]) + v["bias"], v)


def twice(v, x):
    """concat(x, x) is one set of channels, not two."""
    x = jax.nn.sigmoid(conv(x, v["a"]) + v["bias"])
    return head(conv(jnp.concatenate([x, x], -1), v["b"]), v)


def c2f(v, x):
    """A chunk, bottlenecks on its second half, and everything joined."""
    first, second = jnp.split(jax.nn.sigmoid(norm(conv(x, v["a"]), v["norm"])), 2, axis=-1)
    parts = [first, second]
    for name in ("b", "c"):
        parts.append(parts[-1] + jax.nn.relu(conv(conv(parts[-1], v[name]), v[name + "2"])))
    return head(jax.nn.relu(conv(jnp.concatenate(parts, -1), v["d"])), v)


def shuffle(x, groups):
    """Channel shuffle."""
    x = x.reshape(*x.shape[:-1], groups, -1)
    return x.swapaxes(-1, -2).reshape(*x.shape[:-2], -1)


def shuffle_v1(v, x):
    """Grouped convolutions with a channel shuffle between them."""
    x = jax.nn.sigmoid(conv(x, v["stem"]))
    x = shuffle(jax.nn.relu(norm(conv(x, v["a"], groups=3), v["norm"])), 3)
    x = conv(x, v["depthwise"], groups=18)
    return head(jax.nn.relu(conv(x, v["b"], groups=3)), v)


def shuffle_v2(v, x):
    """A split, a branch on one half, a shuffle of both; then a second such block."""
    x = jax.nn.sigmoid(conv(x, v["stem"]) + v["bias"])
    for name in ("a", "b"):
        left, right = jnp.split(x, 2, axis=-1)
        right = jax.nn.relu(conv(conv(right, v[name]), v[name + "2"]))
        x = shuffle(jnp.concatenate([left, right], -1), 2)
    return head(x, v)


def pixel_shuffle(v, x):
    """Depth to space: the four channels that make one are one unit."""
    x = conv(x, v["a"]) + v["bias"]
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    x = jax.nn.sigmoid(x.reshape(batch, height * 2, width * 2, -1))
    return head(conv(x, v["b"]), v)


def space_to_depth(v, x):
    """Four pixels become channels."""
    x = jax.nn.sigmoid(conv(x, v["a"]))
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return head(conv(x.reshape(batch, height // 2, width // 2, -1), v["b"]), v)


def reversal(v, x):
    """Channels reversed, strided, permuted and repeated by constant indices."""
    x = jax.nn.sigmoid(conv(x, v["a"]))
    x = conv(x[..., ::-1], v["b"]) * jnp.flip(x, -1)[..., :1]
    even, odd = x[..., ::2], x[..., 1::2]
    x = jax.nn.relu(conv(even, v["c"]) + conv(odd, v["d"]))
    x = x[..., np.array([2, 0, 1, 5, 4, 3])] + v["bias"]
    return head(jnp.take(x, np.array([5, 5, 1, 0, 3]), axis=-1), v)


def repeated(v, x):
    """Channels repeated in place, as in a depthwise multiplier without weights."""
    x = jax.nn.sigmoid(conv(x, v["a"]))
    return head(conv(jnp.repeat(x, 3, axis=-1), v["b"]) + v["bias"], v)


def two_splits(v, x):
    """Splits of one axis at 6 and at 4 share only the finest and the coarsest pair."""
    x = jax.nn.sigmoid(conv(x, v["a"]) + v["bias"])
    shape = x.shape[:-1]
    y = x.reshape(*shape, 4, 6) * v["rows"][:, None]
    z = x.reshape(*shape, 6, 4) * v["columns"]
    return head(conv(y.reshape(*shape, 24) + z.reshape(*shape, 24), v["b"]), v)


SHUFFLES = [
    Net(
        "cascaded",
        cascaded,
        {
            "a": (3, 3, 3, 4),
            "b": (1, 1, 3, 6),
            "c": (3, 3, 3, 7),
            "d": (3, 3, 12, 8),
            "bias": (8,),
            "head": head_shapes(8),
        },
        ((2, 5, 9, 3),),
        # Joined: a0..a3 b0..b5. The convolution c sees a0 a1 a2; the rest is a3 b0..b5 before c,
        # and d drops its first two, a3 and b0: nothing reads them. Of what d reads, b1..b5.
        {"a": 3, "a@2": 1, "b": 1, "b@2": 5, "c": 7, "d": 8},
    ),
    Net(
        "twice",
        twice,
        {"a": (3, 3, 3, 5), "bias": (5,), "b": (3, 3, 10, 6), "head": head_shapes(6)},
        ((2, 7, 9, 3),),
        {"a": 5, "b": 6},
    ),
    Net(
        "c2f",
        c2f,
        {
            "a": (3, 3, 3, 10),
            "norm": norm_shapes(10),
            "b": (3, 3, 5, 4),
            "b2": (3, 3, 4, 5),
            "c": (3, 3, 5, 6),
            "c2": (3, 3, 6, 5),
            "d": (1, 1, 20, 7),
            "head": head_shapes(7),
        },
        ((2, 8, 9, 3),),
        # The first five of a go to d alone. The second five go through the residual sums: the
        # outputs of both bottlenecks are tied to them.
        {"a": 5, "a@2": 5, "b": 4, "c": 6, "d": 7},
    ),
    Net(
        "shuffle_v1",
        shuffle_v1,
        {
            "stem": (3, 3, 5, 12),
            "a": (1, 1, 4, 18),
            "norm": norm_shapes(18),
            "depthwise": (3, 3, 1, 18),
            "b": (1, 1, 6, 15),
            "head": head_shapes(15),
        },
        ((2, 7, 9, 5),),
        # Output (g, c) of a, g < 3 and c = (c1 < 3, c2 < 2), goes to group c1 of b, input (c2, g).
        # Units: g (a group of a, with its four channels of the stem); an input of a in all its
        # groups; c1 (a group of b); c2; an output of b in all its groups.
        {"stem": 3, "stem@2": 4, "a": 3, "a@2": 2, "b": 5},
    ),
    Net(
        "shuffle_v2",
        shuffle_v2,
        {
            "stem": (3, 3, 3, 8),
            "bias": (8,),
            "a": (3, 3, 4, 5),
            "a2": (3, 3, 5, 4),
            "b": (3, 3, 4, 7),
            "b2": (3, 3, 7, 4),
            "head": head_shapes(8),
        },
        ((2, 6, 9, 3),),
        # Channel (h, i) of the first shuffle is i of the left half (h = 0: s_i, stem 0..3) or the
        # right one (h = 1: a_i, the outputs of a2); afterwards it stands at 2 i + h. The second
        # shuffle joins the first half of that, s0 a0 s1 a1, with the outputs b_0..3 of b2.
        # Index i takes s_i, a_i and, for i < 2, b_2i and b_2i+1 along: 0 and 1 end in the head, 2
        # and 3 end in b. All of the left, or all of a2, or all of b2 are units of their own.
        {"stem": 2, "stem@2": 1, "stem@3": 2, "stem@4": 4, "a": 5, "a2": 1, "b": 7, "b2": 1},
    ),
    Net(
        "pixel_shuffle",
        pixel_shuffle,
        {"a": (3, 3, 3, 20), "bias": (20,), "b": (3, 3, 5, 6), "head": head_shapes(6)},
        ((2, 7, 9, 3),),
        {"a": 5, "b": 6},
    ),
    Net(
        "space_to_depth",
        space_to_depth,
        {"a": (3, 3, 3, 5), "b": (3, 3, 20, 7), "head": head_shapes(7)},
        ((2, 6, 8, 3),),
        {"a": 5, "b": 7},
    ),
    Net(
        "reversal",
        reversal,
        {
            "a": (3, 3, 3, 5),
            "b": (3, 3, 5, 9),
            "c": (3, 3, 5, 6),
            "d": (1, 1, 4, 6),
            "bias": (6,),
            "head": head_shapes(5),
        },
        ((2, 7, 8, 3),),
        # The last channel of a scales everything: it is broadcast and stays. The five even outputs
        # of b go to c, the four odd ones to d. Of c's six outputs 2 0 1 5 4 3, the head reads
        # positions 5 1 0 3: outputs 3 0 2 5. Outputs 1 and 4 reach nothing, but are tied to the
        # bias; they are a group of their own.
        {"a": 4, "b": 5, "b@2": 4, "c": 4, "c@2": 2},
    ),
    Net(
        "repeated",
        repeated,
        {"a": (3, 3, 3, 5), "b": (3, 3, 15, 7), "bias": (7,), "head": head_shapes(7)},
        ((2, 6, 9, 3),),
        # Five channels; the copies can go too, one of the three from all channels at once. They
        # have no producer: their group is named after the consumer, behind its own outputs.
        {"a": 5, "b": 7, "b@2": 3},
    ),
    Net(
        "two_splits",
        two_splits,
        {
            "a": (3, 3, 3, 24),
            "bias": (24,),
            "rows": (4,),
            "columns": (4,),
            "b": (3, 3, 24, 5),
            "head": head_shapes(5),
        },
        ((2, 6, 9, 3),),
        # 24 = 2 * 6 * 2: rows 0-1 and 2-3 of the first split are halves of the second one's rows;
        # even and odd columns mean the same in both. Between, 2 * 3 and 3 * 2 do not agree.
        {"a": 2, "a@2": 2, "b": 5},
    ),
]

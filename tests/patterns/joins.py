"""Sums, concatenations, shared weights, several inputs and outputs, constants."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.nets import Net, conv, head, head_shapes, norm, norm_shapes


def densenet(v, x):
    """Every layer sees all before it."""
    x = conv(x, v["stem"])
    for name in ("a", "b"):
        h = jax.nn.sigmoid(norm(x, v["norm" + name]))
        x = jnp.concatenate([x, conv(h, v[name])], -1)
    return head(jax.nn.relu(conv(norm(x, v["normc"]), v["c"])), v)


def padded_around(v, x):
    """Option A after a stage of its own: channels before and behind, twice."""
    x = jax.nn.relu(conv(x, v["stem"]) + v["bias"])
    for name, low, high in (("a", 1, 2), ("b", 0, 3)):
        h = norm(conv(jax.nn.sigmoid(conv(x, v[name])), v[name + "2"]), v["norm" + name])
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (low, high)))
        x = jax.nn.relu(x + h)
    return head(x, v)


def tied(v, x):
    """An autoencoder whose decoder is the transposed encoder, and a kernel used twice."""
    h = jax.nn.sigmoid(x @ v["encode"] + v["bias"])
    h = jax.nn.tanh(jax.nn.relu(h @ v["again"]) @ v["again"])
    return h @ v["encode"].T + v["shift"]


def embedding(v, tokens, x):
    """A table that is looked up, and its transpose that makes logits."""
    h = v["table"][tokens.astype(jnp.int32)] + (x @ v["dense"])[:, None]
    h = h + jax.nn.sigmoid(h @ v["hidden"]) @ v["out"]
    return h @ v["table"].T


def several(v, left, right):
    """Two inputs that are joined, a dictionary of outputs."""
    a = jax.nn.sigmoid(conv(left, v["a"]))
    b = jax.nn.relu(right @ v["b"] + v["bias"])
    x = jnp.concatenate([a.mean((1, 2)), b], -1)
    h = jax.nn.tanh(x @ v["c"])
    return {"class": h @ v["class"], "box": jnp.maximum(a, 0.3) @ v["box"], "raw": h @ v["raw"]}


def constants(v, x):
    """Closed-over arrays with a channel axis are sliced like parameters; one serves two layers."""
    offset = np.linspace(-1, 1, 5).astype(np.float32)
    x = jax.nn.sigmoid(conv(x, v["a"]) * offset + jnp.arange(5.0))
    x = conv(x, v["b"]) * offset
    blur = np.broadcast_to(np.float32([0.25, 0.5, 0.25])[:, None, None, None], (3, 1, 1, 5))
    return head(conv(jax.nn.relu(x), blur.astype(np.float32), groups=5), v)


def projected_by_constant(v, x):
    """A fixed matrix over the channels: no mask reaches it, so the channels stay."""
    basis = np.cos(np.outer(np.arange(5), np.arange(6)) + 1).astype(np.float32)
    return head(conv(jax.nn.sigmoid(conv(x, v["a"])) @ basis, v["b"]), v)


def low_rank(v, x):
    """A kernel that is a product of two parameters: the rank is an axis of units too."""
    kernel = (v["u"] @ v["w"]).reshape(3, 3, 4, 5)
    return head(jax.nn.sigmoid(conv(x, kernel)) * v["scale"], v)


JOINS = [
    Net(
        "densenet",
        densenet,
        {
            "stem": (3, 3, 3, 5),
            "norma": norm_shapes(5),
            "a": (3, 3, 5, 4),
            "normb": norm_shapes(9),
            "b": (3, 3, 9, 6),
            "normc": norm_shapes(15),
            "c": (1, 1, 15, 7),
            "head": head_shapes(7),
        },
        ((2, 8, 10, 3),),
        {"stem": 5, "a": 4, "b": 6, "c": 7},
    ),
    Net(
        "padded_around",
        padded_around,
        {
            "stem": (3, 3, 3, 5),
            "bias": (5,),
            "a": (3, 3, 5, 6),
            "a2": (3, 3, 6, 8),
            "norma": norm_shapes(8),
            "b": (3, 3, 8, 7),
            "b2": (1, 1, 7, 11),
            "normb": norm_shapes(11),
            "head": head_shapes(11),
        },
        ((2, 9, 10, 3),),
        # The stem's five run through everything; the three that a2 adds, and then the three that
        # b2 adds, have no part in what was before.
        {"stem": 5, "a": 6, "a2": 3, "b": 7, "b2": 3},
    ),
    Net(
        "tied",
        tied,
        {"encode": (8, 5), "bias": (5,), "again": (5, 5), "shift": (8,)},
        ((3, 8),),
        # The kernel that is used twice has the hidden units at both ends.
        {"encode": 5},
    ),
    Net(
        "embedding",
        embedding,
        {"table": (9, 5), "dense": (4, 5), "hidden": (5, 7), "out": (7, 5)},
        ((3, 6), (3, 4)),
        # The vocabulary is looked up and given out; the stream's five are columns of the table.
        {"table": 5, "hidden": 7},
    ),
    Net(
        "several",
        several,
        {
            "a": (3, 3, 3, 5),
            "b": (8, 6),
            "bias": (6,),
            "c": (11, 7),
            "class": (7, 4),
            "box": (5, 2),
            "raw": (7, 9),
        },
        ((3, 12, 10, 3), (3, 8)),
        {"a": 5, "b": 6, "c": 7},
    ),
    Net(
        "constants",
        constants,
        {"a": (3, 3, 3, 5), "b": (3, 3, 5, 5), "head": head_shapes(5)},
        ((2, 8, 9, 3),),
        {"a": 5, "b": 5},
    ),
    Net(
        "projected_by_constant",
        projected_by_constant,
        {"a": (3, 3, 3, 5), "b": (3, 3, 6, 7), "head": head_shapes(7)},
        ((2, 8, 9, 3),),
        # The six columns of the matrix can go: they are inputs of b, and produced by no kernel.
        {"b": 7, "b@2": 6},
    ),
    Net(
        "low_rank",
        low_rank,
        {"u": (36, 6), "w": (6, 5), "scale": (5,), "head": head_shapes(5)},
        ((2, 8, 9, 4),),
        {"u": 6, "w": 5},
    ),
]

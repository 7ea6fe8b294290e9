"""Primitives that move or join channels in ways of their own, as small nets."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.nets import Net, conv, head, head_shapes


def ensemble(v, x):
    """Four nets side by side: JAX writes grouped convolutions, members being the groups."""

    def member(v):
        h = jax.nn.sigmoid(conv(x, v["a"]) + v["bias"])
        h = jnp.tanh(conv(h, v["b"], groups=2))
        return conv(h, v["c"]).mean((1, 2)) @ v["out"]

    return jax.vmap(member)(v)


def heads_of_one_stem(v, x):
    """Kernels of three members read the same channels; NCHW, members last in the result."""
    layout = ("NCHW", "OIHW", "NCHW")
    run = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout
    )
    h = jax.nn.sigmoid(run(x.transpose(0, 3, 1, 2), v["stem"]))
    h = jax.vmap(run, (None, 0), 4)(h, v["heads"])
    return jnp.einsum("nchwm,co->nmo", jnp.tanh(h), v["out"])


def kernel_per_example(v, x):
    """Every image gates the inputs of its own kernel."""
    gates = jax.nn.sigmoid(x.mean((1, 2)) @ v["gate"] + v["bias"])
    h = jnp.tanh(conv(x, v["stem"]))
    kernels = v["kernel"] * gates[:, None, None, :, None]
    h = jax.vmap(lambda one, kernel: conv(one[None], kernel)[0])(h, kernels)
    return jnp.tanh(h).mean((1, 2)) @ v["out"]


def fortran_order(v, x):
    """Channels are the slowest axis of the flat array."""
    h = jax.nn.sigmoid(conv(x, v["a"]))
    return jax.vmap(lambda one: one.ravel(order="F"))(h) @ v["out"]


def fortran_depth_to_space(v, x):
    """Channel 3 j + i becomes input i of the next kernel, at column j of four."""
    h = jax.nn.sigmoid(conv(x, v["a"]))
    h = h.reshape(2, 5, 28, 3, order="F")
    return jnp.tanh(conv(h, v["b"])).mean((1, 2)) @ v["out"]


def median(v, x):
    """The median of every channel over two axes."""
    return jnp.median(jax.nn.sigmoid(conv(x, v["a"])), (1, 2)) @ v["out"]


def tiled(v, x):
    """Positions are repeated over the image, then the channels stand there twice."""
    h = jax.nn.sigmoid(conv(x, v["a"]) + jnp.tile(v["position"], (1, 2, 1)))
    return head(conv(jnp.tile(h, (1, 1, 1, 2)), v["b"]), v)


def written(v, x):
    """Pixels and channels are set, added to and multiplied at constant places."""
    h = jax.nn.sigmoid(conv(x, v["a"]))
    h = h.at[:, 0].set(v["row"]).at[:, ::2, 1:].set(0.5)
    h = h.at[..., np.array([4, 1])].multiply(v["factor"], unique_indices=True)
    h = h.at[..., np.array([0, 5, 0])].add(conv(x, v["b"]))
    return head(conv(h.at[:, np.array([1, 3])].max(v["floor"]), v["c"]), v)


def segments(v, x):
    """Messages of pixels are summed by their receivers."""
    messages = jax.nn.sigmoid(x.reshape(-1, 5, 3) @ v["a"])
    sums = lambda one: jax.ops.segment_sum(one, np.array([0, 2, 2, 0, 1]), 4)
    return jnp.tanh(jax.vmap(sums)(messages)).sum(1) @ v["out"]


def largest(v, x):
    """The largest three values of every channel, and how they compare with fixed edges."""
    h = jax.nn.sigmoid(x.reshape(2, -1, 3) @ v["a"])
    best, _ = jax.lax.top_k(h, 3, axis=1)
    steps = jnp.searchsorted(np.linspace(0, 1, 6, dtype=np.float32), best)
    return (best.sum(1) + jnp.linspace(0, 1, 7)[steps].sum(1)) @ v["out"]


def padded(v, x):
    """Padding that jax.numpy joins from slices, means and ramps, of length 0 along channels."""
    for name, mode in (("a", "edge"), ("b", "mean"), ("c", "linear_ramp")):
        x = jnp.pad(x, ((0, 0), (2, 1), (1, 1), (0, 0)), mode=mode)
        x = jax.nn.sigmoid(conv(x, v[name], padding="VALID"))
    return head(x, v)


def outside(v, x):
    """Rows are taken beyond the edge: clipped to it, or filled."""
    h = jax.nn.sigmoid(conv(x, v["a"]))
    h = jnp.take(h, np.arange(-1, 6), axis=1, mode="clip")
    h = jax.nn.sigmoid(conv(h, v["b"]))
    h = jnp.take(h, np.array([0, 9, 3]), axis=2, mode="fill", fill_value=0.5)
    return head(h, v)


def products(v, x):
    """Contractions written as products and sums: a matrix, taps of every channel, a row."""
    h = jax.nn.sigmoid(x.reshape(2, -1, 3) @ v["a"])
    h = jax.nn.sigmoid((h[..., None] * v["b"]).sum(2))
    windows = jnp.stack([h[:, i : i + 9] for i in range(4)], 1)
    h = jnp.tanh((windows * v["taps"][:, None]).sum(1))
    return jnp.stack([(h * v["row"]).sum((1, 2)), (h * v["mean"]).mean(-1).sum(1)], -1)


def looked_at(v, x):
    """Equations without results look at values, in a function with a derivative of its own too."""
    jax.debug.callback(lambda value: None, conv(x, v["a"]))

    @jax.custom_jvp
    def swish(x):
        jax.debug.callback(lambda value: None, x)
        return x * jax.nn.sigmoid(x)

    swish.defjvp(lambda xs, ts: (swish(*xs), jax.nn.sigmoid(xs[0]) * ts[0]))
    return head(swish(conv(x, v["a"])), v)


PRIMITIVES = [
    Net(
        "ensemble",
        ensemble,
        {"a": (4, 3, 3, 3, 8), "bias": (4, 8), "b": (4, 3, 3, 4, 10), "c": (4, 1, 1, 10, 6)}
        | {"out": (4, 6, 9)},
        ((2, 7, 5, 3),),
        # Channels of all members at once. Two groups of four inputs and five outputs; whole groups
        # or columns of both go, and what joins them is a unit of each.
        {"a": 2, "a@2": 4, "b": 5, "c": 6},
    ),
    Net(
        "heads_of_one_stem",
        heads_of_one_stem,
        {"stem": (8, 3, 3, 3), "heads": (4, 6, 8, 1, 1), "out": (6, 9)},
        ((2, 7, 5, 3),),
        {"stem": 8, "heads": 6},
    ),
    Net(
        "kernel_per_example",
        kernel_per_example,
        {"gate": (3, 8), "bias": (8,), "stem": (3, 3, 3, 8), "kernel": (3, 3, 8, 6), "out": (6, 4)},
        ((2, 7, 5, 3),),
        {"gate": 8, "kernel": 6},
    ),
    Net(
        "fortran_order",
        fortran_order,
        {"a": (3, 3, 3, 8), "out": (280, 4)},
        ((2, 7, 5, 3),),
        {"a": 8},
    ),
    Net(
        "fortran_depth_to_space",
        fortran_depth_to_space,
        {"a": (3, 3, 3, 12), "b": (3, 3, 3, 6), "out": (6, 4)},
        ((2, 5, 7, 3),),
        # The three channels of each column are inputs; columns are positions, and stay.
        {"a": 3, "b": 6},
    ),
    Net("median", median, {"a": (3, 3, 3, 8), "out": (8, 4)}, ((2, 7, 5, 3),), {"a": 8}),
    Net(
        "tiled",
        tiled,
        {"a": (3, 3, 3, 8), "position": (5, 2, 8), "b": (1, 1, 16, 6), "head": head_shapes(6)},
        ((7, 5, 4, 3),),
        {"a": 8, "b": 6},
    ),
    Net(
        "written",
        written,
        {"a": (3, 3, 3, 8), "row": (8,), "factor": (2,), "b": (1, 1, 3, 3), "floor": (8,)}
        | {"c": (1, 1, 8, 6), "head": head_shapes(6)},
        ((2, 7, 5, 3),),
        # Channels 0 and 5 get the outputs of b, 4 and 1 the factors; 2, 3, 6 and 7 are of a alone.
        {"a": 2, "a@2": 2, "a@3": 4, "c": 6},
    ),
    Net("segments", segments, {"a": (3, 8), "out": (8, 4)}, ((2, 7, 5, 3),), {"a": 8}),
    Net("largest", largest, {"a": (3, 8), "out": (8, 4)}, ((2, 7, 5, 3),), {"a": 8}),
    Net(
        "padded",
        padded,
        {"a": (3, 3, 3, 8), "b": (3, 3, 8, 6), "c": (3, 3, 6, 10), "head": head_shapes(10)},
        ((2, 7, 5, 3),),
        {"a": 8, "b": 6, "c": 10},
    ),
    Net(
        "outside",
        outside,
        {"a": (3, 3, 3, 8), "b": (3, 3, 8, 6), "head": head_shapes(6)},
        ((2, 5, 7, 3),),
        {"a": 8, "b": 6},
    ),
    Net(
        "products",
        products,
        {"a": (3, 8), "b": (8, 6), "taps": (4, 6), "row": (6,), "mean": (6,)},
        ((2, 4, 3, 3),),
        # The divisor of the mean is a constant of the net, and stays.
        {"a": 8, "b": 6, "taps": 4},
    ),
    Net(
        "looked_at",
        looked_at,
        {"a": (3, 3, 3, 8), "head": head_shapes(8)},
        ((2, 7, 5, 3),),
        {"a": 8},
    ),
]

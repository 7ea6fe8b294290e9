"""Whole small nets in the style of code that others wrote, and that was once read wrongly."""

import jax
import jax.numpy as jnp

from tests.nets import Net, conv, head, head_shapes, norm, norm_shapes
from tests.patterns.attention import dense, dense_shapes, layer_norm, neighbours


def deep_ensemble(v, x):
    """Three residual nets behind one stem, as one `vmap`; the mean of their probabilities."""
    stem = jax.nn.relu(norm(conv(x, v["stem"]), v["norm"]))

    def member(v):
        h = jax.nn.silu(conv(stem, v["a"]) + v["shift"])
        return jax.nn.softmax((stem + conv(h, v["b"])).mean((1, 2)) @ v["out"])

    return jax.vmap(member)(v["members"]).mean(0)


def film(v, x):
    """A class code makes factors and offsets of two layers of a convolutional net."""
    code = jax.nn.silu(v["code"] @ v["embed"]["kernel"] + v["embed"]["bias"])
    for name in ("1", "2"):
        scale, shift = jnp.split(code @ v["film" + name], 2)
        x = jax.nn.sigmoid(conv(x, v["conv" + name]) * (1 + scale) + shift)
    return head(x, v)


def rotary_transformer(v, x):
    """Heads are rotated by pairs of neighbours; then a gated feed-forward layer."""
    h = x @ v["embed"]
    normed = layer_norm(h, v["norm"])
    q, k, values = (dense(normed, v[name]).reshape(2, 3, 4, 6) for name in ("q", "k", "v"))
    q, k = neighbours(q), neighbours(k)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, values).reshape(2, 3, 24)
    h = h + dense(mixed, v["project"])
    gate, up = jnp.split(h @ v["up"], 2, axis=-1)
    return (h + (jax.nn.sigmoid(gate) * up) @ v["down"]).mean(1) @ v["out"]


def vocoder(v, x):
    """Weight-normed kernels: up by a transposed convolution, then dilated residual ones."""

    def weight(layer):
        size = jnp.sqrt((layer["v"] ** 2).sum((0, 1), keepdims=True))
        return layer["g"] * layer["v"] / size

    layout = ("NWC", "WIO", "NWC")
    run = lambda x, layer, dilation=1: jax.lax.conv_general_dilated(
        x, weight(layer), (1,), "SAME", rhs_dilation=(dilation,), dimension_numbers=layout
    )
    x = jax.nn.leaky_relu(run(x, v["first"]) + v["first"]["bias"])
    x = jax.lax.conv_transpose(x, weight(v["up"]), (2,), "SAME", dimension_numbers=layout)
    for name, dilation in (("one", 1), ("three", 3)):
        h = run(jax.nn.softplus(x), v[name + "a"], dilation)
        x = x + run(jax.nn.leaky_relu(h), v[name + "b"])
    return jnp.tanh(run(jax.nn.leaky_relu(x), v["last"]))


def codebook(v, x):
    """Every pixel is replaced by the nearest row of a table, with the straight-through gradient."""
    h = conv(jax.nn.sigmoid(conv(x, v["a"])), v["latent"])
    distance = (h**2).sum(-1, keepdims=True) - 2 * h @ v["codes"].T + (v["codes"] ** 2).sum(-1)
    nearest = v["codes"][jnp.argmin(jax.lax.stop_gradient(distance), -1)]
    h = h + jax.lax.stop_gradient(nearest - h)
    return head(jnp.tanh(conv(h, v["b"])), v)


def edge_padded_unet(v, x):
    """Borders are repeated, and cropped where the skip joins what comes up."""
    grow = lambda x: jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    run = lambda x, kernel: conv(grow(x), kernel, padding="VALID")
    skip = jax.nn.sigmoid(run(x, v["down"]))
    h = jax.nn.relu(run(skip[:, ::2, ::2], v["bottom"]) + v["bias"])
    h = jax.image.resize(h, (2, 8, 6, 9), "nearest")[:, : skip.shape[1], : skip.shape[2]]
    return run(jax.nn.relu(run(jnp.concatenate([skip, h], -1), v["up"])), v["out"])


def mixture_of_kernels(v, x):
    """CondConv: every image mixes the kernels of four experts, and has one of its own."""
    x = jax.nn.sigmoid(norm(conv(x, v["stem"]), v["norm"]))
    routes = jax.nn.sigmoid(x.mean((1, 2)) @ v["route"] + v["bias"])
    kernels = jnp.einsum("be,ehwio->bhwio", routes, v["experts"])
    x = jax.vmap(lambda one, kernel: conv(one[None], kernel)[0])(x, kernels)
    return head(jax.nn.softplus(x), v)


def squeeze_excite_by_image(v, x):
    """A net of one image, channels first, as Equinox writes it; `vmap` brings the batch."""
    layout = ("NCHW", "OIHW", "NCHW")
    run = lambda x, kernel: jax.lax.conv_general_dilated(
        x[None], kernel, (1, 1), "SAME", dimension_numbers=layout
    )[0]

    def one(x):
        x = jax.nn.relu(run(x, v["stem"]) + v["bias"])
        h = jax.nn.silu(run(x, v["a"]) + v["shift"])
        gate = jax.nn.sigmoid(v["expand"] @ jax.nn.relu(v["squeeze"] @ h.mean((1, 2))))
        return v["out"] @ (x + run(h * gate[:, None, None], v["b"])).mean((1, 2))

    return jax.vmap(one)(x.transpose(0, 3, 1, 2))


def adversarial_pair(v, z):
    """What a critic says of a generator's images, and of those of the generator's average."""

    def generator(v):
        h = jax.nn.sigmoid(z @ v["dense"]).reshape(2, 4, 3, 5)
        return jnp.tanh(conv(h, v["conv"]))

    def critic(v, x):
        return jax.nn.softplus(conv(x, v["conv"])).mean((1, 2)) @ v["dense"]

    return [critic(v["critic"], generator(v[name])) for name in ("generator", "average")]


def with_a_key(v, x):
    """The net holds a key: dropout and noise are drawn from it, the same for every call."""
    dropped, noisy = jax.random.split(jax.random.wrap_key_data(v["key"].astype(jnp.uint32)))
    x = jax.nn.sigmoid(conv(x, v["a"]))
    x = jnp.where(jax.random.bernoulli(dropped, 0.7, x.shape), x / 0.7, 0)
    x = conv(x, v["b"])
    return head(jnp.tanh(x + 0.1 * jax.random.normal(noisy, x.shape)), v)


GENERATOR = {"dense": (7, 60), "conv": (3, 3, 5, 3)}
FOREIGN = [
    Net(
        "deep_ensemble",
        deep_ensemble,
        {"stem": (3, 3, 3, 8), "norm": norm_shapes(8)}
        | {"members": {"a": (3, 3, 3, 8, 6), "shift": (3, 6), "b": (3, 3, 3, 6, 8)}
           | {"out": (3, 8, 4)}},
        ((2, 7, 5, 3),),
        # The stream of all members, and the hidden channels that they have at the same place.
        {"stem": 8, "members/a": 6},
    ),
    Net(
        "film",
        film,
        {"code": (5,), "embed": {"kernel": (5, 9), "bias": (9,)}, "film1": (9, 16)}
        | {"film2": (9, 12), "conv1": (3, 3, 3, 8), "conv2": (3, 3, 8, 6), "head": head_shapes(6)},
        ((2, 7, 5, 3),),
        # The code's numbers, hidden units of the code's net, and the channels of two layers.
        {"conv1": 8, "embed/kernel": 5, "embed/kernel@2": 9, "conv2": 6},
    ),
    Net(
        "rotary_transformer",
        rotary_transformer,
        {"embed": (5, 7), "norm": {"scale": (7,), "shift": (7,)}, "up": (7, 20), "down": (10, 7)}
        | {name: dense_shapes(7, 24) for name in ("q", "k", "v")}
        | {"project": dense_shapes(24, 7), "out": (7, 3)},
        ((2, 3, 5),),
        # Heads, pairs that are rotated together, numbers of a value, and the gated units; a layer
        # norm counts the stream.
        {"q/kernel": 4, "q/kernel@2": 3, "v/kernel": 6, "up": 10},
    ),
    Net(
        "vocoder",
        vocoder,
        {"first": {"v": (5, 4, 12), "g": (1, 1, 12), "bias": (12,)}}
        | {"up": {"v": (4, 12, 8), "g": (1, 1, 8)}, "last": {"v": (5, 8, 2), "g": (1, 1, 2)}}
        | {n + "a": {"v": (3, 8, 6), "g": (1, 1, 6)} for n in ("one", "three")}
        | {n + "b": {"v": (1, 6, 8), "g": (1, 1, 8)} for n in ("one", "three")},
        ((2, 9, 4),),
        {"first/g": 12, "up/g": 8, "onea/g": 6, "threea/g": 6},
    ),
    Net(
        "codebook",
        codebook,
        {"a": (3, 3, 3, 8), "latent": (1, 1, 8, 5), "codes": (11, 5), "b": (3, 3, 5, 6)}
        | {"head": head_shapes(6)},
        ((2, 7, 5, 3),),
        {"a": 8, "latent": 5, "b": 6},
    ),
    Net(
        "edge_padded_unet",
        edge_padded_unet,
        {"down": (3, 3, 3, 8), "bottom": (3, 3, 8, 9), "bias": (9,), "up": (3, 3, 17, 6)}
        | {"out": (3, 3, 6, 4)},
        ((2, 7, 5, 3),),
        {"down": 8, "bottom": 9, "up": 6},
    ),
    Net(
        "mixture_of_kernels",
        mixture_of_kernels,
        {"stem": (3, 3, 3, 8), "norm": norm_shapes(8), "route": (8, 4), "bias": (4,)}
        | {"experts": (4, 3, 3, 8, 6), "head": head_shapes(6)},
        ((2, 7, 5, 3),),
        {"stem": 8, "route": 4, "experts": 6},
    ),
    Net(
        "squeeze_excite_by_image",
        squeeze_excite_by_image,
        {"stem": (8, 3, 3, 3), "bias": (8, 1, 1), "a": (6, 8, 3, 3), "shift": (6, 1, 1)}
        | {"squeeze": (5, 6), "expand": (6, 5), "b": (8, 6, 1, 1), "out": (4, 8)},
        ((2, 7, 9, 3),),
        {"stem": 8, "a": 6, "squeeze": 5},
    ),
    Net(
        "adversarial_pair",
        adversarial_pair,
        {"generator": GENERATOR, "average": GENERATOR}
        | {"critic": {"conv": (3, 3, 3, 6), "dense": (6, 4)}},
        ((2, 7),),
        # Images are read by one kernel of the critic: their channels are those of both generators.
        {"generator/dense": 5, "generator/conv": 3, "average/dense": 5, "critic/conv": 6},
    ),
    Net(
        "with_a_key",
        with_a_key,
        {"key": (2,), "a": (3, 3, 3, 8), "b": (3, 3, 8, 6), "head": head_shapes(6)},
        ((2, 7, 5, 3),),
        {"a": 8, "b": 6},
    ),
]  # fmt: skip

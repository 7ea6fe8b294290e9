"""Control flow, custom derivatives, rematerialisation, random numbers, precision, transforms."""

import jax
import jax.numpy as jnp

from tests.nets import Net, conv, head, head_shapes, norm, norm_shapes


def dropout(v, x):
    """Random masks with a channel axis: masked and slim nets see the same numbers."""
    key = jax.random.key(3)
    x = jax.nn.sigmoid(conv(x, v["a"]) + v["bias"])
    keep = jax.random.bernoulli(key, 0.7, x.shape)
    x = conv(jnp.where(keep, x / 0.7, 0.0), v["b"])
    noise = jax.random.normal(jax.random.fold_in(key, 1), x.shape[-1:])
    whole_channels = jax.random.bernoulli(jax.random.split(key)[0], 0.5, (x.shape[0], 1, 1, 7))
    return head(jax.nn.relu(x + noise) * whole_channels, v)


def scanned(v, x):
    """Residual blocks as layers of stacked arrays, and what each block gives out."""
    x = jax.nn.sigmoid(conv(x, v["stem"]))

    def block(x, layer):
        h = jax.nn.sigmoid(conv(x, layer["a"]) + layer["bias"])
        x = x + norm(conv(h, layer["b"]), layer["norm"])
        return x, x.mean((1, 2))

    x, means = jax.lax.scan(block, x, v["blocks"])
    return head(x, v) + jnp.tanh(means).sum(0) @ v["means"]


def scanned_attention(v, x):
    """Attention inside a scan: its head dimension has no consumer with parameters."""

    def block(x, layer):
        q, k = x @ layer["q"], x @ layer["k"]
        return x + jax.nn.softmax(q @ k.swapaxes(1, 2)) @ (x @ layer["v"]) @ layer["out"], None

    x = jax.nn.sigmoid(x @ v["embed"])
    return jax.lax.scan(block, x, v["blocks"])[0].mean(1) @ v["head"]


def branching(v, x):
    """Two branches of a condition on the data, with parameters of their own."""
    bright = x.mean() > 0.0
    x = jax.nn.sigmoid(conv(x, v["a"]))
    x = jax.lax.cond(
        bright,
        lambda x: jax.nn.relu(conv(x, v["b"])),
        lambda x: jnp.tanh(conv(x, v["c"]) + v["bias"]),
        x,
    )
    return head(x, v)


def looping(v, x):
    """A loop that runs until a counter says so."""
    x = jax.nn.sigmoid(conv(x, v["a"]))
    body = lambda carry: (carry[0] + 1, jax.nn.tanh(conv(carry[1], v["b"]) + v["bias"]))
    _, x = jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, x))
    return head(x, v)


def counted(v, x):
    """`fori_loop`, which can be differentiated, over a stack that is indexed."""
    x = jax.nn.sigmoid(conv(x, v["a"]))
    step = lambda i, x: jax.nn.sigmoid(conv(x, v["b"][i]) + v["bias"])
    return head(jax.lax.fori_loop(0, 2, step, x), v)


def rematerialised(v, x):
    """Two blocks under `jax.checkpoint`, one of them with a policy."""

    def block(x, kernel, bias):
        return jax.nn.silu(conv(x, kernel) + bias)

    x = jax.checkpoint(block)(x, v["a"], v["bias"])
    saved = jax.checkpoint_policies.dots_saveable
    x = jax.checkpoint(jax.nn.sigmoid)(x)
    return head(jax.checkpoint(block, policy=saved)(x, v["b"], v["shift"]), v)


@jax.custom_vjp
def binarised(x, scale):
    """sign(x) * scale, with a straight-through derivative."""
    return jnp.sign(x) * scale


binarised.defvjp(
    lambda x, scale: (binarised(x, scale), (x, scale)),
    lambda saved, g: (
        g * (jnp.abs(saved[0]) < 1) * saved[1],
        (g * jnp.sign(saved[0])).sum(tuple(range(g.ndim - 1))),
    ),
)


@jax.custom_jvp
def clipped(x):
    """Clipped, with a leaky derivative."""
    return jnp.clip(x, 0.1, 1.0)


@clipped.defjvp
def clipped_jvp(primals, tangents):
    """A tenth of the tangent outside."""
    (x,), (t,) = primals, tangents
    return clipped(x), jnp.where((x > 0.1) & (x < 1), t, 0.1 * t)


def custom(v, x):
    """Functions with derivatives of their own, on channels."""
    x = binarised(conv(x, v["a"]), v["scale"])
    return head(clipped(conv(x, v["b"]) + v["bias"]), v)


def mixed(v, x):
    """Computed in bfloat16, parameters and logits in float32."""
    low = lambda a: a.astype(jnp.bfloat16)
    x = jax.nn.sigmoid(conv(low(x), low(v["a"])) + low(v["bias"]))
    x = conv(x, low(v["b"])).astype(jnp.float32)
    return head(jax.nn.relu(norm(x, v["norm"])), v)


def plain(v, x):
    """What the next two transform."""
    x = jax.nn.sigmoid(norm(conv(x, v["a"]), v["norm"]))
    shape = x.shape
    x = jax.nn.relu(conv(x, v["b"], groups=3))
    return head(x.reshape(*shape[:3], -1), v)


def under_vmap(v, x):
    """Per example, then mapped; the inner function knows no batch."""
    return jax.vmap(lambda one: plain(v, one[None])[0])(x)


def under_jit(v, x):
    """Jitted inside, with a nested jit."""
    return jax.jit(lambda v, x: jax.jit(plain)(v, x) * 2)(v, x)


def ensemble(v, x):
    """Parameters with a leading axis of members: the members stay."""
    return jax.vmap(lambda v: jax.nn.sigmoid(x @ v["a"] + v["bias"]) @ v["b"])(v).mean(0)


PLAIN = {
    "a": (3, 3, 4, 12),
    "norm": norm_shapes(12),
    "b": (3, 3, 4, 15),
    "head": head_shapes(15),
}

LOOPING = Net(
    "looping",
    looping,
    {"a": (3, 3, 3, 5), "b": (3, 3, 5, 5), "bias": (5,), "head": head_shapes(5)},
    ((2, 6, 9, 3),),
    {"a": 5},
)
"""`while` has no reverse mode: it is tested in forward mode, apart from the others."""

CONTROL = [
    Net(
        "dropout",
        dropout,
        {"a": (3, 3, 3, 5), "bias": (5,), "b": (3, 3, 5, 7), "head": head_shapes(7)},
        ((2, 6, 9, 3),),
        {"a": 5, "b": 7},
    ),
    Net(
        "scanned",
        scanned,
        {
            "stem": (3, 3, 3, 7),
            "blocks": {
                "a": (2, 3, 3, 7, 5),
                "bias": (2, 5),
                "b": (2, 3, 3, 5, 7),
                "norm": {name: (2, 7) for name in ("mean", "var", "scale", "shift")},
            },
            "head": head_shapes(7),
            "means": (7, 4),
        },
        ((3, 6, 9, 3),),
        # The stream, and the hidden channels, the same in both blocks.
        {"stem": 7, "blocks/a": 5},
    ),
    Net(
        "scanned_attention",
        scanned_attention,
        {
            "embed": (8, 7),
            "blocks": {"q": (2, 7, 5), "k": (2, 7, 5), "v": (2, 7, 6), "out": (2, 6, 7)},
            "head": (7, 4),
        },
        ((3, 9, 8),),
        {"embed": 7, "blocks/q": 5, "blocks/v": 6},
    ),
    Net(
        "branching",
        branching,
        {
            "a": (3, 3, 3, 5),
            "b": (3, 3, 5, 7),
            "c": (1, 1, 5, 7),
            "bias": (7,),
            "head": head_shapes(7),
        },
        ((2, 6, 9, 3),),
        # JAX lists the branch for False first: its kernel names the group.
        {"a": 5, "c": 7},
    ),
    Net(
        "counted",
        counted,
        {"a": (3, 3, 3, 5), "b": (2, 3, 3, 5, 5), "bias": (5,), "head": head_shapes(5)},
        ((3, 6, 9, 3),),
        {"a": 5},
    ),
    Net(
        "rematerialised",
        rematerialised,
        {
            "a": (3, 3, 3, 5),
            "bias": (5,),
            "b": (3, 3, 5, 7),
            "shift": (7,),
            "head": head_shapes(7),
        },
        ((2, 6, 9, 3),),
        {"a": 5, "b": 7},
    ),
    Net(
        "custom",
        custom,
        {
            "a": (3, 3, 3, 5),
            "scale": (5,),
            "b": (3, 3, 5, 7),
            "bias": (7,),
            "head": head_shapes(7),
        },
        ((2, 6, 9, 3),),
        {"a": 5, "b": 7},
    ),
    Net(
        "mixed",
        mixed,
        {
            "a": (3, 3, 3, 5),
            "bias": (5,),
            "b": (3, 3, 5, 7),
            "norm": norm_shapes(7),
            "head": head_shapes(7),
        },
        ((2, 6, 9, 3),),
        {"a": 5, "b": 7},
        bound=0.004,  # one rounding in bfloat16
    ),
    Net("under_vmap", under_vmap, PLAIN, ((2, 6, 9, 4),), {"a": 3, "a@2": 4, "b": 5}),
    Net("under_jit", under_jit, PLAIN, ((2, 6, 9, 4),), {"a": 3, "a@2": 4, "b": 5}),
    Net(
        "ensemble",
        ensemble,
        {"a": (3, 8, 5), "bias": (3, 5), "b": (3, 5, 4)},
        ((6, 8),),
        {"a": 5},
    ),
]

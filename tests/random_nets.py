"""Random small nets, described by a list of numbers so that a failure shrinks to a short list."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.nets import Net, conv, norm, norm_shapes

IMAGE = (2, 4, 3, 5)
MOST = 12
"""No value has more channels."""


class Step(NamedTuple):
    """One layer: its kind, and numbers that choose among what is possible there."""

    kind: str
    first: int
    second: int
    third: int


class Layer(NamedTuple):
    """A step with its operands, its parameters and its width settled."""

    run: Callable[..., Any]
    operands: tuple[int, ...]
    shapes: dict[str, Any]
    width: int


ACTIVATIONS = (jax.nn.relu, jax.nn.sigmoid, jnp.tanh, jax.nn.softplus, jax.nn.gelu, jnp.cos)


def divisor(number, choice):
    """A divisor of `number` other than 1 and itself, if it has one."""
    found = [d for d in range(2, number) if number % d == 0] or [1]
    return found[choice % len(found)]


def plain_conv(step, widths):
    width = 2 + step.second % 6
    size = 1 + 2 * (step.third % 2)
    run = lambda p, x: conv(x, p["kernel"]) + p["bias"]
    return run, {"kernel": (size, size, widths[0], width), "bias": (width,)}, width


def depthwise(step, widths):
    multiplier = 1 + step.second % max(1, min(2, MOST // widths[0]))
    width = widths[0] * multiplier
    run = lambda p, x: conv(x, p["kernel"], groups=widths[0])
    return run, {"kernel": (3, 3, 1, width)}, width


def grouped(step, widths):
    groups = divisor(widths[0], step.second)
    width = max(2, groups * (1 + step.third % max(1, MOST // groups)))
    run = lambda p, x: conv(x, p["kernel"], groups=groups)
    return run, {"kernel": (1, 1, widths[0] // groups, width)}, width


def batch_norm(step, widths):
    del step
    return (lambda p, x: norm(x, p)), norm_shapes(widths[0]), widths[0]


def activation(step, widths):
    function = ACTIVATIONS[step.second % len(ACTIVATIONS)]
    return (lambda p, x: function(x)), {}, widths[0]


def group_norm(step, widths):
    groups = 1 if step.third % 3 == 0 else divisor(widths[0], step.second)

    def run(p, x):
        parts = x.reshape(*x.shape[:3], groups, -1)
        mean = parts.mean((1, 2, 4), keepdims=True)
        var = ((parts - mean) ** 2).mean((1, 2, 4), keepdims=True)
        return ((parts - mean) * jax.lax.rsqrt(var + 0.1)).reshape(x.shape) * p["scale"]

    return run, {"scale": (widths[0],)}, widths[0]


def add(step, widths):
    """Operands of different widths: the narrower one is padded, or the wider one cut."""
    narrow, wide = sorted(widths)
    low = step.third % (wide - narrow + 1)

    def run(p, x, y):
        if x.shape[-1] > y.shape[-1]:
            x, y = y, x
        if step.second % 2:
            return x + y[..., low : low + narrow]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (low, wide - narrow - low))) + y

    return run, {}, narrow if step.second % 2 else wide


def multiply(step, widths):
    """A gate of one channel each, by two dense layers."""
    hidden = 2 + step.second % 4

    def run(p, x):
        gate = jax.nn.relu(x.mean((1, 2)) @ p["squeeze"])
        return x * jax.nn.sigmoid(gate @ p["excite"])[:, None, None]

    return run, {"squeeze": (widths[0], hidden), "excite": (hidden, widths[0])}, widths[0]


def concat(step, widths):
    del step
    if sum(widths) > MOST:
        return (lambda p, x, y: x), {}, widths[0]
    return (lambda p, x, y: jnp.concatenate([x, y], -1)), {}, sum(widths)


def split(step, widths):
    """Two parts exchanged, or one of them, or every second channel."""
    cut = 1 + step.second % (widths[0] - 1)
    runs = [
        (lambda p, x: jnp.concatenate(jnp.split(x, [cut], axis=-1)[::-1], -1), widths[0]),
        (lambda p, x: x[..., min(cut, widths[0] - 2) :], widths[0] - min(cut, widths[0] - 2)),
        (lambda p, x: x[..., ::2], (widths[0] + 1) // 2),
    ]  # no value is left with a single channel
    run, width = runs[step.third % (3 if widths[0] > 2 else 1)]
    return run, {}, width


def shuffle(step, widths):
    groups = divisor(widths[0], step.second)

    def run(p, x):
        return x.reshape(*x.shape[:3], groups, -1).swapaxes(3, 4).reshape(x.shape)

    return run, {}, widths[0]


def permute(step, widths):
    order = np.random.default_rng(step.second).permutation(widths[0])
    run = lambda p, x: (
        (x[..., order] * jnp.tanh(x[..., ::-1])) if step.third % 2 else x[..., order][..., ::-1]
    )
    return run, {}, widths[0]


def rows(step, widths):
    """Channels as rows and columns, with a parameter for the rows and one for the columns."""
    count = divisor(widths[0], step.second)

    def run(p, x):
        parts = x.reshape(*x.shape[:3], count, -1) * p["rows"][:, None] + p["columns"]
        return parts.reshape(x.shape)

    return run, {"rows": (count,), "columns": (widths[0] // count,)}, widths[0]


def transposed(step, widths):
    """Channels first, and a convolution of that layout."""
    width = 2 + step.second % 5

    def run(p, x):
        x = x.transpose(0, 3, 1, 2)
        layout = ("NCHW", "OIHW", "NCHW")
        x = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=layout)
        return (x + p["bias"][:, None, None]).transpose(0, 2, 3, 1)

    return run, {"kernel": (width, widths[0], 1, 3), "bias": (width,)}, width


def attention(step, widths):
    """Heads over pixels."""
    heads, size, width = 1 + step.second % 3, 2 + step.third % 3, 2 + step.first % 6

    def run(p, x):
        y = x.reshape(x.shape[0], -1, x.shape[-1])
        q, k, v = jnp.split((y @ p["qkv"]).reshape(*y.shape[:2], 3 * heads, size), 3, axis=2)
        scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        y = jnp.einsum("bhqk,bkhd->bqhd", scores, v).reshape(*y.shape[:2], -1)
        return (y @ p["project"]).reshape(*x.shape[:3], -1)

    shapes = {"qkv": (widths[0], 3 * heads * size), "project": (heads * size, width)}
    return run, shapes, width


KINDS = {
    "conv": (plain_conv, 1),
    "conv again": (plain_conv, 1),
    "depthwise": (depthwise, 1),
    "grouped": (grouped, 1),
    "batch norm": (batch_norm, 1),
    "activation": (activation, 1),
    "activation again": (activation, 1),
    "group norm": (group_norm, 1),
    "add": (add, 2),
    "add again": (add, 2),
    "multiply": (multiply, 1),
    "concat": (concat, 2),
    "split": (split, 1),
    "shuffle": (shuffle, 1),
    "permute": (permute, 1),
    "rows": (rows, 1),
    "transposed": (transposed, 1),
    "attention": (attention, 1),
}
"""How a kind of layer is made, and how many operands it has."""


def settle(steps) -> list[Layer]:
    """Layers from steps; value 0 is a first convolution, value i is what layer i makes."""
    layers = [Layer(*_first(), 6)]
    for step in steps:
        make, count = KINDS[step.kind]
        # The latest value, and an earlier one.
        operands = (len(layers) - 1, step.first % len(layers))[:count]
        run, shapes, width = make(step, [layers[number].width for number in operands])
        layers.append(Layer(run, operands, shapes, width))
    return layers


def _first():
    return (lambda p, x: conv(x, p["kernel"])), (), {"kernel": (3, 3, IMAGE[-1], 6)}


def build(steps, flat=False) -> Net:
    """The net of some steps; its head flattens, or pools."""
    layers = settle(steps)
    positions = IMAGE[1] * IMAGE[2] if flat else 1
    shapes = {f"{number:02}": layer.shapes for number, layer in enumerate(layers)}
    shapes["head"] = {"kernel": (positions * layers[-1].width, 3)}

    def fn(v, x):
        values = []
        for number, layer in enumerate(layers):
            operands = [values[operand] for operand in layer.operands] or [x]
            values.append(layer.run(v[f"{number:02}"], *operands))
        last = jax.nn.sigmoid(values[-1])
        last = last.reshape(last.shape[0], -1) if flat else last.mean((1, 2))
        return last @ v["head"]["kernel"]

    return Net("random", fn, shapes, (IMAGE,), {}, 1e-9)

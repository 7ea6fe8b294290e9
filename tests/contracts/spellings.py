"""One residual net in six spellings, the same numbers in all of them: what differs is the tree.

Flax NNX and Linen hold kernels HWIO in nested dictionaries; Equinox OIHW in modules, with biases
[C, 1, 1], for one image under `vmap`; Haiku norms of shape [1, 1, 1, C] with hidden averages beside
those that count; `listed` is a flat list as Keras has it, `flat` a dictionary {"w1", "b1", ...}.
All axes have different sizes, windows are not square, and nothing is 0 or 1 by accident.

*Canonical* names and shapes (`SHAPES`) are those that the spellings are compared in.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from jprune.base import Task
from tests.contracts.own import CLASSES, by_path, conv, data_of, task_of

IMAGE, WINDOW = (12, 8, 2), (3, 5)
CHANNELS, STREAM, FIRST, SECOND = 2, 6, 9, 7
MOMENTUM = 0.9
CONVOLUTIONS = {
    "stem": (CHANNELS, STREAM),
    "a": (STREAM, FIRST),
    "b": (FIRST, STREAM),
    "c": (STREAM, SECOND),
    "d": (SECOND, STREAM),
}
"""{name: (inputs, outputs)}: x = relu(stem), then twice x = relu(x + conv(relu(norm(conv(x)))))."""
NORMED = ("a", "c")
"""Convolutions with a norm behind them; the others have a bias."""
KERNELS = (*CONVOLUTIONS, "head")
SHAPES: dict[str, tuple[int, ...]] = {
    **{f"{name}/kernel": (*WINDOW, *sizes) for name, sizes in CONVOLUTIONS.items()},
    **{f"{name}/bias": (CONVOLUTIONS[name][1],) for name in ("stem", "b", "d")},
    **{
        f"{name}/{leaf}": (CONVOLUTIONS[name][1],)
        for name in NORMED
        for leaf in ("scale", "shift", "mean", "var")
    },
    "head/kernel": (STREAM, CLASSES),
    "head/bias": (CLASSES,),
}
GROUPS = {"stem": STREAM, "a": FIRST, "c": SECOND}
"""{convolution that comes first: units}."""


class Leaf(NamedTuple):
    """Where a canonical leaf stands."""

    path: str
    axes: tuple[int, ...] = ()
    """`leaf.transpose(axes)` is the canonical one, up to axes of size 1; (): it is as it stands."""


class Spelling(NamedTuple):
    """The net in the words of a library."""

    name: str
    task: Task
    leaves: dict[str, Leaf]
    """{canonical name: leaf}."""

    def canonical(self, tree: Any) -> dict[str, np.ndarray]:
        """{canonical name: array} of a tree like the variables, without its None leaves."""
        arrays = by_path(tree)
        return {
            name: turned(arrays[leaf.path], leaf.axes).reshape(SHAPES[name])
            for name, leaf in self.leaves.items()
            if leaf.path in arrays
        }

    def groups(self) -> dict[str, str]:
        """{name of a group or branch in this spelling: canonical name}."""
        names = {self.leaves[f"{name}/kernel"].path: name for name in KERNELS}
        return {**names, **{f"branch/{path}": f"branch/{name}" for path, name in names.items()}}


def turned(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """An array with its axes in canonical order."""
    return array.transpose(axes) if axes else array


def numbers() -> dict[str, np.ndarray]:
    """{canonical name: array}: the weights that every spelling begins with."""
    rng = np.random.default_rng(0)

    def one(name, shape):
        leaf = name.rpartition("/")[2]
        if leaf == "kernel":
            return rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        around = {"scale": 1.0, "var": 1.0}.get(leaf, 0.0)
        return around + rng.uniform(-0.4, 0.4, size=shape)

    return {name: one(name, shape).astype(np.float32) for name, shape in SHAPES.items()}


def filled(shapes: Any, leaves: dict[str, Leaf], others: dict[str, Any]) -> Any:
    """The canonical numbers in a tree of these shapes.

    Args:
        shapes: tree like the variables.
        leaves: where canonical leaves stand.
        others: {path: number, or canonical name of the leaf that it repeats}.
    """
    values = numbers()
    names = {leaf.path: (name, leaf.axes) for name, leaf in leaves.items()}

    def fill(path, shape):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        other = others.get(path)
        if path in others and not isinstance(other, str):
            return np.full(shape.shape, other, shape.dtype)
        name, axes = (other, ()) if isinstance(other, str) else names[path]
        order = axes or tuple(range(len(shape.shape)))
        value = values[name].reshape([shape.shape[axis] for axis in order])
        return value.transpose(np.argsort(order))

    return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    images = rng.normal(size=(32, *IMAGE)).astype(np.float32)
    return images, rng.integers(0, CLASSES, 32).astype(np.int32)


def spelling(
    name: str,
    fn: Callable[..., Any],
    train_fn: Callable[..., Any],
    shapes: Any,
    leaves: dict[str, Leaf],
    others: dict[str, Any] | None = None,
) -> Spelling:
    """A spelling whose variables are {"params", "stats"}."""
    start = filled(shapes, leaves, others or {})
    images, labels = images_and_labels()
    task = task_of(fn, start["params"], IMAGE, start["stats"], images, labels, name=name)
    return Spelling(name, task._replace(train_fn=train_fn, data=data_of(images, labels)), leaves)


def names_of(
    kernel: str, bias: str, norm: str, scale: str, shift: str, mean: str, var: str
) -> dict[str, Leaf]:
    """Leaves from patterns with {0} for the layer; `norm` is the pattern of a norm's name."""
    found = {f"{name}/kernel": Leaf(kernel.format(name)) for name in KERNELS}
    found |= {f"{name}/bias": Leaf(bias.format(name)) for name in KERNELS if name not in NORMED}
    patterns = {"scale": scale, "shift": shift, "mean": mean, "var": var}
    for name in NORMED:
        for leaf, pattern in patterns.items():
            found[f"{name}/{leaf}"] = Leaf(pattern.format(norm.format(name)))
    return found


# ---- Flax ---------------------------------------------------------------------------------------


class NnxNet(nnx.Module):
    """Flax NNX."""

    def __init__(self, rngs):
        for name, (inputs, outputs) in CONVOLUTIONS.items():
            bias = name not in NORMED
            setattr(self, name, nnx.Conv(inputs, outputs, WINDOW, use_bias=bias, rngs=rngs))
        for name in NORMED:
            width = CONVOLUTIONS[name][1]
            setattr(self, f"norm_{name}", nnx.BatchNorm(width, momentum=MOMENTUM, rngs=rngs))
        self.head = nnx.Linear(STREAM, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        x = nnx.relu(x + self.b(nnx.relu(self.norm_a(self.a(x)))))
        x = nnx.relu(x + self.d(nnx.relu(self.norm_c(self.c(x)))))
        return self.head(x.mean((1, 2)))


def of_nnx() -> Spelling:
    net = nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0)))
    graph, params, stats = nnx.split(net, nnx.Param, nnx.BatchStat)

    def merged(variables):
        return nnx.merge(graph, variables["params"], variables["stats"])

    def fn(variables, x):
        net = merged(variables)
        net.eval()
        return net(x)

    def train_fn(variables, x, key):
        net = merged(variables)
        return net(x), nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))

    shapes = {"params": nnx.to_pure_dict(params), "stats": nnx.to_pure_dict(stats)}
    leaves = names_of(
        "params/{0}/kernel",
        "params/{0}/bias",
        "norm_{0}",
        "params/{0}/scale",
        "params/{0}/bias",
        "stats/{0}/mean",
        "stats/{0}/var",
    )
    return spelling("nnx", fn, train_fn, shapes, leaves)


class LinenNet(nn.Module):
    """Flax Linen."""

    @nn.compact
    def __call__(self, x, train=False):
        def layer(name, x):
            return nn.Conv(CONVOLUTIONS[name][1], WINDOW, use_bias=name not in NORMED, name=name)(x)

        def normed(name, x):
            return nn.BatchNorm(not train, momentum=MOMENTUM, name=f"norm_{name}")(x)

        x = nn.relu(layer("stem", x))
        x = nn.relu(x + layer("b", nn.relu(normed("a", layer("a", x)))))
        x = nn.relu(x + layer("d", nn.relu(normed("c", layer("c", x)))))
        return nn.Dense(CLASSES, name="head")(x.mean((1, 2)))


def of_linen() -> Spelling:
    net = LinenNet()

    def named(variables):
        return {"params": variables["params"], "batch_stats": variables["stats"]}

    def fn(variables, x):
        return net.apply(named(variables), x)

    def train_fn(variables, x, key):
        out, new = net.apply(named(variables), x, train=True, mutable=["batch_stats"])
        return out, new["batch_stats"]

    image = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    shapes = dict(jax.eval_shape(net.init, jax.random.key(0), image))
    leaves = names_of(
        "params/{0}/kernel",
        "params/{0}/bias",
        "norm_{0}",
        "params/{0}/scale",
        "params/{0}/bias",
        "stats/{0}/mean",
        "stats/{0}/var",
    )
    shapes = {"params": shapes["params"], "stats": shapes["batch_stats"]}
    return spelling("linen", fn, train_fn, shapes, leaves)


# ---- Equinox ------------------------------------------------------------------------------------


class EquinoxNet(eqx.Module):
    """Equinox, for one image with channels first."""

    convolutions: dict[str, eqx.nn.Conv2d]
    norms: dict[str, eqx.nn.BatchNorm]
    head: eqx.nn.Linear

    def __init__(self, key):
        self.convolutions = {
            name: eqx.nn.Conv2d(
                *sizes, WINDOW, padding="SAME", use_bias=name not in NORMED, key=key
            )
            for name, sizes in CONVOLUTIONS.items()
        }
        self.norms = {
            name: eqx.nn.BatchNorm(CONVOLUTIONS[name][1], "batch", momentum=MOMENTUM, mode="batch")
            for name in NORMED
        }
        self.head = eqx.nn.Linear(STREAM, CLASSES, key=key)

    def __call__(self, x, state):
        layer = self.convolutions
        x = jax.nn.relu(layer["stem"](x))
        h, state = self.norms["a"](layer["a"](x), state)
        x = jax.nn.relu(x + layer["b"](jax.nn.relu(h)))
        h, state = self.norms["c"](layer["c"](x), state)
        x = jax.nn.relu(x + layer["d"](jax.nn.relu(h)))
        return self.head(x.mean((1, 2))), state


def of_equinox() -> Spelling:
    net, state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_array)
    frozen = eqx.nn.inference_mode(static)

    def of_batch(variables, rest, x):
        net = eqx.combine(variables["params"], rest)
        each = jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return each(x.transpose(0, 3, 1, 2), variables["stats"])

    def fn(variables, x):
        return of_batch(variables, frozen, x)[0]

    def train_fn(variables, x, key):
        return of_batch(variables, static, x)

    leaves = names_of(
        "params/convolutions/{0}/weight",
        "params/convolutions/{0}/bias",
        "{0}",
        "params/norms/{0}/weight",
        "params/norms/{0}/bias",
        "",
        "",
    )
    for name in CONVOLUTIONS:
        leaves[f"{name}/kernel"] = leaves[f"{name}/kernel"]._replace(axes=(2, 3, 1, 0))
    leaves["head/kernel"] = Leaf("params/head/weight", (1, 0))
    leaves["head/bias"] = Leaf("params/head/bias")
    # A counter and (mean, variance) of every norm; a counter so high corrects nothing.
    for number, name in enumerate(NORMED):
        leaves[f"{name}/mean"] = Leaf(f"stats/{2 * number + 1}/0")
        leaves[f"{name}/var"] = Leaf(f"stats/{2 * number + 1}/1")
    counters = {f"stats/{2 * number}": 10_000 for number in range(len(NORMED))}
    shapes = {"params": params, "stats": state}
    return spelling("equinox", fn, train_fn, shapes, leaves, counters)


# ---- Haiku --------------------------------------------------------------------------------------


def haiku_net(x, train):
    """Haiku."""

    def layer(name, x):
        with_bias = name not in NORMED
        return hk.Conv2D(CONVOLUTIONS[name][1], WINDOW, with_bias=with_bias, name=name)(x)

    def normed(name, x):
        return hk.BatchNorm(True, True, MOMENTUM, name=f"norm_{name}")(x, train)

    x = jax.nn.relu(layer("stem", x))
    x = jax.nn.relu(x + layer("b", jax.nn.relu(normed("a", layer("a", x)))))
    x = jax.nn.relu(x + layer("d", jax.nn.relu(normed("c", layer("c", x)))))
    return hk.Linear(CLASSES, name="head")(x.mean((1, 2)))


def of_haiku() -> Spelling:
    net = hk.without_apply_rng(hk.transform_with_state(haiku_net))

    def fn(variables, x):
        return net.apply(variables["params"], variables["stats"], x, False)[0]

    def train_fn(variables, x, key):
        return net.apply(variables["params"], variables["stats"], x, True)

    image = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    init = lambda key, x: net.init(key, x, True)
    params, stats = jax.eval_shape(init, jax.random.key(0), image)
    leaves = names_of(
        "params/{0}/w",
        "params/{0}/b",
        "norm_{0}",
        "params/{0}/scale",
        "params/{0}/offset",
        "stats/{0}/~/mean_ema/average",
        "stats/{0}/~/var_ema/average",
    )
    others: dict[str, Any] = {}
    for name in NORMED:
        for leaf in ("mean", "var"):
            of_average = f"stats/norm_{name}/~/{leaf}_ema"
            # With a counter so high the hidden average is the one that counts.
            others |= {f"{of_average}/hidden": f"{name}/{leaf}", f"{of_average}/counter": 10_000}
    return spelling("haiku", fn, train_fn, {"params": params, "stats": stats}, leaves, others)


# ---- flat trees ---------------------------------------------------------------------------------


def plain(layer: dict[str, Any], x: Any, train: bool) -> tuple[Any, dict[str, Any]]:
    """The net as plain functions.

    Args:
        layer: {canonical name: array}.
        x: images [batch, h, w, c].
        train: whether norms use the batch's statistics.

    Returns:
        The logits and {canonical name: new statistics}.
    """
    new = {}

    def convolved(name, x):
        x = conv(x, layer[f"{name}/kernel"])
        return x if name in NORMED else x + layer[f"{name}/bias"]

    def normed(name, x):
        mean, var = layer[f"{name}/mean"], layer[f"{name}/var"]
        if train:
            now = {f"{name}/mean": x.mean((0, 1, 2)), f"{name}/var": x.var((0, 1, 2))}
            new.update({n: MOMENTUM * layer[n] + (1 - MOMENTUM) * now[n] for n in now})
            mean, var = now.values()
        x = (x - mean) * jax.lax.rsqrt(var + 1e-5)
        return x * layer[f"{name}/scale"] + layer[f"{name}/shift"]

    x = jax.nn.relu(convolved("stem", x))
    x = jax.nn.relu(x + convolved("b", jax.nn.relu(normed("a", convolved("a", x)))))
    x = jax.nn.relu(x + convolved("d", jax.nn.relu(normed("c", convolved("c", x)))))
    return x.mean((1, 2)) @ layer["head/kernel"] + layer["head/bias"], new


STATISTICS = tuple(name for name in SHAPES if name.endswith(("mean", "var")))
PARAMETERS = tuple(
    f"{name}/{leaf}"
    for name in KERNELS
    for leaf in ("kernel", "bias", "scale", "shift")
    if f"{name}/{leaf}" in SHAPES
)
"""Layer by layer, as a Keras model lists them."""


def of_keys(name: str, keys: dict[str, Any], as_tree: Callable[[dict[Any, Any]], Any]) -> Spelling:
    """A spelling without layers: params[key] and stats[key] are arrays.

    Args:
        name: of the spelling.
        keys: {canonical name: key}.
        as_tree: {key: array} as the tree that the net has.
    """
    tree = lambda values, names: as_tree({keys[name]: values[name] for name in names})

    def unpacked(variables):
        part = lambda name: variables["stats" if name in STATISTICS else "params"]
        return {name: part(name)[keys[name]] for name in SHAPES}

    def fn(variables, x):
        return plain(unpacked(variables), x, False)[0]

    def train_fn(variables, x, key):
        out, new = plain(unpacked(variables), x, True)
        return out, tree(new, STATISTICS)

    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
    shapes = {"params": tree(shapes, PARAMETERS), "stats": tree(shapes, STATISTICS)}
    part = lambda name: "stats" if name in STATISTICS else "params"
    leaves = {canonical: Leaf(f"{part(canonical)}/{key}") for canonical, key in keys.items()}
    return spelling(name, fn, train_fn, shapes, leaves)


def of_listed() -> Spelling:
    numbered = {name: n for names in (PARAMETERS, STATISTICS) for n, name in enumerate(names)}
    return of_keys("listed", numbered, lambda values: [values[n] for n in range(len(values))])


def of_flat() -> Spelling:
    letters = {"kernel": "w", "bias": "b", "scale": "g", "shift": "s", "mean": "m", "var": "v"}
    numbered = {name: str(number) for number, name in enumerate(KERNELS, 1)}
    keys = {
        name: letters[name.rpartition("/")[2]] + numbered[name.rpartition("/")[0]]
        for name in SHAPES
    }
    return of_keys("flat", keys, dict)


MAKERS = {
    "nnx": of_nnx,
    "linen": of_linen,
    "equinox": of_equinox,
    "haiku": of_haiku,
    "listed": of_listed,
    "flat": of_flat,
}


@functools.cache
def of(name: str) -> Spelling:
    """The spelling of a name; made once, so that what is compiled for it is compiled once."""
    return MAKERS[name]()

"""One net, written in every library: the same units, the law, and training after `slim`.

A convolution with batch norm, a residual block, a depthwise convolution, a dense layer. All that a
library needs is a pure function whose first argument holds everything that must shrink.
"""

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jprune
from tests.law import check_law, quick, random_masks, relative_error
from tests.nets import conv, norm, norm_shapes

SHAPE = (4, 8, 6, 3)


def drawn(shapes, seed=0):
    """A tree of these shapes with random numbers, variances positive, counters at zero."""
    rng = np.random.default_rng(seed)

    def leaf(path, array):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return jnp.zeros(array.shape, array.dtype)
        name = jax.tree_util.keystr(path)
        value = rng.normal(size=array.shape)
        if array.ndim > 1:
            value /= np.sqrt(np.prod(array.shape[:-1]))
        return jnp.asarray(np.abs(value) + 0.5 if "var" in name else value, array.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


class Example:
    """A net as jprune takes it: `fn`, and `train_fn` with new statistics beside the logits."""

    variables: Any
    """Shapes are enough to trace; the tests draw numbers."""

    stem = ""
    """Name of the group of the residual stream, by its kernel's path."""
    hidden = ""


class Lax(Example):
    """Plain functions."""

    stem, hidden = "params/a", "params/b"

    def __init__(self):
        shapes = {
            "params": {
                "a": (3, 3, 3, 5),
                "b": (3, 3, 5, 7),
                "c": (3, 3, 7, 5),
                "deep": (3, 3, 1, 5),
                "norm": norm_shapes(5),
                "out": (5, 4),
            }
        }
        is_shape = lambda node: isinstance(node, tuple)
        self.variables = jax.tree.map(jnp.zeros, shapes, is_leaf=is_shape)

    def fn(self, variables, x):
        v = variables["params"]
        x = jax.nn.sigmoid(norm(conv(x, v["a"]), v["norm"]))
        x = x + conv(jax.nn.relu(conv(x, v["b"])), v["c"])
        return conv(x, v["deep"], groups=x.shape[-1]).mean((1, 2)) @ v["out"]

    def train_fn(self, variables, x):
        return self.fn(variables, x), {}


class NnxNet(nnx.Module):
    """Flax NNX."""

    def __init__(self, rngs):
        self.a = nnx.Conv(3, 5, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.b = nnx.Conv(5, 7, (3, 3), rngs=rngs)
        self.c = nnx.Conv(7, 5, (3, 3), rngs=rngs)
        self.deep = nnx.Conv(5, 5, (3, 3), feature_group_count=5, rngs=rngs)
        self.out = nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.sigmoid(self.norm(self.a(x)))
        x = x + self.c(jax.nn.relu(self.b(x)))
        return self.out(self.deep(x).mean((1, 2)))


class Nnx(Example):
    """`nnx.split` into plain dictionaries, `nnx.merge` inside the function."""

    stem, hidden = "params/a/kernel", "params/b/kernel"

    def __init__(self):
        net = nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0)))
        self.graph, params, stats = nnx.split(net, nnx.Param, nnx.BatchStat)
        self.variables = {"params": nnx.to_pure_dict(params), "stats": nnx.to_pure_dict(stats)}

    def fn(self, variables, x):
        net = nnx.merge(self.graph, variables["params"], variables["stats"])
        net.eval()
        return net(x)

    def train_fn(self, variables, x):
        net = nnx.merge(self.graph, variables["params"], variables["stats"])
        logits = net(x)
        return logits, nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))


class LinenNet(nn.Module):
    """Flax Linen."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(5, (3, 3), name="a")(x)
        x = jax.nn.sigmoid(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        h = nn.Conv(7, (3, 3), name="b")(x)
        x = x + nn.Conv(5, (3, 3), name="c")(jax.nn.relu(h))
        x = nn.Conv(5, (3, 3), feature_group_count=5, name="deep")(x)
        return nn.Dense(4, name="out")(x.mean((1, 2)))


class Linen(Example):
    """`apply` is pure already. It refuses other shapes: `slim` never calls it on small arrays."""

    stem, hidden = "params/a/kernel", "params/b/kernel"

    def __init__(self):
        image = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
        self.variables = dict(jax.eval_shape(LinenNet().init, jax.random.key(0), image))

    def fn(self, variables, x):
        return LinenNet().apply(variables, x)

    def train_fn(self, variables, x):
        return LinenNet().apply(variables, x, train=True, mutable=["batch_stats"])


class EquinoxNet(eqx.Module):
    """Equinox, for one image with channels first; group norm with a group per channel."""

    a: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    b: eqx.nn.Conv2d
    c: eqx.nn.Conv2d
    deep: eqx.nn.Conv2d
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.a = eqx.nn.Conv2d(3, 5, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.GroupNorm(5, 5)
        self.b = eqx.nn.Conv2d(5, 7, 3, padding=1, key=keys[1])
        self.c = eqx.nn.Conv2d(7, 5, 3, padding=1, key=keys[2])
        self.deep = eqx.nn.Conv2d(5, 5, 3, padding=1, groups=5, key=keys[3])
        self.out = eqx.nn.Linear(5, 4, key=keys[4])

    def __call__(self, x):
        x = jax.nn.sigmoid(self.norm(self.a(x)))
        x = x + self.c(jax.nn.relu(self.b(x)))
        return self.out(self.deep(x).mean((1, 2)))


class Equinox(Example):
    """`eqx.partition` into arrays and the rest."""

    stem, hidden = "params/a/weight", "params/b/weight"

    def __init__(self):
        net = eqx.filter_eval_shape(EquinoxNet, jax.random.key(0))
        params, self.static = eqx.partition(net, lambda x: isinstance(x, jax.ShapeDtypeStruct))
        self.variables = {"params": params}

    def fn(self, variables, x):
        net = eqx.combine(variables["params"], self.static)
        return jax.vmap(net)(x.transpose(0, 3, 1, 2))

    def train_fn(self, variables, x):
        return self.fn(variables, x), {}


def haiku_net(x, train):
    """Haiku."""
    x = hk.Conv2D(5, 3, name="a")(x)
    x = jax.nn.sigmoid(hk.BatchNorm(True, True, 0.9, name="norm")(x, train))
    h = jax.nn.relu(hk.Conv2D(7, 3, name="b")(x))
    x = x + hk.Conv2D(5, 3, name="c")(h)
    x = hk.DepthwiseConv2D(1, 3, name="deep")(x)
    return hk.Linear(4, name="out")(x.mean((1, 2)))


class Haiku(Example):
    """`transform_with_state`; its hidden averages are tied through the training function."""

    stem, hidden = "params/a/w", "params/b/w"

    def __init__(self):
        self.net = hk.without_apply_rng(hk.transform_with_state(haiku_net))
        image = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
        init = lambda key, x: self.net.init(key, x, True)
        params, stats = jax.eval_shape(init, jax.random.key(0), image)
        self.variables = {"params": params, "stats": stats}

    def fn(self, variables, x):
        return self.net.apply(variables["params"], variables["stats"], x, False)[0]

    def train_fn(self, variables, x):
        return self.net.apply(variables["params"], variables["stats"], x, True)


class Keras(Example):
    """`stateless_call` takes and returns flat lists of arrays."""

    stem, hidden = "params/0", "params/4"

    def __init__(self):
        layers = keras.layers
        image = keras.Input(SHAPE[1:])
        x = layers.Conv2D(5, 3, padding="same")(image)
        x = layers.Activation("sigmoid")(layers.BatchNormalization()(x))
        h = layers.Conv2D(7, 3, padding="same", activation="relu")(x)
        x = layers.Add()([x, layers.Conv2D(5, 3, padding="same")(h)])
        x = layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3, padding="same")(x))
        self.model = keras.Model(image, layers.Dense(4)(x))
        values = lambda variables: [variable.value for variable in variables]
        # The last statistic is the variance: its name tells `drawn` so.
        mean, variance = values(self.model.non_trainable_variables)
        self.variables = {
            "params": values(self.model.trainable_variables),
            "stats": {"mean": mean, "variance": variance},
        }

    def fn(self, variables, x):
        return self.model.stateless_call(*self.flat(variables), x, training=False)[0]

    def train_fn(self, variables, x):
        logits, stats = self.model.stateless_call(*self.flat(variables), x, training=True)
        return logits, dict(zip(("mean", "variance"), stats))

    def flat(self, variables):
        return variables["params"], [variables["stats"][name] for name in ("mean", "variance")]


LIBRARIES = [Lax, Nnx, Linen, Equinox, Haiku, Keras]


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.__name__, scope="module")
def example(request):
    net = request.param()
    net.variables = drawn(net.variables)
    return net


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)


def test_units_and_law(example, x):
    groups = jprune.trace(example.fn, example.variables, x)
    assert groups.sizes == {example.stem: 5, example.hidden: 7}
    check_law(example.fn, example.variables, (x,), random_masks(groups), groups, 1e-5)


def test_training_goes_on_after_slim(example, x):
    """New statistics of the slim net are those of the masked one, sliced."""
    groups = jprune.trace(example.fn, example.variables, x, twin=example.train_fn)
    assert groups.sizes == {example.stem: 5, example.hidden: 7}
    masks = random_masks(groups)
    small = jprune.slim_params(groups, masks, example.variables)
    masked = jprune.apply_masks(example.variables, jprune.expand(groups, masks, roles=("in",)))
    whole = quick(example.train_fn, masked, x)
    slim = quick(jprune.slim(example.train_fn, groups, masks), small, x)
    assert relative_error(whole[0], slim[0]) < 1e-5
    expected = jprune.slim_params(groups, masks, whole[1])
    assert jax.tree.map(jnp.shape, expected) == jax.tree.map(jnp.shape, slim[1])
    if jax.tree.leaves(expected):
        assert relative_error(expected, slim[1]) < 1e-5

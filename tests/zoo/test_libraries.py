"""Modules of every library become nets: units, the law, dropout, own variables, several inputs."""

import os

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
from jprune import errors, recipes, train, zoo
from jprune.base import Budget, Data, Pruned
from jprune.zoo import own
from tests.law import relative_error
from tests.toys import toy_data

SHAPE, CLASSES = (8, 8, 1), 3
KEY = jax.random.key(0)


class Scale(nnx.Variable):
    """A type of the user's own."""


class NnxNet(nnx.Module):
    def __init__(self, rngs, inputs=1):
        self.layers = nnx.List(
            [nnx.Conv(inputs, 6, (3, 3), rngs=rngs), nnx.BatchNorm(6, rngs=rngs)]
        )
        self.scale = Scale(jnp.full(6, 1.5))
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(6, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.layers[1](self.layers[0](x)) * self.scale[...])
        return self.out(self.drop(x.mean((1, 2))))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(6, (3, 3), name="first")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        self.sow("intermediates", "features", x)
        x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(CLASSES)(x)


class EquinoxNet(eqx.Module):
    first: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    out: eqx.nn.Linear
    offset: jax.Array

    def __init__(self, key):
        keys = jax.random.split(key)
        self.first = eqx.nn.Conv2d(1, 6, 3, padding="SAME", key=keys[0])
        self.norm = eqx.nn.BatchNorm(6, "batch", mode="batch")
        self.drop = eqx.nn.Dropout(0.5)
        self.out = eqx.nn.Linear(6, CLASSES, key=keys[1])
        self.offset = jnp.arange(CLASSES)

    def __call__(self, x, state, *, key):
        x, state = self.norm(self.first(x), state)
        x = self.drop(jax.nn.relu(x).mean((1, 2)), key=key)
        return self.out(x) + self.offset, state


def haiku_net(x, is_training):
    x = hk.Conv2D(6, 3, name="first")(x)
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training)).mean((1, 2))
    x = hk.dropout(hk.next_rng_key(), 0.5 * is_training, x)
    return hk.Linear(CLASSES)(x)


class KerasNet(keras.Model):
    """Subclassed: it has no weights before it has seen an input."""

    def __init__(self):
        super().__init__(name="keras_net")
        self.first = keras.layers.Conv2D(6, 3, padding="same")
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.5)
        self.out = keras.layers.Dense(CLASSES)

    def call(self, x, training=False):
        x = keras.ops.relu(self.norm(self.first(x), training=training))
        return self.out(self.drop(keras.ops.mean(x, (1, 2)), training=training))


class Silent(KerasNet):
    """A model whose `call` is not told the mode; its layers are."""

    def call(self, x):
        x = keras.ops.relu(self.norm(self.first(x)))
        return self.out(self.drop(keras.ops.mean(x, (1, 2))))


def functional():
    net = KerasNet()
    x = keras.Input(SHAPE)
    y = keras.layers.ReLU()(net.norm(net.first(x)))
    y = net.out(net.drop(keras.layers.GlobalAveragePooling2D()(y)))
    return keras.Model(x, y, name="functional")


NETS = {
    "nnx": lambda: zoo.from_nnx(NnxNet, SHAPE),
    "linen": lambda: zoo.from_linen(LinenNet(), SHAPE),
    "equinox": lambda: zoo.from_equinox(EquinoxNet, SHAPE),
    "haiku": lambda: zoo.from_haiku(haiku_net, SHAPE),
    "keras": lambda: zoo.from_keras(KerasNet(), SHAPE),
    "silent": lambda: zoo.from_keras(Silent(), SHAPE),
    "functional": lambda: zoo.from_keras(functional()),
}


@pytest.fixture(scope="module", params=NETS)
def net(request):
    return NETS[request.param]()


def drawn(net):
    """Variables with statistics that differ between the channels."""
    rng = np.random.default_rng(0)
    move = lambda x: x + rng.uniform(0, 0.4, x.shape) if x.dtype == jnp.float32 else x
    return jax.tree.map(lambda x: jnp.asarray(move(x), x.dtype), net.init(KEY))


def images(count=5, seed=1):
    return jax.random.normal(jax.random.key(seed), (count, *SHAPE))


def test_a_net_is_what_the_command_line_takes(net):
    own.check(net, "own:build", CLASSES, SHAPE)
    paths = jax.tree.leaves_with_path(net.init(KEY))
    assert all(isinstance(key.key, str) for path, _ in paths for key in path)


def test_units_and_the_law(net):
    variables = drawn(net)
    groups = jprune.trace(net.fn, variables, net.example)
    assert list(groups.sizes.values()) == [6]
    masks = {name: np.arange(size) % 3 > 0 for name, size in groups.sizes.items()}
    small = jax.jit(jprune.slim(net.fn, groups, masks))
    cut = jprune.slim_params(groups, masks, variables)
    masked = jprune.apply_masks(variables, jprune.expand(groups, masks, roles=("in",)))
    assert relative_error(net.fn(masked, images()), small(cut, images())) < 1e-5
    assert sum(x.size for x in jax.tree.leaves(cut)) < sum(
        x.size for x in jax.tree.leaves(variables)
    )


def test_inference_draws_nothing_and_training_draws_from_the_key(net):
    variables, x = drawn(net), images()
    run = jax.jit(net.train_fn)
    out, stats = run(variables, x, jax.random.key(1))
    np.testing.assert_array_equal(out, run(variables, x, jax.random.key(1))[0])
    assert not np.array_equal(out, run(variables, x, jax.random.key(2))[0])
    np.testing.assert_array_equal(net.fn(variables, x), net.fn(variables, x))
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), stats, variables["stats"])
    assert any(jax.tree.leaves(changed))


def test_a_task_trains_it(net):
    task = train.task(net, toy_data())
    tune = recipes.Train(1, 0.05, 16, max_steps=2)
    stages = recipes.find("l1")(Budget(density=0.5), None, tune)
    pruned, _ = recipes.run(stages, Pruned(task.init(KEY), None), task, KEY)
    assert [int(mask.sum()) for mask in pruned.masks.values()] == [3]


def test_variables_of_ones_own_are_pruned_with_the_channels():
    net = NETS["nnx"]()
    groups = jprune.trace(net.fn, net.init(KEY), net.example)
    leaves = {place.leaf for place in groups.places["params/layers/0/kernel"]}
    assert {"stats/scale", "stats/layers/1/mean", "params/out/kernel"} <= leaves


class Pair(nnx.Module):
    def __init__(self, rngs):
        self.left, self.right = nnx.Linear(4, 7, rngs=rngs), nnx.Linear(3, 7, rngs=rngs)
        self.out = nnx.Linear(7, 2, rngs=rngs)

    def __call__(self, left, right):
        return self.out(nnx.relu(self.left(left) + self.right(right)))


class LinenPair(nn.Module):
    @nn.compact
    def __call__(self, left, right):
        return nn.Dense(2)(nn.relu(nn.Dense(7)(left) + nn.Dense(7)(right)))


class EquinoxPair(eqx.Module):
    layers: list

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        sizes = ((4, 7), (3, 7), (7, 2))
        self.layers = [eqx.nn.Linear(*size, key=key) for size, key in zip(sizes, keys)]

    def __call__(self, left, right):
        return self.layers[2](jax.nn.relu(self.layers[0](left) + self.layers[1](right)))


def haiku_pair(left, right):
    return hk.Linear(2)(jax.nn.relu(hk.Linear(7)(left) + hk.Linear(7)(right)))


def keras_pair():
    left, right = keras.Input((4,)), keras.Input((3,))
    hidden = [keras.layers.Dense(7)(side) for side in (left, right)]
    y = keras.layers.ReLU()(keras.layers.Add()(hidden))
    return keras.Model([left, right], keras.layers.Dense(2)(y))


def shapes(batch):
    of = lambda size: jax.ShapeDtypeStruct((batch, size), jnp.float32)
    return of(4), of(3)


PAIRS = {
    "nnx": lambda shape: zoo.from_nnx(Pair, shape),
    "linen": lambda shape: zoo.from_linen(LinenPair(), shape),
    "equinox": lambda shape: zoo.from_equinox(EquinoxPair, shape),
    "haiku": lambda shape: zoo.from_haiku(haiku_pair, shape),
    "keras": lambda shape: zoo.from_keras(keras_pair()),
}


@pytest.mark.parametrize("library", PAIRS)
def test_a_net_of_two_inputs(library):
    net = PAIRS[library](shapes(1))
    variables = net.init(KEY)
    groups = jprune.trace(net.fn, variables, net.example)
    assert list(groups.sizes.values()) == [7]
    masks = {name: np.arange(7) % 2 == 0 for name in groups.sizes}
    x = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), shapes(5))
    masked = jprune.apply_masks(variables, jprune.expand(groups, masks, roles=("in",)))
    cut = jprune.slim_params(groups, masks, variables)
    out = net.fn(masked, x)
    assert relative_error(out, jprune.slim(net.fn, groups, masks)(cut, x)) < 1e-5
    assert net.train_fn(variables, x, KEY)[0].shape == (5, 2)


@pytest.mark.parametrize("library", ["nnx", "linen", "equinox", "haiku"])
def test_inputs_with_names(library):
    left, right = shapes(1)
    net = PAIRS[library]({"left": left, "right": right})
    x = {"right": jnp.ones((5, 3)), "left": jnp.ones((5, 4))}
    assert net.fn(net.init(KEY), x).shape == (5, 2)


def test_weights_that_a_module_has_are_those_of_every_init():
    module = NnxNet(nnx.Rngs(3))
    state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(3))
    model = KerasNet()
    for net in (
        zoo.from_nnx(module, SHAPE),
        zoo.from_equinox(state, SHAPE),
        zoo.from_keras(model, SHAPE),
    ):
        one, other = net.init(jax.random.key(0)), net.init(jax.random.key(1))
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert module.drop.deterministic is False  # the user's module stays in its mode
    expected = model(np.asarray(images()), training=False)
    np.testing.assert_allclose(net.fn(one, images()), expected, rtol=1e-4, atol=1e-5)


def contractions(net):
    """Types in which a net contracts."""
    equations = jax.make_jaxpr(net.fn)(net.init(KEY), net.example).eqns
    names = ("conv_general_dilated", "dot_general")
    return {str(e.outvars[0].aval.dtype) for e in equations if e.primitive.name in names}


def test_compute_type():
    net = zoo.from_haiku(haiku_net, SHAPE, dtype=jnp.bfloat16)
    assert contractions(net) == {"bfloat16"}
    variables = drawn(net)
    _, stats = net.train_fn(variables, images(), KEY)
    kinds = lambda tree: jax.tree.map(lambda leaf: leaf.dtype, tree)
    assert kinds(stats) == kinds(variables["stats"])
    exact = NETS["haiku"]().fn(variables, images())
    assert relative_error(exact, net.fn(variables, images())) < 0.05
    mlp = lambda key: eqx.nn.MLP(3, 2, 5, 1, key=key)
    assert contractions(zoo.from_equinox(mlp, (3,), dtype=jnp.bfloat16)) == {"bfloat16"}
    with pytest.raises(errors.ArgumentError, match="batch norms"):
        zoo.from_equinox(EquinoxNet, SHAPE, dtype=jnp.bfloat16)


@pytest.mark.parametrize("shape", [(8, "8"), (), jax.ShapeDtypeStruct((4, 3), jnp.float32)])
def test_a_shape_that_is_none(shape):
    with pytest.raises(errors.ArgumentError, match=r"is no input.*\(32, 32, 3\)"):
        zoo.from_nnx(Pair, shape)


def test_a_keras_model_without_a_shape():
    with pytest.raises(errors.ArgumentError, match=r"shape unknown.*from_keras\(model, shape="):
        zoo.from_keras(KerasNet())
    anywhere = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(errors.ArgumentError, match="a net needs all axes"):
        zoo.from_keras(anywhere)
    assert zoo.from_keras(anywhere, (5, 6, 3)).example.shape == (1, 5, 6, 3)


def test_names_of_a_keras_model_do_not_depend_on_the_models_before_it():
    def names():
        layers = [keras.layers.Conv2D(4, 1), keras.layers.Conv2D(4, 1, name="block_7")]
        model = keras.Sequential([keras.Input(SHAPE), *layers, keras.layers.Conv2D(4, 1)])
        return set(zoo.from_keras(model).init(KEY)["params"]["sequential"])

    assert names() == names() == {"conv2d", "block_7", "conv2d_1"}


def test_a_task_of_two_inputs():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(32, 4)), rng.normal(size=(32, 3))
    sides = [side.astype(np.float32) for side in (left, right)]
    labels = (left[:, 0] > 0).astype(np.int32)

    def batches(split, size, seed=None, epoch=0, start=0):
        for first in range(size * start, 32 - size + 1, size):
            image = tuple(side[first : first + size] for side in sides)
            labelled = {"image": image, "label": labels[first : first + size]}
            yield {**labelled, "weight": np.ones(size, np.float32)}

    sizes = dict.fromkeys(("train", "validation", "test"), 32)
    pairs = Data("pairs", ((4,), (3,)), 2, sizes, batches)
    task = train.task(PAIRS["nnx"](shapes(1)), pairs)
    recipe = recipes.find("taylor")(
        Budget(density=0.5), None, recipes.Train(1, 0.05, 16, max_steps=2)
    )
    pruned, _ = recipes.run(recipe, Pruned(task.init(KEY), None), task, KEY)
    assert {name: int(mask.sum()) for name, mask in pruned.masks.items()} == {
        "params/left/kernel": 3
    }
    with pytest.raises(errors.ArgumentError, match=r"those of pairs have \(\(4,\), \(5,\)\)"):
        train.task(PAIRS["nnx"](shapes(1)), pairs._replace(shape=((4,), (5,))))

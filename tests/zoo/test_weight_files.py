"""Weights of every library's files: what fits is read, what does not is said, nothing is run."""

import io
import os
import pickle
import tracemalloc
import zipfile

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx, serialization
from flax.traverse_util import flatten_dict

from jprune import errors, zoo
from jprune.zoo import pretrained
from jprune.zoo.weight_files import open_weights
from tests.torch_writer import safe_of
from tests.toys import equal

SHAPE = (8, 8, 3)


class Net(nnx.Module):
    """Eleven equal layers: the second comes before the tenth."""

    def __init__(self, rngs):
        self.first = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.blocks = nnx.List([nnx.Conv(6, 6, (1, 1), rngs=rngs) for _ in range(11)])
        self.out = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        for block in self.blocks:
            x = nnx.relu(block(x))
        return self.out(x.mean((1, 2)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(6, (3, 3))(x)))
        return nn.Dense(4)(x.mean((1, 2)))


def drawn(net, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
    return jax.tree.map(draw, jax.eval_shape(net.init, jax.random.key(0)))


def flat(tree, between="/"):
    return {between.join(path): np.asarray(leaf) for path, leaf in flatten_dict(tree).items()}


def orbax(path, tree):
    with ocp.StandardCheckpointer() as writer:
        writer.save(path.absolute(), tree)


def managed(path, tree):
    with ocp.CheckpointManager(path.absolute()) as manager:
        for step in (3, 20):
            scaled = tree if step == 20 else jax.tree.map(jnp.zeros_like, tree)
            manager.save(step, args=ocp.args.StandardSave(scaled))


WRITERS = {
    "npz": lambda path, tree: np.savez(path.open("wb"), **flat(tree)),
    "compressed": lambda path, tree: np.savez_compressed(path.open("wb"), **flat(tree, ".")),
    "safetensors": lambda path, tree: path.write_bytes(safe_of(flat(tree, "."))),
    "msgpack": lambda path, tree: path.write_bytes(serialization.to_bytes(tree)),
    "orbax": orbax,
    "managed": managed,
}
TREES = {
    "as_variables": lambda variables: variables,
    "without_collections": lambda variables: {
        **variables["params"],
        "norm": {**variables["params"]["norm"], **variables["stats"]["norm"]},
    },
    "training_state": lambda variables: {
        "params": variables["params"],
        "batch_stats": variables["stats"],
        "opt_state": {"mu": {"params": jax.tree.map(jnp.zeros_like, variables["params"])}},
        "step": jnp.ones(()),
    },
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("kind", WRITERS)
def test_weights_come_back_by_their_names(tmp_path, kind, tree):
    net = zoo.from_nnx(Net, SHAPE)
    variables = drawn(net)
    WRITERS[kind](tmp_path / "weights", TREES[tree](variables))
    assert equal(pretrained.load(net, tmp_path / "weights"), variables)


def test_linen_variables_are_those_of_the_net(tmp_path):
    net = zoo.from_linen(LinenNet(), SHAPE)
    variables = LinenNet().init(jax.random.key(4), jnp.ones((1, *SHAPE)))
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(variables))
    loaded, x = pretrained.load(net, tmp_path / "a.msgpack"), jnp.ones((2, *SHAPE))
    np.testing.assert_allclose(net.fn(loaded, x), LinenNet().apply(variables, x), rtol=1e-5)


def test_what_was_not_used_is_logged(tmp_path, caplog):
    net = zoo.from_nnx(Net, SHAPE)
    np.savez(tmp_path / "a.npz", **flat(drawn(net)), step=np.ones(()))
    with caplog.at_level("INFO", "jprune"):
        pretrained.load(net, tmp_path / "a.npz")
    assert [record.message for record in caplog.records] == ["not used of the file: step"]


def test_other_types_are_cast(tmp_path):
    net = zoo.from_nnx(Net, SHAPE)
    variables = drawn(net)
    for dtype in (np.float16, np.float64):
        np.savez(tmp_path / "a.npz", **{n: a.astype(dtype) for n, a in flat(variables).items()})
        found = pretrained.load(net, tmp_path / "a.npz")
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
        error = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found, variables)
        assert max(jax.tree.leaves(error)) < 1e-3


def functional(names, seed=0):
    keras.utils.set_random_seed(seed)
    x = y = keras.Input(SHAPE)
    for name in (f"{names}_zebra", f"{names}_ant"):
        y = keras.layers.Conv2D(6, 3, padding="same", name=name)(y)
        y = keras.layers.BatchNormalization(name=f"{name}_norm")(y)
        y = keras.layers.DepthwiseConv2D(3, name=f"{name}_deep")(y)
    y = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(y))
    model = keras.Model(x, y)
    model.compile(optimizer="adam", loss="mse")
    model.set_weights(
        [
            w + 0.1 * (seed + 1) * np.cos(np.arange(w.size)).reshape(w.shape) ** 2
            for w in model.get_weights()
        ]
    )
    return model


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [keras.layers.Conv2D(3, 1) for _ in range(12)]

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return keras.ops.mean(x, (1, 2))


def subclassed(names, seed=0):
    keras.utils.set_random_seed(seed)
    model = Subclassed()
    model(np.zeros((1, *SHAPE), np.float32))
    return model


@pytest.mark.parametrize("make", [functional, subclassed])
@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.parametrize("names", ["same", "other"])
def test_weights_of_keras(tmp_path, make, suffix, names):
    trained, path = make("same", seed=1), tmp_path / f"a{suffix}"
    trained.save_weights(path) if suffix == ".weights.h5" else trained.save(path)
    net = zoo.from_keras(make(names, seed=2), SHAPE)
    x = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    expected = trained(x, training=False)
    variables = pretrained.load(net, path)
    np.testing.assert_allclose(net.fn(variables, x), expected, rtol=1e-4, atol=1e-5)
    other = net.fn(net.init(jax.random.key(0)), x)
    assert np.abs(np.asarray(other) - expected).max() > 1e-3


def test_weights_that_a_net_came_with():
    model = functional("own")
    net = zoo.from_keras(model)
    assert equal(pretrained.load(net, "own"), net.init(jax.random.key(7)))
    with pytest.raises(errors.ArgumentError, match=r"has no weights of its own: init draws"):
        pretrained.load("lenet300", "own")


def change(tree, path, value):
    state = flat(tree)
    state.pop(path)
    return {**state, **value}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("params/out/kernel", {}, r"1 of the net's 30 arrays have no partner: params/out/kernel "),
        (
            "params/out/kernel",
            {"params/head/kernel": np.ones((6, 10))},
            r"out/kernel \[6, 4\]\. Of the file's, 1 were not used: params/head/kernel \[6, 10\]",
        ),
        (
            "params/out/kernel",
            {"params/out/kernel": np.ones((6, 10))},
            r"params/out/kernel \[6, 4\], and \[6, 10\] in the file.*classes and the options",
        ),
        (
            "params/out/kernel",
            {"out/kernel": np.ones((6, 4)), "model/out/kernel": np.ones((6, 4))},
            r"out/kernel and model/out/kernel for the net's params/out/kernel\. Save one",
        ),
    ],
)
def test_what_does_not_fit_is_listed(tmp_path, path, value, message):
    net = zoo.from_nnx(Net, SHAPE)
    np.savez(tmp_path / "a.npz", **change(drawn(net), path, value))
    with pytest.raises(errors.CheckpointError, match=message):
        pretrained.load(net, tmp_path / "a.npz")


def test_a_larger_keras_model_is_refused(tmp_path):
    larger = keras.Sequential(
        [keras.Input(SHAPE), *[keras.layers.Conv2D(3, 1, name=f"l{n}") for n in range(13)]]
    )
    larger.save_weights(tmp_path / "a.weights.h5")
    net = zoo.from_keras(subclassed(""), SHAPE)
    with pytest.raises(errors.CheckpointError, match=r"does not fit .*2 were not used"):
        pretrained.load(net, tmp_path / "a.weights.h5")


def test_a_directory_of_several_trees(tmp_path):
    net = zoo.from_nnx(Net, SHAPE)
    with ocp.CheckpointManager(tmp_path / "a") as manager:
        trees = ocp.args.Composite(
            params=ocp.args.StandardSave(drawn(net)), ema=ocp.args.StandardSave(drawn(net, 1))
        )
        manager.save(1, args=trees)
    with pytest.raises(
        errors.CheckpointError, match=r"several trees: write one of .*1/ema, .*1/pa"
    ):
        pretrained.load(net, tmp_path / "a")
    assert equal(pretrained.load(net, tmp_path / "a" / "1" / "ema"), drawn(net, 1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.CheckpointError, match="no checkpoint of Orbax"):
        pretrained.load(net, tmp_path / "empty")


# Files that mean harm.


def npy(shape, content, dtype="<f4"):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text = header + " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + content


def zipped(**entries):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(f"{name}.npy", data)
    return content.getvalue()


class Harm:
    def __reduce__(self):
        return (os.mkdir, ("harm_was_done",))


def hdf(write):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write(file)
    return content.getvalue()


def looping(file):
    file.create_group("a")["b"] = file["/"]


def virtual(file):
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    file.create_virtual_dataset("x", layout)


HOSTILE = {
    "a header that lies": zipped(a=npy("(1000000000, 1000)", b"1234")),
    "a header that says less": zipped(a=npy("(2,)", b"1" * 16)),
    "a negative side": zipped(a=npy("(-1,)", b"1234")),
    "pickled objects": zipped(a=npy("(1,)", pickle.dumps([Harm()]), "|O")),
    "text": zipped(a=npy("(1,)", b"abcd", "<U1")),
    "half an archive": zipped(a=npy("(1,)", b"1234"))[:-30],
    "half a message": serialization.to_bytes({"a": np.ones(9)})[:-8],
    "deep messages": b"\x81\xa1a" * 100_000,
    "a link": hdf(
        lambda file: (
            file.update({"a": h5py.SoftLink("/b")})
            if False
            else file.__setitem__("a", h5py.ExternalLink("other.h5", "/x"))
        )
    ),
    "a circle": hdf(looping),
    "another file": hdf(
        lambda file: file.create_dataset("x", (4,), "f4", external=[("/etc/passwd", 0, 16)])
    ),
    "virtual data": hdf(virtual),
    "data that are not there": hdf(lambda file: file.create_dataset("x", (10**6, 10**6), "f4")),
    "half a file": hdf(lambda file: file.create_dataset("x", data=np.ones(999)))[:-5000],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_means_harm(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(HOSTILE[name])
    net = zoo.from_nnx(Net, SHAPE)
    tracemalloc.start()
    with pytest.raises(errors.CheckpointError):
        pretrained.load(net, "a")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**26
    assert os.listdir() == ["a"]


def test_what_fits_nothing_is_not_read(tmp_path):
    """A gigabyte of zeros is a megabyte of archive: its sizes are right, and it is no part."""
    net = zoo.from_nnx(Net, SHAPE)
    content = {name: npy(a.shape, a.tobytes()) for name, a in flat(drawn(net)).items()}
    size = 2**28
    (tmp_path / "a.npz").write_bytes(zipped(**content, more=npy(f"({size // 4},)", bytes(size))))
    tracemalloc.start()
    variables = pretrained.load(net, tmp_path / "a.npz")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert equal(variables, drawn(net))
    assert most < size // 4


def test_a_keras_archive_that_would_fill_the_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(2**28))
    with pytest.raises(errors.CheckpointError, match="would take 268435456 bytes"):
        open_weights(tmp_path / "a.keras", 2**20)

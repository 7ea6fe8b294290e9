"""PyTorch's weights in our nets: which file, which layer, and what the nets then say."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jprune import data, errors, zoo
from jprune.zoo import layers, pretrained
from tests.torch_writer import safe_of, stream_of, zip_of

FORMATS = {".th": stream_of, ".pth": zip_of, ".safetensors": safe_of}


class Net(nnx.Module):
    """Attributes in another order than that of their use, and a flatten before the dense layer."""

    def __init__(self, rngs):
        self.z_first = layers.conv(2, 4, 3, jnp.float32, rngs, bias=True)
        self.y_norm = layers.norm(4, rngs)
        self.b_depthwise = layers.conv(4, 4, 3, jnp.float32, rngs, groups=4)
        self.a_norm = layers.norm(4, rngs)
        self.x_hidden = layers.dense(4 * 6, 5, jnp.float32, rngs)
        self.c_out = layers.dense(5, 3, jnp.float32, rngs)

    def __call__(self, x):
        x = nnx.relu(self.y_norm(self.z_first(x)))
        x = nnx.relu(self.a_norm(self.b_depthwise(x)))
        return self.c_out(nnx.relu(self.x_hidden(x.reshape(len(x), -1))))


NET = zoo.from_nnx(Net, (2, 3, 2), name="small")
# What torch would call its layers, and what ours are called.
ORDER = {
    "features.0": "z_first",
    "features.1": "y_norm",
    "features.3": "b_depthwise",
    "features.4": "a_norm",
    "classifier.1": "x_hidden",
    "classifier.10": "c_out",
}


def torch_state(names=tuple(ORDER)):
    """A state dict with torch's layout, all numbers different."""
    random = np.random.default_rng(3)
    draw = lambda *shape: random.normal(size=shape).astype(np.float32)
    first, norm, depthwise, other_norm, hidden, out = names
    state = {f"{first}.weight": draw(4, 2, 3, 3), f"{first}.bias": draw(4)}
    for layer in (norm, other_norm):
        for leaf in ("weight", "bias", "running_mean"):
            state[f"{layer}.{leaf}"] = draw(4)
        state[f"{layer}.running_var"] = np.exp(draw(4))
        state[f"{layer}.num_batches_tracked"] = np.array(9, np.int64)
        if layer == norm:
            state[f"{depthwise}.weight"] = draw(4, 1, 3, 3)
    for layer, (outputs, inputs) in ((hidden, (5, 24)), (out, (3, 5))):
        state[f"{layer}.weight"] = draw(outputs, inputs)
        state[f"{layer}.bias"] = draw(outputs)
    return state


def run_like_torch(state, x, names=tuple(ORDER)):
    """The same net by hand: channels first, loops over taps. `x` is [batch, 2, height, width]."""
    first, norm, depthwise, other_norm, hidden, out = names

    def conv(x, kernel):  # [out, in, 3, 3]
        x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        height, width = x.shape[2] - 2, x.shape[3] - 2
        return sum(
            np.einsum("bihw,oi->bohw", x[:, :, i : i + height, j : j + width], kernel[..., i, j])
            for i in range(3)
            for j in range(3)
        )

    def normalised(x, name):
        scale, shift, mean, var = (
            state[f"{name}.{leaf}"][:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return np.maximum(0, (x - mean) / np.sqrt(var + 1e-5) * scale + shift)

    x = conv(x, state[f"{first}.weight"]) + state[f"{first}.bias"][:, None, None]
    x = normalised(x, norm)
    kernel = state[f"{depthwise}.weight"]
    x = np.concatenate([conv(x[:, [c]], kernel[[c]]) for c in range(4)], axis=1)
    x = normalised(x, other_norm).reshape(len(x), -1)
    x = np.maximum(0, x @ state[f"{hidden}.weight"].T + state[f"{hidden}.bias"])
    return x @ state[f"{out}.weight"].T + state[f"{out}.bias"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_converted_net_computes_what_torch_computes(tmp_path, suffix, prefix):
    state = torch_state()
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(FORMATS[suffix]({prefix + name: a for name, a in state.items()}))
    variables = pretrained.load(NET, path)
    expected = jax.eval_shape(NET.init, jax.random.key(0))
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, variables) == jax.tree.map(
        lambda leaf: leaf.dtype, expected
    )
    x = np.random.default_rng(4).normal(size=(3, 2, 2, 3)).astype(np.float32)
    logits = NET.fn(variables, x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, run_like_torch(state, x), rtol=1e-4, atol=1e-5)


def test_names_that_agree_outweigh_the_order():
    names = tuple(ORDER.values())
    state = torch_state(names)
    turned = dict(reversed(state.items()))
    by_name, by_order = pretrained.convert(NET, turned), pretrained.convert(NET, state)
    assert jax.tree.all(jax.tree.map(np.array_equal, by_name, by_order))


def test_half_precision_becomes_float32():
    state = {name: array.astype(np.float16) for name, array in torch_state().items()}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(pretrained.convert(NET, state))} == {
        "float32"
    }


def without(name):
    return lambda state: {key: array for key, array in state.items() if not key.startswith(name)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {**state, "features.3.weight": np.ones((4, 1, 5, 5))},
            r"net's b_depthwise \(conv: kernel \[3, 3, 1, 4\]\) and the file's features.3 "
            r"\(conv: kernel \[5, 5, 1, 4\]\) differ",
        ),
        (
            lambda state: {**state, "classifier.10.weight": np.ones((7, 5))},
            r"net's c_out \(dense: bias \[3\], kernel \[5, 3\]\) and the file's classifier.10",
        ),
        (
            lambda state: {**state, "classifier.1.weight": np.ones((5, 23))},
            r"the file's classifier.1 \(dense: kernel \[23, 5\]",
        ),
        (without("features.0.bias"), r"net's z_first .* file's features.0 \(conv: kernel"),
        (without("features.4"), r"net's a_norm .*the file has only 1 of this kind"),
        (
            lambda state: {**state, "extra.weight": np.ones((2, 2))},
            r"file's extra \(dense: kernel \[2, 2\]\) has no partner: the net has only 2 of",
        ),
        (
            lambda state: {**state, "prelu.weight": np.ones(4)},
            r"prelu.weight of shape \[4\] belongs to no",
        ),
        (
            lambda state: {**state, "features.0.weight_mask": np.ones((4, 2, 3, 3))},
            "features.0.weight_mask of shape",
        ),
    ],
)  # fmt: skip
def test_the_first_difference_is_named(tmp_path, change, message):
    path = tmp_path / "w.pth"
    path.write_bytes(zip_of({k: np.float32(a) for k, a in change(torch_state()).items()}))
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        pretrained.load(NET, path)
    assert str(caught.value).startswith(f"{path} does not fit small: ")


def test_a_net_of_other_layers_is_refused():
    class Other(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones(3))

        def __call__(self, x):
            return x.mean((1, 2)) * self.scale

    net = zoo.from_nnx(Other, (4, 4, 3))
    with pytest.raises(errors.StructureError, match="has the arrays scale"):
        pretrained.convert(net, {"scale.weight": np.ones((3, 3))})


def test_layers_come_in_the_order_in_which_the_net_runs_them():
    net = zoo.build("resnet20")
    found = [layer.name for layer in pretrained._layers_of_net(
        net, jax.eval_shape(net.init, jax.random.key(0))
    )]  # fmt: skip
    blocks = [
        f"block{block}/{layer}"
        for block in range(1, 10)
        for layer in ("conv1", "norm1", "conv2", "norm2")
    ]
    assert found == ["conv1", "norm1", *blocks, "fc"]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """`$JPRUNE_PRETRAINED` and the cache, both empty."""
    chosen, cache = tmp_path / "chosen", tmp_path / "cache" / "jprune" / "pretrained"
    chosen.mkdir()
    cache.mkdir(parents=True)
    monkeypatch.setenv("JPRUNE_PRETRAINED", str(chosen))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return chosen, cache


def test_where_published_weights_are_looked_for(folders, monkeypatch):
    chosen, cache = folders
    with pytest.raises(errors.CheckpointError) as caught:
        pretrained.load("resnet20", "pretrained")
    for part in ("resnet20-12fca82f.th", str(chosen), str(cache), "akamaster", "JPRUNE_PRETRAINED"):
        assert part in str(caught.value)
    (cache / "resnet20-12fca82f.th").write_bytes(b"x")
    assert pretrained.find("resnet20") == cache / "resnet20-12fca82f.th"
    (chosen / "resnet20-12fca82f.th").write_bytes(b"x")
    assert pretrained.find("resnet20") == chosen / "resnet20-12fca82f.th"
    monkeypatch.delenv("JPRUNE_PRETRAINED")
    assert pretrained.find("resnet20") == cache / "resnet20-12fca82f.th"
    with pytest.raises(
        errors.ArgumentError, match="no pretrained weights of vgg16, only of resnet20"
    ):
        pretrained.find("vgg16")


def test_a_published_file_must_have_its_sha256(folders):
    file = folders[0] / "resnet20-12fca82f.th"
    file.write_bytes(zip_of({"fc.weight": np.ones((2, 2), np.float32)}))
    with pytest.raises(errors.CheckpointError, match=r"sha256 begins with [0-9a-f]{8}, .*12fca82f"):
        pretrained.load("resnet20", "pretrained")
    with pytest.raises(errors.CheckpointError, match="sha256"):
        pretrained.load("resnet20", file)


def test_a_path_that_is_none(tmp_path):
    with pytest.raises(errors.CheckpointError, match=r'no file pretraind.*or "pretrained"'):
        pretrained.load(NET, "pretraind")
    with pytest.raises(errors.CheckpointError, match=re.escape(str(tmp_path))):
        pretrained.load(NET, tmp_path)
    path = tmp_path / "a.pth"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(errors.CheckpointError, match="no PyTorch checkpoint"):
        pretrained.load(NET, path)


def test_pretrained_resnet20_on_the_first_2000_test_images():
    if not os.environ.get("JPRUNE_PRETRAINED"):
        pytest.skip("JPRUNE_PRETRAINED does not name a folder of pretrained weights")
    try:
        cifar = data.load("cifar10")
    except errors.JpruneError as error:
        pytest.skip(f"no CIFAR-10 here: {error}")
    net = zoo.build("resnet20")
    variables = pretrained.load(net, "pretrained")
    predict = jax.jit(lambda x: net.fn(variables, x).argmax(-1))
    batches = cifar.batches("test", 500)
    hits = sum(
        int((predict(batch["image"]) == batch["label"]).sum())
        for batch, _ in zip(batches, range(4))
    )
    # 9,173 of all 10,000. One image more or less on other hardware is rounding.
    assert abs(hits - 1833) <= 1

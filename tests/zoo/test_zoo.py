"""The zoo: published counts, the contract of `Net`, nets of the user's own."""

import functools
import math
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jprune
from jprune import errors, export, zoo
from jprune.zoo import layers
from jprune.zoo.resnet import Block, subsample_and_pad

MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)

# Published: option A of He et al. for the ResNets (40.6 M and 125.5 M MACs at depth 20 and 56),
# Caffe's LeNet-5, Network Slimming's VGG-16 (313 M), DenseNet-40 of 1.0 M (282.9 M MACs with a stem
# of 24), torchvision's MobileNetV2 (3.50 M, 300.8 M) and ResNet-50 v1.5 (25.56 M, 4.09 G),
# EfficientNet-Lite0 of 4.65 M. MACs are those of convolutions and dense layers.
COUNTS = [
    ("lenet300", 10, MNIST, {}, 266_610, 266_200),
    ("lenet5", 10, MNIST, {}, 431_080, 2_293_000),
    ("lenet5", 10, MNIST, {"conv_relu": True}, 431_080, 2_293_000),
    ("vgg16", 10, CIFAR, {}, 14_724_042, 313_201_664),
    ("resnet8", 10, CIFAR, {}, 75_290, 12_239_488),
    ("resnet20", 10, CIFAR, {}, 269_722, 40_551_040),
    ("resnet20", 10, CIFAR, {"shortcut": "B"}, 272_474, 40_813_184),
    ("resnet32", 10, CIFAR, {}, 464_154, 68_862_592),
    ("resnet44", 10, CIFAR, {}, 658_586, 97_174_144),
    ("resnet56", 10, CIFAR, {}, 853_018, 125_485_696),
    ("resnet110", 10, CIFAR, {}, 1_727_962, 252_887_680),
    ("densenet40", 10, CIFAR, {}, 1_019_722, 264_812_928),
    ("densenet40", 10, CIFAR, {"stem": 24}, 1_059_298, 282_917_328),
    ("mobilenetv2", 1000, IMAGENET, {}, 3_504_872, 300_774_272),
    ("mobilenetv2", 10, CIFAR, {}, 2_236_682, 87_976_448),
    ("efficientnet_lite0", 1000, IMAGENET, {}, 4_652_008, 385_187_552),
    ("resnet50", 1000, IMAGENET, {}, 25_557_032, 4_089_184_256),
]


@functools.cache
def abstract(name, classes, shape, options):
    """The net and the shapes of its variables."""
    net = zoo.build(name, classes, shape, **dict(options))
    return net, jax.eval_shape(net.init, jax.random.key(0))


@pytest.mark.parametrize(("name", "classes", "shape", "options", "params", "macs"), COUNTS)
def test_parameters_and_macs_are_the_published_ones(name, classes, shape, options, params, macs):
    net, variables = abstract(name, classes, shape, tuple(options.items()))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == params
    assert jprune.cost(net.fn, variables, net.example).macs == macs


@pytest.mark.parametrize("row", [0, 1, 3, 4, 11, 13, 15, 16], ids=lambda row: COUNTS[row][0])
def test_every_family_keeps_the_contract(row):
    name, classes, shape, options = COUNTS[row][:4]
    net, variables = abstract(name, classes, shape, tuple(options.items()))
    assert net.name == name
    assert net.example.shape == (1, *shape)
    assert set(variables) == {"params", "stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct((3, *shape), jnp.float32)
    logits, stats = jax.eval_shape(net.train_fn, variables, images, jax.random.key(0))
    assert (logits.shape, logits.dtype) == ((3, classes), jnp.float32)
    assert stats == variables["stats"]


def test_every_net_is_in_the_table_of_counts():
    assert {row[0] for row in COUNTS} == set(zoo.names())


def test_paths_are_short():
    _, variables = abstract("resnet20", 10, CIFAR, (("shortcut", "B"),))
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(variables)
    }
    assert {
        "params/conv1/kernel",
        "params/block1/conv1/kernel",
        "params/block4/conv3/kernel",
        "params/block9/norm2/scale",
        "params/fc/kernel",
        "stats/block9/norm2/mean",
    } <= paths


def test_the_engine_finds_the_streams_of_resnet8():
    net, variables = abstract("resnet8", 10, (8, 8, 1), ())
    sizes = jprune.trace(net.fn, variables, net.example).sizes
    assert sizes["params/block1/conv1/kernel"] == 16
    assert sizes["params/block3/conv1/kernel"] == 64


def test_init_is_a_function_of_the_key():
    net = zoo.build("lenet300", 10, (4, 4, 1))
    first, again, other = (net.init(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert jnp.any(first["params"]["fc1"]["kernel"] != other["params"]["fc1"]["kernel"])
    # He et al.: the second moment of a kernel is 2 / fan in.
    second_moment = jnp.mean(first["params"]["fc2"]["kernel"] ** 2)
    np.testing.assert_allclose(second_moment, 2 / 300, rtol=0.05)


def test_lenet300_against_numpy():
    net = zoo.build("lenet300", 3, (2, 3, 1))
    variables = net.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(5, 2, 3, 1)).astype(np.float32)
    out = x.reshape(5, 6)
    for layer in ("fc1", "fc2", "fc3"):
        dense = variables["params"][layer]
        out = out @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
        out = np.maximum(out, 0) if layer != "fc3" else out
    np.testing.assert_allclose(net.fn(variables, x), out, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def resnet8():
    net = zoo.build("resnet8", shape=(8, 8, 1))
    return net, jax.jit(net.init)(jax.random.key(0))


def test_statistics_follow_the_batch(resnet8):
    net, variables = resnet8
    x = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    _, stats = jax.jit(net.train_fn)(variables, x, jax.random.key(2))
    out = jax.lax.conv_general_dilated(
        x,
        variables["params"]["conv1"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    mean, var = out.mean((0, 1, 2)), out.var((0, 1, 2))
    np.testing.assert_allclose(stats["norm1"]["mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["norm1"]["var"], 0.9 + 0.1 * var, rtol=1e-4)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["stats"])


def test_bfloat16_computes_in_bfloat16_and_keeps_the_rest(resnet8):
    wide, variables = resnet8
    narrow = zoo.build("resnet8", shape=(8, 8, 1), dtype=jnp.bfloat16)
    shapes = jax.eval_shape(narrow.init, jax.random.key(0))
    assert shapes == jax.eval_shape(lambda: variables)
    x = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    convolutions = [
        equation
        for equation in jax.make_jaxpr(narrow.fn)(variables, x).jaxpr.eqns
        if equation.primitive.name == "conv_general_dilated"
    ]
    assert len(convolutions) == 7
    assert {equation.outvars[0].aval.dtype for equation in convolutions} == {jnp.dtype("bfloat16")}
    logits, stats = jax.jit(narrow.train_fn)(variables, x, jax.random.key(0))
    exact, _ = jax.jit(wide.train_fn)(variables, x, jax.random.key(0))
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(logits, exact, atol=0.1 * float(jnp.abs(exact).max()))


def test_batch_norm_does_not_round_its_mean_to_bfloat16():
    norm = layers.norm(1, nnx.Rngs(0))
    norm.mean[...] = jnp.full((1,), 300.5)  # bfloat16 has 300 and 302 there
    norm.eval()
    out = norm(jnp.full((1, 1), 302.0, jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(out[0, 0]), 1.5, rtol=0.01)


def test_shortcut_a_subsamples_and_pads_on_both_sides():
    x = jnp.arange(2 * 5 * 5 * 3, dtype=jnp.float32).reshape(2, 5, 5, 3)
    out = subsample_and_pad(x, 2, 8)
    assert out.shape == (2, 3, 3, 8)
    np.testing.assert_array_equal(out[..., 2:5], x[:, ::2, ::2])
    np.testing.assert_array_equal(out[..., [0, 1, 5, 6, 7]], 0)
    assert subsample_and_pad(x, 1, 3) is x


def test_a_block_without_a_branch_is_its_shortcut():
    @jax.jit
    def run(x):
        block = Block(4, 8, 2, "A", jnp.dtype("float32"), nnx.Rngs(0))
        assert block.norm2.scale is not None
        block.norm2.scale[...] = jnp.zeros(8)
        return block(x)

    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    np.testing.assert_array_equal(run(x), jnp.maximum(subsample_and_pad(x, 2, 8), 0))


@pytest.mark.parametrize(("padding", "corner"), [("SAME", 1.0), (None, 0.0)])
def test_padding_of_a_strided_convolution(padding, corner):
    """TensorFlow's SAME pads an even side only after, PyTorch's 1 on both sides."""
    conv = layers.conv(1, 1, 3, jnp.dtype("float32"), nnx.Rngs(0), stride=2, padding=padding)
    conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)
    out = conv(jnp.ones((1, 4, 4, 1)))
    assert out.shape == (1, 2, 2, 1)
    assert out[0, 0, 0, 0] == corner


@pytest.mark.parametrize(("conv_relu", "relus"), [(False, 1), (True, 3)])
def test_lenet5_has_relus_after_convolutions_on_request(conv_relu, relus):
    net = zoo.build("lenet5", shape=MNIST, conv_relu=conv_relu)
    variables = jax.eval_shape(net.init, jax.random.key(0))
    names = [eqn.primitive.name for eqn in jax.make_jaxpr(net.fn)(variables, net.example).eqns]
    assert names.count("custom_jvp_call") == relus


def test_the_cifar_form_of_mobilenet_keeps_more_pixels():
    net = zoo.build("mobilenetv2", shape=(96, 96, 3), form="cifar")
    variables = jax.eval_shape(net.init, jax.random.key(0))
    equations = jax.make_jaxpr(net.fn)(variables, net.example).eqns
    last = [eqn for eqn in equations if eqn.primitive.name == "conv_general_dilated"][-1]
    assert last.outvars[0].aval.shape == (1, 12, 12, 1280)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet-20"}, "did you mean resnet20"),
        ({"name": "mobilenet"}, "did you mean mobilenetv2"),
        ({"name": "qqqqqq"}, "module:callable"),
        ({"name": "resnet20", "shortcuts": "B"}, "no option shortcuts; it takes shortcut, width"),
        ({"name": "vgg16", "depth": 19}, "none beyond classes, shape and dtype"),
        ({"name": "resnet20", "depth": 32}, "no option depth"),
        ({"name": "resnet20", "shortcut": "C"}, 'write "A"'),
        ({"name": "resnet20", "width": 0}, "width=0"),
        ({"name": "mobilenetv2", "form": "tiny"}, '"cifar" or "imagenet"'),
        ({"name": "resnet20", "dtype": jnp.float16}, "jnp.bfloat16"),
        ({"name": "resnet20", "shape": (32, 32)}, "height, width, channels"),
        ({"name": "resnet20", "classes": 0}, "classes=0"),
        ({"name": "lenet5", "shape": (8, 8, 1)}, "lenet5 got images of 8 x 8; it needs 16 x 16"),
        ({"name": "vgg16", "shape": (8, 8, 1)}, "it needs 16 x 16"),
        ({"name": "densenet40", "shape": (2, 2, 1)}, "it needs 4 x 4"),
    ],
)
def test_build_explains_what_is_wrong(arguments, message):
    with pytest.raises(errors.ArgumentError) as caught:
        zoo.build(**arguments)
    assert message in str(caught.value)


OWN = """
    import jax, jax.numpy as jnp
    from jprune import zoo

    def init(key):
        kernel = jnp.ones((12, CLASSES))
        return {"params": {"kernel": kernel}, "stats": {"seen": jnp.zeros(())}}

    def fn(variables, x):
        return x.reshape(x.shape[0], -1) @ variables["params"]["kernel"]

    def train_fn(variables, x, key):
        return fn(variables, x), {"seen": variables["stats"]["seen"] + 1}

    example = jax.ShapeDtypeStruct((1, 2, 2, 3), jnp.float32)
    net = zoo.Net("own", init, fn, train_fn, example)

    def build(classes, shape, dtype):
        global CLASSES
        CLASSES = classes
        return net

    def failing(classes, shape, dtype):
        raise RuntimeError("no such luck")

    def variant(**fields):
        return lambda classes, shape, dtype: build(classes, shape, dtype)._replace(**fields)

    no_net = lambda classes, shape, dtype: fn
    no_function = variant(fn="fn")
    no_example = variant(example=jax.ShapeDtypeStruct((2, 2, 3), jnp.float32))
    no_stats = variant(init=lambda key: {"params": {}})
    no_tree = variant(init=lambda key: jnp.ones(3))
    no_params = variant(init=lambda key: {"params": {}, "stats": {}})
    no_run = variant(fn=lambda variables, x: x @ x)
    no_batch = variant(fn=lambda variables, x: fn(variables, x)[:1])
    no_float = variant(fn=lambda variables, x: fn(variables, x).astype(jnp.bfloat16))
    no_pair = variant(train_fn=lambda variables, x, key: fn(variables, x))
    no_structure = variant(train_fn=lambda variables, x, key: (fn(variables, x), {}))
    no_shape = variant(train_fn=lambda variables, x, key: (fn(variables, x), {"seen": x}))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "jprune_own_net.py").write_text(textwrap.dedent(OWN))
    monkeypatch.chdir(tmp_path)
    yield "jprune_own_net"
    import sys

    sys.modules.pop("jprune_own_net", None)


def test_load_brings_in_a_net_from_the_current_directory(own):
    net = zoo.load(f"{own}:build", 5, (2, 2, 3))
    assert net.name == "own"
    np.testing.assert_array_equal(
        net.fn(net.init(jax.random.key(0)), jnp.ones((4, 2, 2, 3))), np.full((4, 5), 12)
    )


@pytest.mark.parametrize(
    ("callable_name", "message"),
    [
        ("failing", "failed: RuntimeError: no such luck"),
        ("nothing", "has no callable 'nothing'"),
        ("no_net", "returned function; expected a jprune.zoo.Net"),
        ("no_function", "has a Net.fn that cannot be called"),
        ("no_example", "has Net.example (2, 2, 3); expected jax.ShapeDtypeStruct((1, 2, 2, 3)"),
        ("no_stats", 'an init that returns [\'params\']; expected a dict of "params" and "stats"'),
        ("no_tree", "an init that returns ShapeDtypeStruct"),
        ("no_params", "has no parameters"),
        ("no_run", "fn(variables, x) failed: TypeError"),
        ("no_batch", "a fn that gives (1, 5) for 2 images; expected (2, 5)"),
        ("no_float", "a fn that gives bfloat16; expected float32 logits"),
        ("no_pair", "expected (logits, stats)"),
        ("no_structure", 'the structure of variables["stats"]'),
        ("no_shape", "a train_fn whose seen is float32[1, 2, 2, 3]; expected float32[]"),
    ],
)
def test_load_explains_what_is_wrong(own, callable_name, message):
    with pytest.raises(errors.ArgumentError) as caught:
        zoo.load(f"{own}:{callable_name}", 5, (2, 2, 3))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("resnet20", "not written as module:callable"),
        (":build", "not written as module:callable"),
        ("no_such_module_at_all:build", "import no_such_module_at_all failed: ModuleNotFoundError"),
    ],
)
def test_load_explains_a_bad_target(target, message):
    with pytest.raises(errors.ArgumentError) as caught:
        zoo.load(target, 5, (2, 2, 3))
    assert message in str(caught.value)


def test_load_refuses_a_net_that_ignores_the_compute_type(own):
    with pytest.raises(errors.ArgumentError, match="computes in float32; expected bfloat16"):
        zoo.load(f"{own}:build", 5, (2, 2, 3), jnp.bfloat16)


def test_the_example_in_the_help_of_load_is_exported(tmp_path, monkeypatch):
    """It asks for `len(x)`, which no symbolic batch has: a fixed batch, and a warning."""
    text = zoo.load.__doc__.split("::\n", 1)[1].split("A module of a library")[0]
    (tmp_path / "net_of_the_help.py").write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    net = zoo.load("net_of_the_help:linear", 5, (2, 2, 3))
    variables = net.init(jax.random.key(0))
    with pytest.warns(UserWarning, match="takes batches of 1 only: it asks for the batch's size"):
        (tmp_path / "a").write_bytes(export.stablehlo(net.fn, variables, net.example))
    x = jnp.ones((1, 2, 2, 3))
    found = export.load_stablehlo(tmp_path / "a").call(x)
    np.testing.assert_allclose(found, net.fn(variables, x), rtol=1e-5)

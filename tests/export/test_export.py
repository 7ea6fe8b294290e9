"""Exported nets compute what the net computes, at every batch size, with the slim net's widths."""

import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import errors, export
from tests import nets

NETS = {net.name: net for net in nets.FIRST_CUT}
litert = pytest.mark.skipif(
    subprocess.run(
        [sys.executable, "-c", "import litert_converter"], capture_output=True
    ).returncode
    != 0,
    reason="the extra tflite is not installed",
)


def example_of(net):
    return jax.ShapeDtypeStruct((1, *net.inputs[0][1:]), jnp.float32)


def images(net, batch, seed=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, *net.inputs[0][1:])).astype(np.float32)


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def slim_of(net):
    """A net without the first and the last unit of each group."""
    variables, inputs = nets.draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    masks = {name: np.ones(size, bool) for name, size in groups.sizes.items()}
    for mask in masks.values():
        mask[[0, -1]] = False
    return jprune.slim(net.fn, groups, masks), jprune.slim_params(groups, masks, variables)


# StableHLO


@pytest.mark.parametrize("name", NETS)
def test_stablehlo_takes_any_batch(name, tmp_path):
    net = NETS[name]
    variables, _ = nets.draw(net)
    path = tmp_path / "model.stablehlo"
    path.write_bytes(export.stablehlo(net.fn, variables, example_of(net)))
    loaded = export.load_stablehlo(path)
    assert set(loaded.platforms) == {"cpu", "cuda", "tpu"}
    for batch in (1, 5):
        x = images(net, batch)
        assert relative(loaded.call(x), np.asarray(net.fn(variables, x))) < 1e-5


def test_stablehlo_holds_convolutions_of_the_slim_widths():
    net = NETS["resnet_projected"]
    fn, variables = slim_of(net)
    text = export.stablehlo_text(export.stablehlo(fn, variables, example_of(net)))
    pattern = r"stablehlo\.convolution\(.*: \(tensor<\?x[\dx]+xf32>, tensor<([\dx]+)xf32>\)"
    # Dense: 3x3x3x5, 3x3x5x6, 3x3x6x7, 1x1x5x7. Every platform has its own copy of the lines.
    assert sorted(set(re.findall(pattern, text))) == ["1x1x3x5", "3x3x3x3", "3x3x3x4", "3x3x4x5"]


def test_stablehlo_depends_on_the_net_alone():
    net = NETS["vgg"]
    variables, _ = nets.draw(net)

    def called_deeper():
        return export.stablehlo(net.fn, variables, example_of(net))

    before = jax.config.values["jax_traceback_in_locations_limit"]
    model = export.stablehlo(net.fn, variables, example_of(net))
    assert model == called_deeper()
    assert b".py" not in model
    assert jax.config.values["jax_traceback_in_locations_limit"] == before


def test_stablehlo_refuses_what_is_no_batch():
    with pytest.raises(errors.ArgumentError, match="first axis is the batch"):
        export.stablehlo(lambda v, x: x, {}, jax.ShapeDtypeStruct((), jnp.float32))


def test_load_stablehlo_says_what_is_wrong_with_a_file(tmp_path):
    path = tmp_path / "model.stablehlo"
    with pytest.raises(errors.CheckpointError, match="cannot be read"):
        export.load_stablehlo(path)

    example = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    whole = export.stablehlo(lambda v, x: x @ v, jnp.ones((3, 2)), example)
    for damaged in (b"", b"not a model", whole[: len(whole) // 2], whole[:-500]):
        path.write_bytes(damaged)
        with pytest.raises(errors.CheckpointError, match="no exported net"):
            export.load_stablehlo(path)


# TFLite


@litert
@pytest.mark.parametrize("name", NETS)
def test_tflite_takes_any_batch(name):
    net = NETS[name]
    variables, _ = nets.draw(net)
    model = export.tflite(net.fn, variables, example_of(net))
    for batch in (1, 5):  # lenet flattens, resnet_padded slices: both spell the batch out
        x = images(net, batch)
        found = export.run_tflite(model, x)
        assert relative(found, np.asarray(net.fn(variables, x))) < 1e-5


def kernels_of(model):
    """Whether all operators of a .tflite model are built in, and the kernels [out, h, w, in]."""
    from ai_edge_litert import schema_py_generated as schema

    tree: Any = schema.ModelT.InitFromPackedBuf(bytearray(model), 0)
    graph = tree.subgraphs[0]
    codes = [tree.operatorCodes[operator.opcodeIndex].builtinCode for operator in graph.operators]
    kernels = [
        tuple(int(size) for size in graph.tensors[operator.inputs[1]].shape)
        for operator, code in zip(graph.operators, codes)
        if code == schema.BuiltinOperator.CONV_2D
    ]
    return schema.BuiltinOperator.CUSTOM not in codes, kernels


@litert
def test_tflite_of_a_slim_net_is_smaller_and_built_in():
    net = NETS["resnet_projected"]
    fn, variables = slim_of(net)
    slim = export.tflite(fn, variables, example_of(net))
    dense = export.tflite(net.fn, nets.draw(net)[0], example_of(net))
    built_in, kernels = kernels_of(slim)
    assert built_in
    assert sorted(kernels) == [(3, 3, 3, 3), (4, 3, 3, 3), (5, 1, 1, 3), (5, 3, 3, 4)]
    assert len(slim) < len(dense)
    x = images(net, 1)
    assert relative(export.run_tflite(slim, x), np.asarray(fn(variables, x))) < 1e-5


@litert
def test_tflite_says_where_the_batch_is_fixed():
    # The constant beside x has the batch in it, which no operator can make anew.
    def fn(v, x):
        return jnp.concatenate([x, jnp.ones((x.shape[0], 2))], axis=1) @ v

    model = export.tflite(fn, jnp.ones((5, 2)), jax.ShapeDtypeStruct((1, 3), jnp.float32))
    assert export.run_tflite(model, np.ones((1, 3), np.float32)).tolist() == [[5.0, 5.0]]
    with pytest.raises(errors.ArgumentError, match=r"it takes \(1, 3\)"):
        export.run_tflite(model, np.ones((4, 3), np.float32))


@litert
def test_tflite_quantised_is_smaller_and_close():
    net = nets.Net(
        "wide",
        NETS["vgg"].fn,
        {
            "conv1": (3, 3, 3, 24),
            "conv2": (3, 3, 24, 32),
            "conv3": (3, 3, 32, 24),
            "norm1": nets.norm_shapes(24),
            "norm2": nets.norm_shapes(32),
            "norm3": nets.norm_shapes(24),
            "head": nets.head_shapes(24),
        },
        ((1, 8, 10, 3),),
        {},
    )
    variables, _ = nets.draw(net)
    whole = export.tflite(net.fn, variables, example_of(net))
    x = images(net, 16)
    expected = np.asarray(net.fn(variables, x))
    # {kind: (largest size, largest error), both relative}
    bounds = {"dynamic": (0.45, 0.02), "fp16": (0.6, 2e-3), "int8": (0.5, 0.03)}
    assert set(bounds) == set(export.QUANTIZATIONS)
    for kind, (size, error) in bounds.items():
        model = export.tflite(
            net.fn, variables, example_of(net), quantize=kind, calibration=[x[:8], x[8:]]
        )
        assert len(model) < size * len(whole)
        assert relative(export.run_tflite(model, x), expected) < error


@litert
def test_int8_keeps_the_range_that_only_one_example_reaches():
    # Quantisers that average extremes over batches would cut the last example off at about 1.3.
    batches = [np.full((1, 4), 1.0, np.float32)] * 20 + [np.full((1, 4), 8.0, np.float32)]
    example = jax.ShapeDtypeStruct((1, 4), jnp.float32)
    kernel = jnp.eye(4)
    model = export.tflite(lambda v, x: x @ v, kernel, example, quantize="int8", calibration=batches)
    assert export.run_tflite(model, batches[-1]) == pytest.approx(8.0, rel=0.02)


@litert
def test_int8_calibrates_nets_of_a_fixed_batch():
    def fn(v, x):
        return jnp.concatenate([x, jnp.ones((x.shape[0], 2))], axis=1) @ v

    x = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)
    model = export.tflite(
        fn,
        jnp.ones((5, 2)),
        jax.ShapeDtypeStruct((1, 3), jnp.float32),
        quantize="int8",
        calibration=[x],
    )
    assert export.run_tflite(model, x[3:])[0] == pytest.approx(x[3].sum() + 2, rel=0.02)


@litert
def test_tflite_refuses_with_a_reason():
    example = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    with pytest.raises(errors.ArgumentError, match="None or one of dynamic, fp16, int8"):
        export.tflite(lambda v, x: x, {}, example, quantize="int4")
    with pytest.raises(errors.ArgumentError, match="no calibration batch"):
        export.tflite(lambda v, x: x @ v, jnp.eye(3), example, quantize="int8")
    with pytest.raises(errors.JpruneError, match="converter refused the net"):
        export.tflite(lambda v, x: jnp.abs(jnp.fft.fft(x)), {}, example)
    with pytest.raises(errors.JpruneError, match=r"cannot be run|differs from JAX"):
        export.tflite(lambda v, x: jnp.sort(x, -1), {}, example)


def test_a_missing_extra_is_named(monkeypatch):
    example = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    for package in ("ai_edge_litert.interpreter", "litert_converter.converter_api_ext"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'jprune\[tflite\]'"):
        export.tflite(lambda v, x: x, {}, example)
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'jprune\[tflite\]'"):
        export.run_tflite(b"", np.ones(3))


@litert
def test_the_console_stays_clean_and_tensorflow_out():
    code = """
import sys, jax, jax.numpy as jnp, numpy as np
from jprune import export
example = jax.ShapeDtypeStruct((1, 3), jnp.float32)
x = np.ones((2, 3), np.float32)
model = export.tflite(
    lambda v, x: x @ v, jnp.ones((3, 2)), example, quantize="int8", calibration=[x]
)
export.run_tflite(model, x)
print("tensorflow" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("False\n", "")


# What nets may take and return.

PIXELS = jax.ShapeDtypeStruct((1, 2, 3), jnp.float32)
KERNEL = np.linspace(-1, 1, 24).reshape(6, 4).astype(np.float32)


def dense(kernel, x):
    return x.reshape(x.shape[0], -1) @ kernel


def test_stablehlo_of_several_inputs_and_outputs(tmp_path):
    fn = lambda v, x: {"both": dense(v, x["left"]) - dense(v, x["right"]), "left": x["left"]}
    (tmp_path / "a").write_bytes(export.stablehlo(fn, KERNEL, {"left": PIXELS, "right": PIXELS}))
    x = {"left": jnp.ones((5, 2, 3)), "right": jnp.zeros((5, 2, 3))}
    found = export.load_stablehlo(tmp_path / "a").call(x)
    jax.tree.map(np.testing.assert_allclose, found, fn(KERNEL, x))


@pytest.mark.parametrize(
    "fn",
    [
        lambda v, x: x.reshape(len(x), -1) @ v,
        lambda v, x: jnp.stack([image.ravel() @ v for image in x]),
        lambda v, x: dense(v, x) + jnp.arange(int(x.shape[0]))[:, None],
    ],
)
def test_a_net_that_asks_for_the_size_of_the_batch(fn, tmp_path):
    with pytest.warns(UserWarning, match=r"takes batches of 2 only: .*x\.shape\[0\]"):
        model = export.stablehlo(fn, KERNEL, jax.ShapeDtypeStruct((2, 2, 3), jnp.float32))
    (tmp_path / "a").write_bytes(model)
    x = jnp.arange(12.0).reshape(2, 2, 3)
    found = export.load_stablehlo(tmp_path / "a").call(x)
    np.testing.assert_allclose(found, fn(KERNEL, x), rtol=1e-5)


def test_a_net_with_its_variables_apart(tmp_path):
    net = NETS["resnet_projected"]
    fn, variables = slim_of(net)
    (tmp_path / "a").write_bytes(export.stablehlo_of_net(fn, variables, example_of(net)))
    loaded, x = export.load_net(tmp_path / "a"), images(net, 3)
    total = lambda fn: lambda v: (fn(v, x) ** 2).sum()
    doubled = jax.tree.map(lambda leaf: 2 * leaf, variables)
    assert relative(loaded(doubled, x), np.asarray(fn(doubled, x))) < 1e-5
    found, expected = jax.grad(total(loaded))(variables), jax.grad(total(fn))(variables)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected
    )


def test_a_net_without_a_gradient_is_run_all_the_same(tmp_path):
    def fn(v, x):
        return jax.lax.while_loop(lambda y: y.max() < 9, lambda y: 2 * y, dense(v, x))

    (tmp_path / "a").write_bytes(export.stablehlo_of_net(fn, KERNEL, PIXELS))
    x = jnp.ones((3, 2, 3))
    np.testing.assert_allclose(export.load_net(tmp_path / "a")(KERNEL, x), fn(KERNEL, x), rtol=1e-5)


@litert
@pytest.mark.parametrize(
    ("fn", "example", "message"),
    [
        (lambda v, x: dense(v, x["a"] + x["b"]), {"a": PIXELS, "b": PIXELS}, "2 inputs in a dict"),
        (lambda v, x: (dense(v, x), x), PIXELS, r"2 outputs \(\[1, 4\], \[1, 2, 3\]\)"),
        (lambda v, x: {"a": dense(v, x), "b": x}, PIXELS, "2 outputs"),
        (lambda v, x: jnp.cbrt(dense(v, x)), PIXELS, "gives NaN or infinity where JAX gives"),
    ],
)
def test_tflite_says_what_it_cannot_hold(fn, example, message):
    with pytest.raises(errors.ExportError, match=message):
        export.tflite(fn, KERNEL, example)


@litert
def test_tflite_of_one_output_with_a_name():
    model = export.tflite(lambda v, x: {"out": dense(v, x)}, KERNEL, PIXELS)
    x = np.linspace(-1, 2, 18).reshape(3, 2, 3).astype(np.float32)
    assert relative(export.run_tflite(model, x), dense(KERNEL, x)) < 1e-5


@litert
def test_tflite_gives_classes_as_they_are():
    fn = lambda v, x: jnp.argmax(dense(v, x), axis=-1)
    model = export.tflite(fn, KERNEL, PIXELS)
    x = np.random.default_rng(0).normal(size=(9, 2, 3)).astype(np.float32)
    found = [int(export.run_tflite(model, x[n : n + 1])[0]) for n in range(9)]
    assert found == fn(KERNEL, x).tolist()
    assert len({*found}) > 1


@litert
def test_tflite_of_a_net_that_is_not_defined_everywhere():
    """log of negative numbers is NaN in both."""
    model = export.tflite(lambda v, x: jnp.log(dense(v, x)), KERNEL, PIXELS)
    x = np.ones((1, 2, 3), np.float32)
    with np.errstate(invalid="ignore"):
        expected = np.log(dense(KERNEL, x))
    np.testing.assert_allclose(export.run_tflite(model, x), expected, rtol=1e-5)

"""The compiled sparse kernel against the dense contraction, on any shape, thread and device."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jprune import errors, forms, kernels
from jprune.forms.csr import CSR
from jprune.kernels.lines import lines_of
from tests.forms.test_leaf_types import executed

pytest.importorskip("numba")
NAMES = ("jprune_sparse_lines_4", "jprune_sparse_lines_8")


def sparse(shape, density, seed=0, dtype=np.float32):
    """A kernel and its mask; the second filter has no weights."""
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < density
    mask[..., 1], mask.reshape(-1)[0] = False, True
    return rng.normal(size=shape).astype(dtype) * mask, mask


def numpy_convolution(x, kernel, strides, padding, dilation, groups):
    """[n, h, w, c] with [r, s, c / groups, f], summed tap by tap in float64."""
    x = np.pad(np.float64(x), ((0, 0), *padding, (0, 0)))
    spans = [(n - 1) * d + 1 for n, d in zip(kernel.shape, dilation)]
    size = [(n - span) // s + 1 for n, span, s in zip(x.shape[1:], spans, strides)]
    inputs, filters = kernel.shape[2], kernel.shape[3]
    out = np.zeros((len(x), *size, filters))
    for r, s in np.ndindex(*kernel.shape[:2]):
        starts = r * dilation[0], s * dilation[1]
        cut = [
            slice(start, start + (count - 1) * step + 1, step)
            for start, count, step in zip(starts, size, strides)
        ]
        part = x[:, cut[0], cut[1]]
        for group in range(groups):
            of, to = slice(group * inputs, (group + 1) * inputs), filters // groups
            columns = slice(group * to, (group + 1) * to)
            out[..., columns] += part[..., of] @ kernel[r, s][:, columns]
    return out


CASES = {
    # name: (data [n, h, w, c], kernel [r, s, c / groups, f], strides, padding, dilation, groups)
    "3x3": ((1, 9, 8, 5), (3, 3, 5, 7), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "stride": ((3, 11, 10, 4), (3, 3, 4, 6), (2, 2), ((1, 1), (0, 1)), (1, 1), 1),
    "uneven stride": ((2, 12, 13, 3), (5, 4, 3, 5), (3, 2), ((2, 0), (1, 2)), (1, 2), 1),
    "dilation": ((2, 11, 9, 4), (3, 2, 4, 6), (1, 1), ((2, 2), (1, 3)), (2, 3), 1),
    "groups": ((2, 8, 7, 6), (3, 3, 2, 9), (1, 1), ((1, 1), (1, 1)), (1, 1), 3),
    "depthwise": ((2, 8, 7, 6), (3, 3, 1, 6), (1, 1), ((1, 1), (1, 1)), (1, 1), 6),
    "1x1": ((3, 6, 5, 12), (1, 1, 12, 9), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "padded 1x1": ((2, 4, 4, 3), (1, 1, 3, 5), (1, 1), ((1, 2), (2, 1)), (1, 1), 1),
    "window over the map": ((4, 2, 2, 8), (3, 3, 8, 6), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "map of one": ((5, 1, 1, 8), (3, 3, 8, 6), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "several tiles": ((2, 20, 21, 3), (3, 3, 3, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "several threads": ((1, 24, 24, 16), (3, 3, 16, 64), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "many filters": ((1, 4, 4, 64), (3, 3, 64, 256), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_geometries(case):
    data, shape, strides, padding, dilation, groups = CASES[case]
    kernel, mask = sparse(shape, 0.3)
    x = np.random.default_rng(1).normal(size=data).astype(np.float32)
    fn = lambda v, x: jax.lax.conv_general_dilated(
        x, v["kernel"], strides, padding, rhs_dilation=dilation, feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    run = executed(fn, kernel, x)
    held = {"kernel": CSR.of(jnp.asarray(kernel), mask)}
    assert "custom_call @jprune_sparse_lines_4" in jax.jit(run).lower(held, x).as_text()
    found = jax.jit(run)(held, x)
    expected = numpy_convolution(x, kernel, strides, padding, dilation, groups)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert not np.asarray(found)[..., 1].any()


@pytest.mark.parametrize("rows", [1, 5, 200])
def test_dense_layers_of_any_batch(rows):
    kernel, mask = sparse((300, 70), 0.2)
    x = np.random.default_rng(1).normal(size=(rows, 300)).astype(np.float32)
    run = executed(lambda v, x: x @ v["kernel"], kernel, x)
    held = {"kernel": CSR.of(jnp.asarray(kernel), mask)}
    found = jax.jit(run)(held, x)
    np.testing.assert_allclose(found, np.float64(x) @ kernel, atol=2e-4)


def layer(size=(2, 10, 9, 6), shape=(3, 3, 6, 8), dtype=np.float32):
    """(net, its variables in sparse form, dense kernel, data) of one convolution."""
    kernel, mask = sparse(shape, 0.2, dtype=dtype)
    x = jnp.asarray(np.random.default_rng(1).normal(size=size), dtype)
    fn = lambda v, x: jax.lax.conv_general_dilated(
        x, v["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    held = {"kernel": CSR.of(jnp.asarray(kernel), mask)}
    return executed(fn, kernel, x), fn, held, jnp.asarray(kernel), x


def test_one_leaf_runs_at_other_shapes_than_that_it_was_made_with():
    run, fn, held, kernel, _ = layer()
    for size in ((1, 5, 14, 6), (7, 3, 3, 6)):
        other = jnp.asarray(np.random.default_rng(2).normal(size=size), jnp.float32)
        found = jax.jit(run)(held, other)
        np.testing.assert_allclose(found, fn({"kernel": kernel}, other), atol=1e-5)


def test_derivatives_of_first_and_second_order_and_vmap(float64):
    run, fn, held, _, x = layer((2, 5, 4, 3), (3, 3, 3, 4), np.float64)
    leaf = held["kernel"]
    dense = lambda leaf, x: jnp.tanh(fn({"kernel": leaf.dense()}, x)).sum()
    native = lambda leaf, x: jnp.tanh(run({"kernel": leaf}, x)).sum()
    close = lambda one, two: jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), one, two
    )
    push = lambda fn: jax.jvp(fn, (leaf, x), (leaf, x + 1))
    close(push(native), push(dense))
    curved = lambda fn: jax.jvp(lambda x: jax.grad(fn, (0, 1))(leaf, x), (x,), (x + 1,))
    close(curved(native), curved(dense))
    several = jnp.stack([x, x + 1, 2 * x])
    leaves = jax.tree.map(lambda a: jnp.stack([a, 3 * a]), leaf)
    close(
        jax.vmap(lambda x: run(held, x))(several),
        jnp.stack([fn({"kernel": leaf.dense()}, one) for one in several]),
    )
    close(
        jax.vmap(lambda leaf: run({"kernel": leaf}, x))(leaves),
        jnp.stack([fn({"kernel": scale * leaf.dense()}, x) for scale in (1, 3)]),
    )
    close(
        jax.vmap(jax.grad(native, 1), (None, 0))(leaf, several),
        jnp.stack([jax.grad(dense, 1)(leaf, one) for one in several]),
    )


def test_other_devices_get_the_plain_form():
    run, fn, held, kernel, x = layer()
    step = lambda v, x: jax.value_and_grad(lambda v: (run(v, x) ** 2).sum())(v)
    for platform in ("cuda", "tpu"):
        text = export.export(jax.jit(step), platforms=[platform])(held, x).mlir_module()
        assert not any(name in text for name in NAMES)
    with kernels.portable():
        text = jax.jit(lambda v, x: run(v, x)).lower(held, x).as_text()
        exported = export.export(jax.jit(lambda v, x: run(v, x)), platforms=["cpu"])(held, x)
    assert not any(name in text for name in NAMES)
    np.testing.assert_allclose(exported.call(held, x), fn({"kernel": kernel}, x), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_types_get_the_plain_form(dtype):
    run, _, held, _, x = layer()
    half = jax.tree.map(lambda a: a.astype(dtype), held)
    text = jax.jit(run).lower(half, x.astype(dtype)).as_text()
    assert not any(name in text for name in NAMES)


def test_several_calls_at_once_give_what_single_calls_give():
    run, fn, held, kernel, _ = layer((1, 24, 24, 16), (3, 3, 16, 64))
    jitted = jax.jit(run)
    images = [
        jnp.asarray(np.random.default_rng(n).normal(size=(1, 24, 24, 16)), jnp.float32)
        for n in range(12)
    ]
    expected = [np.asarray(fn({"kernel": kernel}, x)) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(lambda x: np.asarray(jitted(held, x)), images), expected):
            np.testing.assert_allclose(found, right, atol=2e-5 * np.abs(right).max())
    # Within one program, where XLA may run them side by side.
    both = jax.jit(lambda x, y: (run(held, x), run(held, y)))
    for found, right in zip(both(*images[:2]), expected):
        np.testing.assert_allclose(found, right, atol=2e-5 * np.abs(right).max())


def test_without_numba_the_plain_form_runs_and_the_extra_is_named(monkeypatch):
    run, fn, held, kernel, x = layer()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "numba" else find(name, *a)
    )
    with pytest.raises(errors.MissingExtraError, match=r"jprune\[sparse\]"):
        kernels.require()
    text = jax.jit(lambda v, x: run(v, x)).lower(held, x).as_text()
    assert not any(name in text for name in NAMES)
    np.testing.assert_allclose(run(held, x), fn({"kernel": kernel}, x), atol=1e-5)


def test_a_kernel_that_is_called_with_another_shape_is_refused_before_it_reads():
    taps, pointers = np.array([[0, 1], [1, 0], [0, 0]]), np.array([0, 2])
    run = kernels.sparse_convolution((1, 1, 3, 3), taps, pointers, (2, 2))
    values = jnp.array([2.0, -1.0])
    assert run(jnp.arange(1.0, 10).reshape(1, 1, 3, 3), values)[0, 0].tolist() == [[0, 1], [3, 4]]
    for x, weights in (
        (jnp.ones((1, 1, 4, 3)), values),
        (jnp.ones((1, 1, 3, 3)), jnp.ones(3)),
        (jnp.ones((1, 1, 3, 3), jnp.float16), values.astype(jnp.float16)),
    ):
        with pytest.raises(errors.StructureError, match="both are float32 or both float64"):
            run(x, weights)


def test_lines_that_int32_cannot_address_are_left_to_the_plain_form():
    taps = np.zeros((3, 1), int)
    assert lines_of((1, 2**15, 2**8, 2**8), taps, np.array([0, 1]), (1, 1)) is None
    assert lines_of((1, 2, 3, 3), taps, np.array([0, 1]), (5, 5)) is None  # no output


def test_compact_takes_grouped_kernels_as_single_weights_alone():
    kernel, mask = sparse((3, 3, 2, 8), 0.2)
    x = jnp.ones((1, 6, 6, 4))
    fn = lambda v, x: jax.lax.conv_general_dilated(
        x, v["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )  # fmt: skip
    run = executed(fn, kernel, x)
    variables = {"kernel": jnp.asarray(kernel)}
    held = forms.compact(run, variables, {"kernel": mask}, x)
    assert isinstance(held["kernel"], CSR)
    np.testing.assert_allclose(run(held, x), fn(variables, x), atol=1e-5)
    whole_filter = np.ones(mask.shape, bool) & (np.arange(8) != 3)
    held = forms.compact(run, variables, {"kernel": whole_filter}, x)
    assert isinstance(held["kernel"], jax.Array)
    assert bool((held["kernel"] == kernel * whole_filter).all())

"""Depthwise convolutions as shifted multiply-adds: equal in value and gradient, in any net."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import jprune
from jprune.graph.shrink.depthwise import MAXIMUM_TAPS, shift_depthwise
from tests.nets import Net, conv, draw, head, head_shapes, norm, norm_shapes

LAYOUTS = (
    ("NHWC", "HWIO", "NHWC"),
    ("NCHW", "OIHW", "NCHW"),
    ("HWCN", "IOWH", "NCHW"),
    ("NCHW", "HWIO", "HWNC"),
)
SIZES = {"N": 2, "C": 5, "H": 7, "W": 9, "D": 6, "I": 1}


def shift(fn):
    return shift_depthwise(fn, platform="cpu")


def convolutions(jaxpr):
    """How many convolutions a jaxpr holds, however deep."""
    return str(jaxpr).count("conv_general_dilated[")


def problem(layout=LAYOUTS[0], multiplier=1, window=(3, 2), dtype=jnp.float64, **options):
    """A function of a kernel and data, and both."""
    data_layout, kernel_layout, _ = layout
    sizes = {**SIZES, "O": SIZES["C"] * multiplier}
    spatial = [letter for letter in kernel_layout if letter not in "IO"]
    kernel_sizes = {**sizes, **dict(zip(sorted(spatial), window))}
    rng = np.random.default_rng(0)
    draw = lambda letters, of: jnp.asarray(rng.normal(size=[of[a] for a in letters]), dtype)
    settings = {"window_strides": (1,) * len(window), "padding": "SAME", **options}

    def fn(kernel, x):
        return jax.lax.conv_general_dilated(
            x, kernel, dimension_numbers=layout, feature_group_count=SIZES["C"], **settings
        )

    return fn, (draw(kernel_layout, kernel_sizes), draw(data_layout, sizes))


def relative_error(one, other):
    """max|a - b| / max|a| over all leaves, in NumPy, which compiles nothing."""
    leaves = [[np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(t)] for t in (one, other)]
    difference = max(np.abs(a - b).max() for a, b in zip(*leaves))
    return difference / max(np.abs(a).max() for a in leaves[0])


def value_and_gradients(fn, args):
    """The value, and the gradients of a weighted sum of it in all arguments."""

    def total(*args):
        value = fn(*args)
        weight = jnp.cos(jnp.arange(value.size)).reshape(value.shape).astype(value.dtype)
        return (value * weight).sum(), value

    gradients, value = jax.grad(total, tuple(range(len(args))), has_aux=True)(*args)
    return value, *gradients


def check(fn, args, bound):
    """Value and gradients of `fn(*args)` with and without its convolutions."""
    assert convolutions(jax.make_jaxpr(shift(fn))(*args)) == 0
    both = jax.jit(lambda *args: [value_and_gradients(f, args) for f in (fn, shift(fn))])
    for plain, shifted in zip(*both(*args)):
        shapes = [jax.tree.map(lambda a: (a.shape, a.dtype), tree) for tree in (plain, shifted)]
        assert shapes[0] == shapes[1]
        assert relative_error(plain, shifted) <= bound


@pytest.mark.parametrize(
    ("multiplier", "stride", "dilation", "padding"),
    [
        (1, (1, 1), (1, 1), "SAME"),
        (1, (2, 3), (1, 1), "SAME"),
        (2, (1, 2), (1, 1), "VALID"),
        (3, (2, 1), (2, 1), ((3, 1), (0, 2))),
        (1, (1, 1), (2, 3), "SAME"),
        (1, (2, 2), (1, 1), ((-1, 2), (1, -2))),
    ],
)
def test_strides_dilations_multipliers_and_paddings(float64, multiplier, stride, dilation, padding):
    options = {"window_strides": stride, "rhs_dilation": dilation, "padding": padding}
    check(*problem(multiplier=multiplier, **options), 1e-12)


@pytest.mark.parametrize("layout", LAYOUTS, ids="-".join)
def test_layouts(float64, layout):
    check(*problem(layout, multiplier=2, window_strides=(2, 1)), 1e-12)


@pytest.mark.parametrize(
    ("layout", "window"),
    [(("NWC", "WIO", "NWC"), (4,)), (("NCDHW", "OIDHW", "NDHWC"), (2, 3, 2))],
)
def test_one_and_three_spatial_axes(float64, layout, window):
    check(*problem(layout, window=window), 1e-12)


def test_dilated_data_are_a_transposed_convolution(float64):
    options = {"lhs_dilation": (2, 3), "padding": ((2, 1), (1, 0)), "window_strides": (1, 2)}
    check(*problem(multiplier=2, **options), 1e-12)


@settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    window=st.tuples(*[st.integers(1, 4)] * 2),
    stride=st.tuples(*[st.integers(1, 3)] * 2),
    holes=st.tuples(*[st.integers(1, 2)] * 4),
    padding=st.tuples(*[st.integers(-1, 3)] * 4),
    multiplier=st.integers(1, 3),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_convolution(window, stride, holes, padding, multiplier, layout):
    with jax.enable_x64(True):
        fn, args = problem(
            layout,
            multiplier,
            window,
            window_strides=stride,
            padding=(padding[:2], padding[2:]),
            rhs_dilation=holes[:2],
            lhs_dilation=holes[2:],
        )
        value, shifted = jax.jit(lambda *a: (fn(*a), shift(fn)(*a)))(*args)
        assert value.shape == shifted.shape
        # Not relative: windows that see padding only give zeros.
        np.testing.assert_allclose(value, shifted, rtol=0, atol=1e-12)


def test_single_precision(float64):
    check(*problem(dtype=jnp.float32, multiplier=2), 1e-5)


def test_half_precision_sums_in_single_precision():
    fn, args = problem(dtype=jnp.bfloat16, window=(4, 4))
    exact = fn(*(a.astype(jnp.float32) for a in args)).astype(jnp.bfloat16)
    shifted = shift(fn)(*args)
    assert shifted.dtype == jnp.bfloat16
    assert relative_error(exact.astype(jnp.float32), shifted.astype(jnp.float32)) <= 2**-8


def test_integers_in_a_wider_type():
    fn, (kernel, x) = problem(dtype=jnp.float32, preferred_element_type=jnp.int32)
    kernel, x = (jnp.round(40 * a).astype(jnp.int8) for a in (kernel, x))
    value = fn(kernel, x)
    assert value.dtype == jnp.int32
    np.testing.assert_array_equal(value, shift(fn)(kernel, x))


def nested():
    """(name, function of a kernel [3, 3, 1, 5] and data) with a depthwise convolution inside."""
    block = lambda kernel, x: jnp.tanh(conv(x, kernel, groups=5))

    def scan(kernel, x):
        turn = lambda carry, scale: (block(kernel * scale, carry), carry.sum())
        last, sums = jax.lax.scan(turn, x, jnp.array([1.0, 0.5, 2.0], kernel.dtype))
        return last + sums.sum()

    def cond(kernel, x):
        return jax.lax.cond(x[0, 0, 0, 0] > 0, block, lambda k, x: block(2 * k, x) + 1, kernel, x)

    def fori(kernel, x):
        return jax.lax.fori_loop(0, 3, lambda i, carry: block(kernel, carry) + i, x)

    kinds = {
        "jit": jax.jit(block),
        "checkpoint": jax.checkpoint(block, policy=jax.checkpoint_policies.dots_saveable),
        "scan": scan,
        "cond": cond,
        "fori": fori,
        "vmap": lambda kernel, x: jax.vmap(block, (None, 0))(kernel, x[:, None])[:, 0],
        "vmap_kernels": lambda kernel, x: jax.vmap(block)(jnp.stack([kernel, -kernel]), x[:, None]),
        "checkpointed_scan": jax.checkpoint(scan),
    }
    return list(kinds.items())


@pytest.mark.parametrize(
    ("name", "fn"), nested(), ids=lambda item: item if isinstance(item, str) else ""
)
def test_inside_other_equations(float64, name, fn):
    rng = np.random.default_rng(1)
    args = jnp.asarray(rng.normal(size=(3, 3, 1, 5))), jnp.asarray(rng.normal(size=(2, 6, 7, 5)))
    before, after = (jax.make_jaxpr(f)(*args) for f in (fn, shift(fn)))
    assert convolutions(before) > 0
    check(fn, args, 1e-12)
    # What is not a depthwise convolution stays: the loop is still a loop.
    for primitive in ("scan", "cond", "while", "remat"):
        assert (f" {primitive}" in str(before)) == (f" {primitive}" in str(after))


def test_functions_with_derivatives_of_their_own_keep_them(float64):
    def rounded(kernel, x):
        return jnp.round(conv(x, kernel, groups=5))

    jvp = jax.custom_jvp(rounded)
    jvp.defjvp(
        # Twice the true slope, so that nobody else's rule gives it.
        lambda primals, tangents: (
            jvp(*primals),
            2 * conv(primals[1], tangents[0], groups=5) + conv(tangents[1], primals[0], groups=5),
        )
    )
    vjp = jax.custom_vjp(rounded)
    vjp.defvjp(
        lambda kernel, x: (vjp(kernel, x), (kernel, x)),
        lambda saved, g: (3 * saved[0] * g.sum(), conv(g, jnp.flip(saved[0], (0, 1)), groups=5)),
    )
    rng = np.random.default_rng(2)
    args = jnp.asarray(rng.normal(size=(3, 3, 1, 5))), jnp.asarray(rng.normal(size=(2, 6, 7, 5)))
    for fn in (jvp, vjp, lambda k, x: jax.nn.relu(vjp(k, x) + jvp(k, x))):
        check(fn, args, 1e-12)
    # The input gradient is a depthwise convolution too, and is rewritten with the rest.
    pulled = jax.make_jaxpr(jax.grad(lambda x: shift(vjp)(args[0], x).sum()))(args[1])
    assert convolutions(pulled) == 0


def test_relu_at_zero_keeps_its_derivative():
    fn = lambda kernel, x: jax.nn.relu(conv(x, kernel, groups=5)).sum()
    gradient = jax.jit(jax.grad(shift(fn)))(jnp.zeros((3, 3, 1, 5)), jnp.ones((1, 4, 4, 5)))
    np.testing.assert_array_equal(gradient, np.zeros((3, 3, 1, 5)))


def test_other_convolutions_and_large_windows_stay():
    x = jnp.ones((1, 20, 20, 6))
    side = int(MAXIMUM_TAPS**0.5) + 1
    for shape, groups in (((3, 3, 6, 4), 1), ((3, 3, 2, 6), 3), ((side, side, 1, 6), 6)):
        fn = lambda kernel, groups=groups: conv(x, kernel, groups=groups)
        assert convolutions(jax.make_jaxpr(shift(fn))(jnp.ones(shape))) == 1


def test_other_platforms_keep_their_convolutions():
    fn, args = problem(dtype=jnp.float32)
    assert convolutions(jax.make_jaxpr(shift_depthwise(fn, platform="gpu"))(*args)) == 1
    expected = 0 if jax.default_backend() == "cpu" else 1
    assert convolutions(jax.make_jaxpr(shift_depthwise(fn))(*args)) == expected


def test_exported_with_a_symbolic_batch_for_several_platforms():
    fn, (kernel, x) = problem(dtype=jnp.float32, multiplier=2, window_strides=(2, 1))
    batch = jax.export.symbolic_shape("batch, 7, 9, 5")
    shapes = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype), jax.ShapeDtypeStruct(batch, x.dtype)
    for platforms in (("cpu",), ("cpu", "cuda", "tpu")):
        exported = jax.export.export(jax.jit(shift(fn)), platforms=platforms)(*shapes)
        assert "stablehlo.convolution" not in exported.mlir_module()
        assert relative_error(fn(kernel, x), exported.call(kernel, x)) <= 1e-5


def inverted_residual(v, x):
    """Expansion, depthwise, projection; a depthwise convolution with a multiplier behind it."""
    h = jax.nn.relu(norm(conv(x, v["stem"]), v["norm0"]))
    y = jax.nn.relu6(norm(conv(h, v["expand"]), v["norm1"]))
    y = jax.nn.softplus(norm(conv(y, v["depthwise"], groups=y.shape[3]), v["norm2"]))
    h = h + conv(y, v["project"])
    return head(jnp.tanh(conv(h, v["multiplied"], 2, groups=h.shape[3])), v)


def test_dense_and_slim_nets_and_their_units():
    shapes = {
        "stem": (3, 3, 3, 5),
        "norm0": norm_shapes(5),
        "expand": (1, 1, 5, 8),
        "norm1": norm_shapes(8),
        "depthwise": (3, 3, 1, 8),
        "norm2": norm_shapes(8),
        "project": (1, 1, 8, 5),
        "multiplied": (3, 3, 1, 10),
        "head": head_shapes(10),
    }
    net = Net("inverted_residual", inverted_residual, shapes, ((2, 9, 7, 3),), {})
    variables, (x,) = draw(net, seed=3)
    groups = jprune.trace(inverted_residual, variables, x)
    assert groups.sizes["expand"] == 8
    masks = {name: np.arange(size) % 3 != 1 for name, size in groups.sizes.items()}
    small = jprune.slim_params(groups, masks, variables)
    slim_fn = jprune.slim(inverted_residual, groups, masks)
    for fn, values in ((inverted_residual, variables), (slim_fn, small)):
        assert convolutions(jax.make_jaxpr(shift(fn))(values, x)) == 3
        both = jax.jit(lambda v, fn=fn: [value_and_gradients(f, (v, x)) for f in (fn, shift(fn))])
        for plain, shifted in zip(*both(values)):
            assert relative_error(plain, shifted) <= 1e-5
    # Rewritten first and slimmed then: the same units, the same net.
    again = jprune.trace(shift(inverted_residual), variables, x)
    assert again.sizes == groups.sizes
    other = jprune.slim(shift(inverted_residual), again, masks)
    results = jax.jit(lambda v: (slim_fn(v, x), other(v, x)))(small)
    assert relative_error(*results) <= 1e-5


def test_arguments_and_results_are_trees(float64):
    fn, (kernel, x) = problem()
    tree = lambda v, x, *, scale: {"y": (scale * fn(v["kernel"], x), x.sum())}
    value = tree({"kernel": kernel}, x, scale=2.0)
    shifted = shift(tree)({"kernel": kernel}, x, scale=2.0)
    assert jax.tree.structure(value) == jax.tree.structure(shifted)
    assert relative_error(value, shifted) <= 1e-12

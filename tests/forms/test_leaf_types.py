"""Leaf types against the dense kernel they stand for: numbers, any geometry, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import blocks, errors, forms
from jprune.forms.csr import CSR
from jprune.forms.factored import Factored
from jprune.forms.leaf_type import is_leaf_type
from jprune.forms.opened import read_back, written_out
from jprune.forms.rows import Rows
from jprune.forms.thin import Thin
from tests.law import quick, relative_error
from tests.nets import Net, conv, draw

LAYOUTS = (
    ("NHWC", "HWIO", "NHWC"),
    ("NCHW", "HWIO", "HWNC"),
    ("NCHW", "OIHW", "NCHW"),
    ("HWNC", "IHOW", "CNWH"),
)
FORMS = ("thin", "thin rows", "rows", "csr", "factored")


def form_of(name, kernel, seed=0, axes=None):
    """A leaf type that stands for a part of a kernel [h, w, 5, 6], its axes as `axes` says."""
    own = kernel if axes is None else kernel.transpose(np.argsort(axes))
    rng = np.random.default_rng(seed)
    taps = rng.random(kernel.shape[:-1]) < 0.4
    taps.reshape(-1)[0] = True
    outputs = np.arange(kernel.shape[-1]) != 1
    mask = rng.random(kernel.shape) < 0.2
    mask[..., 2], mask.reshape(-1)[0] = False, True  # a filter without weights
    ranks = ((kernel.shape[-2], 2), (*kernel.shape[:-2], 2, 3), (3, kernel.shape[-1]))
    return {
        "thin": lambda: Thin.of(own, taps, axes=axes),
        "thin rows": lambda: Thin.of(own, taps, outputs, axes),
        "rows": lambda: Rows.of(own, np.arange(kernel.shape[-2]) % 2 == 0, outputs, axes),
        "csr": lambda: CSR.of(
            own, mask if axes is None else mask.transpose(np.argsort(axes)), axes
        ),
        "factored": lambda: Factored(
            *(jnp.asarray(rng.normal(size=shape)) for shape in ranks), axes=axes
        ),
    }[name]()


def executed(fn, kernel, x):
    """`fn` as `slim` runs it: leaf types in place of the kernel are asked to apply themselves."""
    groups = jprune.trace(fn, {"kernel": kernel}, x)
    return jprune.slim(fn, groups, {})


def check_form(fn, leaf, x, bound=1e-12):
    """Value and gradients of the leaf's weights and of the data, jitted, against `dense()`."""
    run = executed(fn, leaf.dense(), x)
    weigh = lambda out: (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum()
    held = lambda leaf, x: weigh(run({"kernel": leaf}, x))
    dense = lambda leaf, x: weigh(fn({"kernel": leaf.dense()}, x))
    both = lambda leaf, x: [
        (fn({"kernel": leaf.dense()}, x), jax.grad(dense, (0, 1))(leaf, x)),
        (run({"kernel": leaf}, x), jax.grad(held, (0, 1))(leaf, x)),
    ]
    expected, found = quick(both, leaf, x)
    assert expected[0].shape == found[0].shape
    assert relative_error(expected[0], found[0]) <= bound
    assert relative_error(expected[1], found[1]) <= bound


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS, ids="-".join)
def test_strided_dilated_padded_convolutions(form, layout, float64):
    rng = np.random.default_rng(1)
    kernel = jnp.asarray(rng.normal(size=(3, 2, 5, 6)))
    length = {"N": 4, "H": 9, "W": 8, "C": 5}
    x = jnp.asarray(rng.normal(size=[length[letter] for letter in layout[0]]))

    def fn(v, x):
        return jax.lax.conv_general_dilated(
            x,
            v["kernel"],
            (2, 1),
            ((1, 0), (-1, 2)),
            lhs_dilation=(1, 2),
            rhs_dilation=(2, 3),
            dimension_numbers=layout,
        )

    check_form(fn, form_of(form, kernel, axes=[layout[1].index(letter) for letter in "HWIO"]), x)


DENSE = {
    "kernel @ x": lambda v, x: (v["kernel"] @ x.reshape(12, 5).T).T,
    "vmap": lambda v, x: jax.vmap(jax.vmap(lambda row: v["kernel"] @ row))(x),
    "x @ kernel.T": lambda v, x: x @ v["kernel"].T,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", DENSE)
def test_dense_layers_with_kernels_of_outputs_and_inputs(case, form, float64):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(3, 4, 5)))
    leaf = form_of(form, jnp.asarray(rng.normal(size=(5, 6))), axes=(1, 0))
    assert leaf.shape == (6, 5)
    check_form(DENSE[case], leaf, x)


@pytest.mark.parametrize("form", FORMS)
def test_dense_layers_and_other_numbers_of_axes(form, float64):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(3, 4, 5)))
    check_form(lambda v, x: x @ v["kernel"], form_of(form, jnp.asarray(rng.normal(size=(5, 6)))), x)
    kernel = jnp.asarray(rng.normal(size=(3, 5, 6)))

    def sequence(v, x):
        numbers = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(x, v["kernel"], (2,), "SAME", dimension_numbers=numbers)

    check_form(sequence, form_of(form, kernel), x)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    form=st.sampled_from(["thin", "csr"]),
    window=st.tuples(*[st.integers(1, 3)] * 2),
    stride=st.tuples(*[st.integers(1, 3)] * 2),
    dilation=st.tuples(*[st.integers(1, 2)] * 2),
    padding=st.tuples(*[st.integers(-1, 3)] * 4),
    seed=st.integers(0, 99),
)
def test_any_convolution(form, window, stride, dilation, padding, seed):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.normal(size=(2, 7, 9, 5)))
        leaf = form_of(form, jnp.asarray(rng.normal(size=(*window, 5, 6))), seed)

        def fn(v, x):
            return jax.lax.conv_general_dilated(
                x,
                v["kernel"],
                stride,
                (padding[:2], padding[2:]),
                rhs_dilation=dilation,
                dimension_numbers=LAYOUTS[0],
            )

        run = executed(fn, leaf.dense(), x)
        both = lambda leaf, x: (fn({"kernel": leaf.dense()}, x), run({"kernel": leaf}, x))
        # Not relative: windows that see padding only give zeros.
        np.testing.assert_allclose(*quick(both, leaf, x), rtol=0, atol=1e-12)


def test_direct_sparse_convolution_by_hand():
    """[11] P2: out[y, x] = 2 in[y, x + 1] - in[y + 1, x]."""
    x = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    kernel = jnp.array([[0.0, 2.0], [-1.0, 0.0]]).reshape(2, 2, 1, 1)
    leaf = CSR.of(kernel, np.asarray(kernel != 0))
    assert leaf.values.tolist() == [2, -1]
    assert leaf.columns.tolist() == [1, 2]
    assert leaf.pointers.tolist() == [0, 2]
    out = executed(lambda v, x: conv(x, v["kernel"], padding="VALID"), kernel, x)
    assert out({"kernel": leaf}, x)[0, :, :, 0].tolist() == [[0, 1], [3, 4]]


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1)])
def test_direct_sparse_convolution_with_an_empty_filter(stride, padding, float64):
    """[11] P1: C = 3, H = 7, W = 8, N = 4, 3x3, a fifth kept; the empty filter gives the bias."""
    rng = np.random.default_rng(0)
    kernel, x = (jnp.asarray(rng.normal(size=s)) for s in ((3, 3, 3, 4), (2, 7, 8, 3)))
    bias = jnp.asarray(rng.normal(size=4))
    mask = rng.random(kernel.shape) < 0.2
    mask[..., 2] = False
    fn = lambda v, x: conv(x, v["kernel"], stride, ((padding, padding),) * 2) + bias
    found = quick(executed(fn, kernel, x), {"kernel": CSR.of(kernel, mask)}, x)
    np.testing.assert_allclose(found, fn({"kernel": kernel * mask}, x), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found[..., 2], jnp.broadcast_to(bias[2], found.shape[:3]))


def test_rows_and_columns_leave_a_small_product(float64):
    """[13] P3 and [15] P2: 9 of 27 taps and 2 of 4 filters; a third of the columns are left."""
    rng = np.random.default_rng(0)
    kernel, x = (jnp.asarray(rng.normal(size=s)) for s in ((3, 3, 3, 4), (2, 6, 6, 3)))
    taps, outputs = np.arange(27).reshape(3, 3, 3) % 3 == 1, np.array([True, False, True, False])
    leaf = Thin.of(kernel, taps, outputs)
    run = executed(lambda v, x: conv(x, v["kernel"]), kernel, x)
    text = str(jax.make_jaxpr(run)({"kernel": leaf}, x))
    assert leaf.weights.shape == (9, 2)
    assert "f64[2,6,6,9]" in text  # the patch matrix
    assert "conv_general_dilated" not in text
    masked = conv(x, kernel * taps[..., None] * outputs)
    np.testing.assert_allclose(run({"kernel": leaf}, x), masked, rtol=0, atol=1e-12)


def test_half_precision_keeps_the_type_of_the_contraction():
    rng = np.random.default_rng(0)
    kernel, x = (
        jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((3, 3, 5, 6), (2, 7, 8, 5))
    )

    def fn(v, x):
        return jax.lax.conv_general_dilated(
            x,
            v["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=LAYOUTS[0],
            preferred_element_type=jnp.float32,
        )

    run = executed(fn, kernel, x)
    both = lambda leaf, x: (fn({"kernel": leaf.dense()}, x), run({"kernel": leaf}, x))
    for form in ("thin rows", "csr"):
        leaf = form_of(form, kernel)
        expected, found = quick(both, leaf, x)
        assert found.dtype == jnp.float32
        assert relative_error(expected, found) < 1e-6


PATTERNS = {
    # name: (mask of a kernel [3, 2, 4, 5], its form)
    "nothing": (np.ones((3, 2, 4, 5), bool), jax.Array),
    "filter": (np.ones((3, 2, 4, 1), bool) & (np.arange(5) != 2), Rows),
    "channel": (np.ones((3, 2, 1, 5), bool) & (np.arange(4) % 2 == 0)[:, None], Rows),
    "column": (np.ones(5, bool) & (np.arange(24).reshape(3, 2, 4, 1) % 5 != 0), Thin),
    "tap": (np.ones((4, 5), bool) & (np.arange(6).reshape(3, 2, 1, 1) != 3), Thin),
    "column and filter": (
        (np.arange(24).reshape(3, 2, 4, 1) % 5 != 0) & (np.arange(5) != 2),
        Thin,
    ),
    "weight": (np.arange(120).reshape(3, 2, 4, 5) % 7 == 0, CSR),
    "kernel": (
        np.ones((3, 2, 1, 1), bool) & (np.arange(20).reshape(4, 5) % 7 < 3),
        CSR,
    ),
    "dense weights": (np.arange(120).reshape(3, 2, 4, 5) % 7 != 0, jax.Array),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_which_form_a_pattern_gets(pattern):
    mask, form = PATTERNS[pattern]
    kernel = jnp.arange(1.0, 121).reshape(3, 2, 4, 5)
    leaf = forms.leaf_of(kernel, mask)
    assert isinstance(leaf, form)
    turned = forms.leaf_of(
        kernel.transpose(3, 2, 0, 1), mask.transpose(3, 2, 0, 1), axes=(2, 3, 1, 0)
    )
    assert jax.tree.map(jnp.shape, jax.tree.leaves(turned)) == (
        jax.tree.map(jnp.shape, jax.tree.leaves(leaf)) if is_leaf_type(leaf) else [(5, 4, 3, 2)]
    )
    dense = leaf.dense() if is_leaf_type(leaf) else leaf
    np.testing.assert_array_equal(dense, kernel * mask)


def test_single_weights_only_below_the_density_that_is_asked_for():
    kernel, mask = jnp.ones((4, 5)), np.arange(20).reshape(4, 5) % 3 == 0
    assert mask.mean() == 0.35
    assert isinstance(forms.leaf_of(kernel, mask), CSR)
    assert not is_leaf_type(forms.leaf_of(kernel, mask, csr_below=0.35))


def mixed(v, x):
    """Kernels that can take another form, and one of each kind that cannot."""
    x = jax.nn.sigmoid(conv(x, v["plain"]))
    x = jnp.tanh(conv(x, v["deep"], groups=6))
    kernel = v["standardised"] - v["standardised"].mean(-1, keepdims=True)
    x = jax.nn.gelu(conv(x, kernel))
    x = jax.nn.sigmoid(x.mean((1, 2)) @ v["tied"]) @ v["tied"].T
    return x @ v["out"]


MIXED = Net(
    "mixed",
    mixed,
    {
        "plain": (3, 3, 3, 6),
        "deep": (3, 3, 1, 6),
        "standardised": (1, 1, 6, 7),
        "tied": (7, 5),
        "out": (7, 4),
    },
    ((2, 8, 9, 3),),
    {},
)


def test_compact_converts_what_can_be_converted_and_changes_nothing(float64):
    """Lift, slim, compact: the masked net in the end."""
    variables, inputs = draw(MIXED, dtype=jnp.float64)
    groups = jprune.trace(MIXED.fn, variables, *inputs)
    rng = np.random.default_rng(0)
    masks = jax.tree.map(lambda leaf: rng.random(leaf.shape) < 0.4, variables)
    masks["plain"] = np.ones(6, bool) & (rng.random((3, 3, 3, 1)) < 0.4)
    masks["deep"] = None
    masked = jprune.apply_masks(variables, masks)
    units = blocks.lift(groups, masks)
    small_fn = jprune.slim(MIXED.fn, groups, units)
    small, left = (jprune.slim_params(groups, units, tree) for tree in (masked, masks))
    held = forms.compact(small_fn, small, left, *inputs)
    kinds = {name: type(leaf).__name__ for name, leaf in held.items() if is_leaf_type(leaf)}
    assert kinds == {"plain": "Thin", "out": "CSR"}
    both = lambda masked, held: (MIXED.fn(masked, *inputs), small_fn(held, *inputs))
    assert relative_error(*quick(both, masked, held)) < 1e-12


def test_compact_reads_the_layout_off_the_contractions(float64):
    """The kernels of the net above as a library with channels first writes them."""

    def net(v, x):
        numbers = ("NCHW", "OIHW", "NCHW")
        x = jax.lax.conv_general_dilated(x, v["first"], (1, 1), "SAME", dimension_numbers=numbers)
        x = jax.vmap(lambda row: v["second"] @ row)(jnp.tanh(x).mean((2, 3)))
        return jnp.tanh(x) @ v["third"].T

    rng = np.random.default_rng(0)
    shapes = {"first": (6, 4, 3, 2), "second": (7, 6), "third": (5, 7)}
    variables = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    masks = {
        "first": np.ones((6, 1, 1, 1), bool) & (rng.random((4, 3, 2)) < 0.4),
        "second": np.ones((7, 6), bool) & (np.arange(6) % 2 == 0),
        "third": rng.random((5, 7)) < 0.3,
    }
    x = jnp.asarray(rng.normal(size=(2, 4, 9, 8)))
    run = jprune.slim(net, jprune.trace(net, variables, x), {})
    held = forms.compact(run, variables, masks, x)
    kinds = {"first": "Thin", "second": "Rows", "third": "CSR"}
    assert {name: type(leaf).__name__ for name, leaf in held.items()} == kinds
    assert {name: leaf.shape for name, leaf in held.items()} == shapes
    masked = jprune.apply_masks(variables, masks)
    expected, found = quick(lambda masked, held: (net(masked, x), run(held, x)), masked, held)
    assert relative_error(expected, found) < 1e-12


def test_a_form_that_is_written_out_comes_back_with_its_axes():
    leaf = form_of("factored", jnp.ones((3, 2, 5, 6)), axes=(2, 3, 1, 0))
    plain = written_out({"kernel": leaf})
    assert [*plain["kernel"]] == ["factored-2-3-1-0"]
    back = read_back(plain)["kernel"]
    assert (back.shape, back.axes) == ((6, 5, 3, 2), (2, 3, 1, 0))
    assert jax.tree.structure(back) == jax.tree.structure(leaf)


def test_a_kernel_of_low_rank_is_factored_exactly(float64):
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=s)) for s in ((5, 2), (3, 2, 2, 4), (4, 7))]
    kernel = Factored(*parts).dense()
    leaf = Factored.of(kernel, 2, 4)
    assert leaf.core.shape == (3, 2, 2, 4)
    assert relative_error(kernel, leaf.dense()) < 1e-12
    assert relative_error(kernel, Factored.of(kernel, 1, 4).dense()) > 0.1


def test_errors_say_what_to_write():
    kernel = jnp.ones((3, 3, 2, 4))
    with pytest.raises(errors.StructureError, match="keeps at least one weight"):
        CSR.of(kernel, np.zeros(kernel.shape, bool))
    with pytest.raises(errors.StructureError, match=r"are bool \(3, 3, 2\) and keep at least one"):
        Thin.of(kernel, np.ones((3, 3), bool))
    with pytest.raises(errors.StructureError, match=r"bool \[2\] and \[4\]"):
        Rows.of(kernel, np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(errors.StructureError, match="two axes or more"):
        forms.leaf_of(jnp.ones(3), np.ones(3, bool))
    grouped = lambda v, x: conv(x, v["kernel"], groups=2)
    x = jnp.ones((1, 5, 5, 4))
    with pytest.raises(errors.StructureError, match=r"feature groups. Use leaf.dense\(\)"):
        executed(grouped, kernel, x)({"kernel": Thin.of(kernel, np.ones((3, 3, 2), bool))}, x)

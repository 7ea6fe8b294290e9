"""Patterns within kernels: numbers of methods/checks.md [3] and B9, exact counts, any layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import allocate, blocks, errors
from jprune.base import Budget

PATTERNS = {
    "weight": blocks.weights,
    "vector": blocks.vectors,
    "kernel": blocks.kernels,
    "row": blocks.rows,
    "column": blocks.columns,
    "block": lambda groups: blocks.block(groups, h=2, inputs=3, outputs=2),
}
ALL = pytest.mark.parametrize("name", PATTERNS)


def groups_of(shapes, layouts=None):
    """Groups of a net in which every kernel is contracted with an input of its own."""

    def run(kernel, x, layout):
        if kernel.ndim == 2:
            return (x * jnp.ones((1, kernel.shape[0]))) @ kernel
        window = "DHW"[5 - kernel.ndim :]
        layout = layout or f"{window}IO"
        x = x * jnp.ones((1, *(9 for _ in window), kernel.shape[layout.index("I")]))
        numbers = (f"N{window}C", layout, f"N{window}C")
        strides = (1,) * len(window)
        return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers)

    def fn(v, x):
        kernels = {name: v[name] for name in shapes if len(shapes[name]) > 1}
        return [run(v[name], x, (layouts or {}).get(name)) for name in kernels]

    return jprune.trace(fn, {name: jnp.ones(shape) for name, shape in shapes.items()}, jnp.ones(()))


def pooled(pattern, scores, how="sum"):
    """Scores of one kernel, pooled, as an array of the boxes along every axis."""
    groups = groups_of({"w": scores.shape})
    made = pattern(groups)
    (member,) = made["w"].members
    return blocks.pool(made, {"w": scores}, how)["w"].reshape(member.grid(scores.shape))


def hwio(oihw):
    return np.transpose(np.asarray(oihw), (2, 3, 1, 0))


def oihw(grains):
    return np.transpose(np.asarray(grains), (3, 2, 0, 1))


def test_saliences_of_grains():
    """[3] P1; the papers' kernels are OIHW."""
    weights = hwio(np.arange(1.0, 17).reshape(2, 2, 2, 2))
    vectors = oihw(pooled(blocks.vectors, weights))
    assert vectors[..., 0].tolist() == [[[3, 7], [11, 15]], [[19, 23], [27, 31]]]
    kernels = pooled(blocks.kernels, weights)
    assert oihw(kernels)[..., 0, 0].tolist() == [[10, 26], [42, 58]]
    assert pooled(blocks.rows, weights).ravel().tolist() == [36, 100]
    columns = oihw(pooled(blocks.columns, weights))[0].ravel()
    assert columns.tolist() == [10, 12, 14, 16, 18, 20, 22, 24]
    masks = allocate.uniform({"w": kernels.ravel()}, Budget(density=0.5))
    of_kernels = blocks.kernels(groups_of({"w": weights.shape}))
    mask = oihw(blocks.spread(of_kernels, masks)["w"])
    assert mask[1].all()
    assert not mask[0].any()


@ALL
@pytest.mark.parametrize("density", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("allocator", [allocate.uniform, allocate.global_topk])
def test_masks_are_constant_on_grains_and_counts_are_exact(name, density, allocator):
    """[3] P2, on the shape (4, 3, 2, 5) of OIHW."""
    shape = (2, 5, 3, 4)
    made = PATTERNS[name](groups_of({"w": shape}))
    scores = {"w": jax.random.uniform(jax.random.key(0), shape)}
    grains = blocks.pool(made, scores)
    masks = allocator(grains, Budget(density=density))
    size = made["w"].size
    assert int((~masks["w"]).sum()) == min(round((1 - density) * size), size - 1)
    mask = blocks.spread(made, masks)["w"]
    sizes = blocks.pool(made, {"w": np.ones(shape)})["w"]
    assert mask.shape == shape
    assert sizes.sum() == mask.size
    counts = blocks.pool(made, {"w": mask.astype(float)})["w"]
    np.testing.assert_array_equal(counts, np.where(masks["w"], sizes, 0))


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        ((3, 5, 4, 7), (2, 1, 3, 4)),
        ((2, 3, 6, 8), (2, 3, 2, 8)),
        ((5, 4), (9, 9, 2, 3)),
        ((3, 2, 4), (9, 2, 5, 1)),
    ],
)
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_blocks_against_a_loop(shape, lengths, kind):
    scores = np.random.default_rng(0).random(shape)
    h, w, inputs, outputs = lengths
    pattern = lambda groups: blocks.block(groups, h=h, w=w, inputs=inputs, outputs=outputs)
    expected = scores
    for axis, n in enumerate(lengths[-len(shape) :]):
        expected = np.add.reduceat(expected, np.arange(0, shape[axis], n), axis=axis)
    np.testing.assert_allclose(pooled(pattern, kind(scores)), expected, rtol=1e-5)
    sizes = pooled(pattern, np.ones(shape))
    mean = pooled(pattern, kind(scores), how="mean")
    np.testing.assert_allclose(mean, expected / sizes, rtol=1e-5)


@ALL
def test_traced_numbers_are_those_at_hand(name):
    scores = np.random.default_rng(1).random((2, 5, 3, 4)).astype(np.float32)
    made = PATTERNS[name](groups_of({"w": scores.shape}))
    traced = jax.jit(lambda w: blocks.pool(made, {"w": w}))(scores)
    np.testing.assert_allclose(traced["w"], blocks.pool(made, {"w": scores})["w"], rtol=1e-5)
    factors = np.linspace(-1, 2, made["w"].size)
    scaled = jax.jit(lambda w, f: blocks.scale(made, {"w": w}, {"w": f}))(scores, factors)
    at_hand = blocks.scale(made, {"w": scores}, {"w": factors})
    np.testing.assert_allclose(scaled["w"], at_hand["w"], rtol=1e-5)


@ALL
def test_the_order_of_axes_makes_no_difference(name):
    """HWIO, OIHW, and weights transposed before they are used: the same groups."""
    scores = np.random.default_rng(2).random((2, 5, 3, 4))
    first = PATTERNS[name](groups_of({"w": scores.shape}))
    turned = np.transpose(scores, (3, 2, 0, 1))
    second = PATTERNS[name](groups_of({"w": turned.shape}, {"w": "OIHW"}))
    sums = blocks.pool(first, {"w": scores})["w"], blocks.pool(second, {"w": turned})["w"]
    np.testing.assert_allclose(np.sort(sums[0]), np.sort(sums[1]))
    best = [{"w": each > np.median(each)} for each in sums]
    masks = blocks.spread(first, best[0])["w"], blocks.spread(second, best[1])["w"]
    np.testing.assert_array_equal(np.transpose(masks[0], (3, 2, 0, 1)), masks[1])


def test_an_einsum_has_columns_too():
    """A head's dimension is an output: three inputs are three kernels' columns over 2 x 5."""
    fn = lambda v, x: jnp.einsum("bc,hdc->bhd", x, v["w"])
    weights = {"w": jnp.arange(30.0).reshape(2, 5, 3)}
    groups = jprune.trace(fn, weights, jnp.ones((1, 3)))
    sums = blocks.pool(blocks.block(groups, outputs=9), weights)["w"]
    np.testing.assert_allclose(sums, np.arange(30.0).reshape(10, 3).sum(0))
    assert not blocks.columns(groups)  # a layer as papers mean it has one axis of outputs


def test_trees_leave_out_what_has_no_grains():
    shapes = {"conv": (3, 3, 2, 4), "bias": (4,), "dense": (4, 5)}
    groups = groups_of(shapes)
    tree = {name: jnp.ones(shape) for name, shape in shapes.items()}
    kernels = blocks.kernels(groups)
    scores = blocks.pool(kernels, tree)
    assert {name: score.shape for name, score in scores.items()} == {"conv": (8,), "dense": (20,)}
    masks = blocks.spread(kernels, allocate.global_topk(scores, Budget(density=0.5)))
    assert masks["bias"] is None
    assert jprune.hold(masks).init(tree).masks["conv"].shape == (3, 3, 2, 4)


def test_2_of_4():
    """B9: the groups run along the inputs, here of one output."""
    weights = jnp.array([0.1, -0.4, 0.3, 0.2, -1, 0.05, 0.06, 2])[:, None]
    mask = blocks.n_of_m(groups_of({"w": (8, 1)}), {"w": jnp.abs(weights)}, 2, 4)["w"][:, 0]
    assert mask.tolist() == [False, True, True, False, True, False, False, True]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 4), (3, 8)]), st.integers(0, 1000))
def test_n_of_m_keeps_exactly_n_of_every_m_inputs(pattern, seed):
    n, m = pattern
    scores = np.random.default_rng(seed).integers(0, 3, (2, 3, 8, 5)).astype(np.float32)
    mask = np.asarray(blocks.n_of_m(GROUPS_OF_8, {"w": scores}, n, m)["w"])
    grouped = mask.reshape(2, 3, 8 // m, m, 5)
    assert (grouped.sum(axis=3) == n).all()
    order = np.argsort(-scores.reshape(grouped.shape), axis=3, kind="stable")
    assert np.take_along_axis(grouped, order, axis=3)[..., :n, :].all()
    turned = {"w": np.transpose(scores, (3, 2, 0, 1))}
    other = blocks.n_of_m(TURNED_GROUPS_OF_8, turned, n, m)["w"]
    np.testing.assert_array_equal(np.transpose(other, (2, 3, 1, 0)), mask)


GROUPS_OF_8 = groups_of({"w": (2, 3, 8, 5)})
TURNED_GROUPS_OF_8 = groups_of({"w": (5, 8, 2, 3)}, {"w": "OIHW"})


def test_n_of_m_leaves_dense_what_does_not_divide():
    shapes = {"stem": (3, 3, 3, 8), "bias": (8,)}
    scores = {name: jnp.ones(shape) for name, shape in shapes.items()}
    assert blocks.n_of_m(groups_of(shapes), scores, 2, 4) == {"stem": None, "bias": None}


def test_errors_say_what_to_write():
    ones = {"w": jnp.ones((3, 3, 2, 4))}
    groups = groups_of({"w": (3, 3, 2, 4)})
    with pytest.raises(errors.ArgumentError, match="at least 1"):
        blocks.block(groups, inputs=0)
    with pytest.raises(errors.ArgumentError, match='"sum" or "mean"'):
        blocks.pool(blocks.kernels(groups), ones, how="max")
    with pytest.raises(errors.ArgumentError, match=r"Write n_of_m\(groups, scores, 2, 4\)"):
        blocks.n_of_m(groups, ones, 5, 4)
    with pytest.raises(errors.StructureError, match=r"\(2, 4\) for 'w'; .* kernels are \[8\]"):
        blocks.spread(blocks.kernels(groups), {"w": np.ones((2, 4), bool)})
    with pytest.raises(errors.StructureError, match=r"'v' is no kernel with columns; .* are w"):
        blocks.columns(groups, ["v"])
    with pytest.raises(errors.StructureError, match="those of a leaf with 4 axes"):
        blocks.pool(blocks.kernels(groups), {"w": jnp.ones((2, 4))})

"""Grains of a kernel: numbers of methods/checks.md [3] and B9, and exact counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import allocate, errors
from jprune.base import Budget
from jprune.blocks import grains as granularity
from tests.graph.test_open import NORMS, net_with
from tests.law import quick, relative_error
from tests.nets import FIRST_CUT, draw
from tests.patterns.attention import ATTENTION

GRAINS = {
    "weight": granularity.weight,
    "vector": granularity.vector,
    "kernel": granularity.kernel,
    "filter": granularity.filter,
    "column": granularity.column,
    "block": granularity.block(h=2, inputs=3, outputs=2),
}
ALL = pytest.mark.parametrize("name", GRAINS)


def hwio(oihw):
    return jnp.transpose(jnp.asarray(oihw), (2, 3, 1, 0))


def oihw(grains):
    return np.transpose(np.asarray(grains), (3, 2, 0, 1))


def test_saliences_of_grains():
    """[3] P1; the papers' kernels are OIHW."""
    weights = hwio(np.arange(1.0, 17).reshape(2, 2, 2, 2))
    vectors = oihw(granularity.pool(weights, granularity.vector))
    assert vectors[..., 0].tolist() == [[[3, 7], [11, 15]], [[19, 23], [27, 31]]]
    kernels = granularity.pool(weights, granularity.kernel)
    assert oihw(kernels)[..., 0, 0].tolist() == [[10, 26], [42, 58]]
    assert granularity.pool(weights, granularity.filter).ravel().tolist() == [36, 100]
    columns = oihw(granularity.pool(weights, granularity.column))[0].ravel()
    assert columns.tolist() == [10, 12, 14, 16, 18, 20, 22, 24]
    masks = allocate.uniform({"w": kernels}, Budget(density=0.5))
    mask = oihw(granularity.spread(masks["w"], granularity.kernel, weights))
    assert mask[1].all()
    assert not mask[0].any()


@ALL
@pytest.mark.parametrize("density", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("allocator", [allocate.uniform, allocate.global_topk])
def test_masks_are_constant_on_grains_and_counts_are_exact(name, density, allocator):
    """[3] P2, on the shape (4, 3, 2, 5) of OIHW."""
    shape, grain = (2, 5, 3, 4), GRAINS[name]
    scores = jax.random.uniform(jax.random.key(0), shape)
    grains = granularity.pool(scores, grain)
    masks = allocator({"w": grains}, Budget(density=density))["w"]
    assert int((~masks).sum()) == min(round((1 - density) * grains.size), grains.size - 1)
    mask = granularity.spread(masks, grain, scores)
    sizes = granularity.pool(jnp.ones(shape), grain)
    assert mask.shape == shape
    assert sizes.sum() == mask.size
    kept = granularity.pool(mask.astype(float), grain)
    np.testing.assert_array_equal(kept, np.where(masks, sizes, 0))


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        ((3, 5, 4, 7), (2, 1, 3, 4)),
        ((2, 3, 6, 8), (2, 3, 2, 8)),
        ((5, 4), (9, 9, 2, 3)),
        ((3, 2, 4), (9, 2, 5, 1)),
    ],
)
def test_blocks_against_a_loop(shape, lengths):
    scores = np.random.default_rng(0).random(shape)
    grain = granularity.block(*lengths)
    expected = scores
    for axis, n in enumerate(lengths[-len(shape) :]):
        expected = np.add.reduceat(expected, np.arange(0, shape[axis], n), axis=axis)
    np.testing.assert_allclose(granularity.pool(scores, grain), expected, rtol=1e-5)
    sizes = granularity.pool(np.ones(shape), grain)
    mean = granularity.pool(scores, grain, how="mean")
    np.testing.assert_allclose(mean, expected / sizes, rtol=1e-5)


def test_trees_leave_out_what_has_no_grains():
    tree = {"conv": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4), "dense": jnp.ones((4, 5))}
    pooled = granularity.pool(tree, granularity.kernel)
    assert pooled["bias"] is None
    assert pooled["conv"].shape == (1, 1, 2, 4)
    assert pooled["dense"].shape == (4, 5)
    masks = granularity.spread(
        allocate.global_topk(pooled, Budget(density=0.5)), granularity.kernel, tree
    )
    assert masks["bias"] is None
    assert jprune.hold(masks).init(tree).masks["conv"].shape == (3, 3, 2, 4)


def test_2_of_4():
    """B9: the groups run along the inputs, here of one output."""
    weights = jnp.array([0.1, -0.4, 0.3, 0.2, -1, 0.05, 0.06, 2])[:, None]
    mask = granularity.n_of_m(jnp.abs(weights), 2, 4)[:, 0]
    assert mask.tolist() == [False, True, True, False, True, False, False, True]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 4), (3, 8)]), st.integers(0, 1000))
def test_n_of_m_keeps_exactly_n_of_every_m_inputs(pattern, seed):
    n, m = pattern
    scores = np.random.default_rng(seed).integers(0, 3, (2, 3, 8, 5)).astype(np.float32)
    mask = np.asarray(granularity.n_of_m(scores, n, m))
    grouped = mask.reshape(2, 3, 8 // m, m, 5)
    assert (grouped.sum(axis=3) == n).all()
    order = np.argsort(-scores.reshape(grouped.shape), axis=3, kind="stable")
    assert np.take_along_axis(grouped, order, axis=3)[..., :n, :].all()


def test_n_of_m_leaves_dense_what_does_not_divide():
    masks = granularity.n_of_m({"stem": jnp.ones((3, 3, 3, 8)), "bias": jnp.ones(8)}, 2, 4)
    assert masks == {"stem": None, "bias": None}


def everything(variables):
    """Weight masks that keep all."""
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), variables)


def lifted_error(net, masks, open=()):
    """Units of a pattern, and how far slim is from the masked net, in float64."""
    variables, inputs = draw(net, dtype=jnp.float64)
    groups = jprune.trace(net.fn, variables, *inputs, open=open)
    units = granularity.lift(groups, masks)
    return units, error_of_removal(net, groups, units, masks, variables, inputs)


def error_of_removal(net, groups, units, masks, variables, inputs):
    """How far the net without some units is from the masked one."""
    small_fn = jprune.slim(net.fn, groups, units)

    def both(variables, *inputs):
        masked = jprune.apply_masks(variables, masks)
        small = jprune.slim_params(groups, units, masked)
        return net.fn(masked, *inputs), small_fn(small, *inputs)

    return relative_error(*quick(both, variables, *inputs))


def gone(units):
    """{group: units that went}."""
    return {name: np.flatnonzero(~mask).tolist() for name, mask in units.items() if not mask.all()}


def test_a_pattern_that_leaves_a_unit_no_reader_lifts_to_the_unit(float64):
    net = FIRST_CUT[1]
    masks = everything(draw(net)[0])
    masks["conv2"][:, :, 1] = masks["conv2"][0, 0, 2] = False
    units, error = lifted_error(net, masks)
    assert gone(units) == {"conv1": [1]}
    assert error < 1e-12


def test_a_unit_that_several_layers_read_stays_until_none_does(float64):
    net = FIRST_CUT[2]  # the stream is read by conv1a, conv1b and the head
    masks = everything(draw(net)[0])
    masks["conv1a"][:, :, 3] = masks["conv1b"][:, :, 3] = False
    assert gone(lifted_error(net, masks)[0]) == {}
    masks["head"]["kernel"][3] = False
    units, error = lifted_error(net, masks)
    assert gone(units) == {"stem": [3]}
    assert error < 1e-12


@pytest.mark.parametrize("shift", [True, False], ids=["filter", "filter and norm"])
def test_an_empty_filter_is_no_reason_to_go(shift, float64):
    """Its shift speaks; without one, sigmoid(0) does. Removing it would change the net."""
    net = FIRST_CUT[2]  # conv1a, norm1a, sigmoid, conv2a
    variables, inputs = draw(net, dtype=jnp.float64)
    masks = everything(variables)
    masks["conv1a"][..., 2] = False
    for name in ("mean", "var", "scale", "shift"):
        masks["norm1a"][name][2] = shift
    groups = jprune.trace(net.fn, variables, *inputs)
    assert gone(granularity.lift(groups, masks)) == {}
    removed = {"conv1a": np.arange(5) != 2}
    assert error_of_removal(net, groups, removed, masks, variables, inputs) > 1e-3
    masks["conv2a"][:, :, 2] = False
    units, error = lifted_error(net, masks)
    assert gone(units) == {"conv1a": [2]}
    assert error < 1e-12


def test_what_only_a_dead_unit_was_reading_goes_too(float64):
    net = FIRST_CUT[1]  # conv1, conv2, conv3
    masks = everything(draw(net)[0])
    masks["conv3"][:, :, [0, 4]] = False  # units 0 and 4 of conv2 have no reader
    masks["conv2"][:, :, 3, [1, 2, 3, 5, 6]] = False  # and they alone read unit 3 of conv1
    units, error = lifted_error(net, masks)
    assert gone(units) == {"conv1": [3], "conv2": [0, 4]}
    assert error < 1e-12


def test_heads_and_head_dimensions_lift_apart(float64):
    """A head that the projection does not read; a dimension of q and k without producers."""
    net = next(net for net in ATTENTION if net.name == "multi_head")
    masks = everything(draw(net)[0])
    masks["project"][1] = False
    for name in "qk":
        masks[name][..., 2] = masks[name + "_bias"][:, 2] = False
    masks["q"][..., 3] = masks["q_bias"][:, 3] = False  # k still has it: its place is not empty
    units, error = lifted_error(net, masks)
    assert gone(units) == {"q": [1], "q@2": [2]}
    assert error < 1e-12


def test_an_opened_group_stays_whole(float64):
    """A layer norm counts a channel that nobody reads."""
    net = net_with(NORMS["layer"])
    masks = everything(draw(net)[0])
    masks["b"][:, :, 2] = False
    units, error = lifted_error(net, masks, open=("a",))
    assert gone(units) == {}
    assert error < 1e-12


def test_a_layer_keeps_a_unit(float64):
    net = FIRST_CUT[1]
    masks = everything(draw(net)[0])
    masks["conv2"][...] = False
    units, error = lifted_error(net, masks)
    assert gone(units) == {"conv1": [1, 2, 3, 4]}
    assert error < 1e-12


@pytest.mark.parametrize(
    ("number", "varying", "density"),
    [(0, "in out", 0.1), (1, "h in out", 0.05), (3, "h w in", 0.2)],
    ids=["kernel", "vector", "column"],
)
def test_any_pattern_lifts_exactly(number, varying, density, float64):
    rng = np.random.default_rng(number)

    def pattern(leaf):
        names = granularity.AXES[-leaf.ndim :]
        shape = [n if name in varying.split() else 1 for n, name in zip(leaf.shape, names)]
        return (rng.random(shape) < density) & np.ones(leaf.shape, bool)

    variables = draw(FIRST_CUT[number])[0]
    masks = jax.tree.map(lambda leaf: pattern(leaf) if leaf.ndim > 1 else None, variables)
    units, error = lifted_error(FIRST_CUT[number], masks)
    assert gone(units)
    assert error < 1e-12


def test_errors_say_what_to_write():
    ones = jnp.ones((3, 3, 2, 4))
    with pytest.raises(errors.ArgumentError, match="at least 1"):
        granularity.block(inputs=0)
    with pytest.raises(errors.ArgumentError, match='"sum" or "mean"'):
        granularity.pool(ones, granularity.kernel, how="max")
    with pytest.raises(errors.ArgumentError, match=r"write n_of_m\(scores, 2, 4\)|Write n_of_m"):
        granularity.n_of_m(ones, 5, 4)
    with pytest.raises(errors.ArgumentError, match="2 to 5 axes"):
        granularity.pool(jnp.ones((1,) * 6), granularity.kernel)
    with pytest.raises(errors.StructureError, match=r"\(1, 1, 2, 4\) grains"):
        granularity.spread(np.ones((2, 4), bool), granularity.kernel, ones)

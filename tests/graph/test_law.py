"""The law: a net whose units are masked equals the slim net, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from tests.law import check_law, random_masks, relative_error
from tests.nets import FIRST_CUT, Net, draw


@pytest.mark.parametrize("net", FIRST_CUT, ids=lambda net: net.name)
def test_units_are_those_derived_by_hand(net: Net):
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    assert groups.sizes == net.groups


@pytest.mark.parametrize("net", FIRST_CUT, ids=lambda net: net.name)
def test_masked_equals_slim(net: Net):
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    masks = random_masks(groups)
    assert any(not mask.all() for mask in masks.values())
    check_law(net.fn, variables, inputs, masks, groups, 1e-5)


@pytest.mark.parametrize("net", FIRST_CUT, ids=lambda net: net.name)
def test_masked_equals_slim_in_double_precision(net: Net, float64):
    variables, inputs = draw(net, dtype=jnp.float64)
    groups = jprune.trace(net.fn, variables, *inputs)
    check_law(net.fn, variables, inputs, random_masks(groups, 1), groups, 1e-10)


def test_two_units_exchanged_break_the_law():
    net = FIRST_CUT[1]
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    masks = {"conv2": np.arange(7) < 4}
    small = jprune.slim_params(groups, masks, variables)
    right = jprune.slim(net.fn, groups, masks)(small, *inputs)
    exchanged = small["conv2"][..., np.array([1, 0, 2, 3])]
    wrong = jprune.slim(net.fn, groups, masks)({**small, "conv2": exchanged}, *inputs)
    assert relative_error(right, wrong) > 1e-3


def test_slim_follows_a_new_batch_size_and_composes_with_vmap():
    net = FIRST_CUT[0]
    variables, (x,) = draw(net)
    groups = jprune.trace(net.fn, variables, x)
    masks = random_masks(groups)
    small_fn, small = (
        jprune.slim(net.fn, groups, masks),
        jprune.slim_params(groups, masks, variables),
    )
    whole = small_fn(small, x)
    assert relative_error(whole[:2], small_fn(small, x[:2])) < 1e-6
    stacked = jax.vmap(small_fn, (None, 0))(small, x.reshape(3, 2, *x.shape[1:]))
    assert relative_error(whole, stacked.reshape(whole.shape)) < 1e-6


def test_optimizer_state_and_gradient_slim_along():
    import optax

    net = FIRST_CUT[2]
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    masks = random_masks(groups)
    for tx in (optax.sgd(0.1, 0.9), optax.adam(1e-3), optax.adamw(1e-3), optax.lion(1e-3)):
        state = tx.init(variables)
        loss = lambda v: (net.fn(v, *inputs) ** 2).sum()
        gradient = jax.grad(loss)(variables)
        _, state = tx.update(gradient, state, variables)
        cut = lambda tree: jprune.slim_params(groups, masks, tree)
        whole, _ = tx.update(gradient, state, variables)
        small, _ = tx.update(cut(gradient), cut(state), cut(variables))
        assert relative_error(cut(whole), small) <= 1e-6


def test_custom_derivatives_keep_their_rule():
    @jax.custom_vjp
    def sign(x):
        return jnp.sign(x)

    sign.defvjp(lambda x: (sign(x), None), lambda _, g: (g,))

    def fn(v, x):
        return jax.nn.relu(sign(x @ v["a"]) * v["scale"] - v["shift"]) @ v["b"]

    rng = np.random.default_rng(0)
    variables = {
        "a": jnp.asarray(rng.normal(size=(3, 6)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(6, 2)), jnp.float32),
        # sign(x) - 1 is exactly 0 where the sign is 1: relu at 0 has derivative 0 by its own rule.
        "scale": jnp.ones(6),
        "shift": jnp.array([1.0, -0.5, 1.0, -0.5, 1.0, -1.5]),
    }
    x = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    groups = jprune.trace(fn, variables, x)
    assert groups.sizes == {"a": 6}
    masks = {"a": np.array([True, False, True, True, False, True])}
    check_law(fn, variables, (x,), masks, groups, 1e-6)
    gradient = jax.grad(lambda v: fn(v, x).sum())(variables)["a"]
    assert float(jnp.abs(gradient[:, 0]).max()) == 0.0
    assert float(jnp.abs(gradient[:, 5]).max()) > 0.0


def test_an_unknown_primitive_freezes_and_says_so():
    def fn(v, x):
        h = jax.lax.approx_max_k(x @ v["a"], 5)[0]
        return jax.nn.relu(h @ v["b"]) @ v["c"]

    variables = {"a": jnp.ones((3, 7)), "b": jnp.ones((5, 6)), "c": jnp.ones((6, 2))}
    x = jnp.ones((1, 3))
    groups = jprune.trace(fn, variables, x)
    assert groups.sizes == {"b": 6}
    entry = next(f for f in groups.frozen if f.leaf == "a" and f.axis == 1)
    assert "approx_top_k" in entry.reason
    assert "test_law.py" in entry.source
    with pytest.raises(jprune.errors.TraceError, match="approx_top_k"):
        jprune.trace(fn, variables, x, strict=True)


def test_an_argument_with_channels_must_move_into_the_variables():
    def fn(v, mean, x):
        return jax.nn.relu(x @ v["a"] - mean) @ v["b"]

    variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
    with pytest.raises(jprune.errors.TraceError, match="first argument"):
        jprune.trace(fn, variables, jnp.ones(5), jnp.ones((1, 3)))


def test_masks_of_another_net_are_refused():
    net = FIRST_CUT[1]
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    for masks, sentence in (
        ({"other": np.ones(3, bool)}, "another net"),
        ({"conv1": np.ones(4, bool)}, "has 5 units"),
        ({"conv1": np.ones(5)}, "unit masks are bool"),
        ({"conv1": np.zeros(5, bool)}, "Keep at least one"),
    ):
        with pytest.raises(jprune.errors.StructureError, match=sentence):
            jprune.slim(net.fn, groups, masks)
    masks = {"conv1": np.arange(5) < 3}
    with pytest.raises(jprune.errors.StructureError, match="with the same masks"):
        jprune.slim(net.fn, groups, masks)(variables, *inputs)


def test_freeze_keeps_a_group_whole_and_refuses_unknown_names():
    net = FIRST_CUT[1]
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs, freeze=("conv2",))
    assert groups.sizes == {"conv1": 5, "conv3": 6}
    assert any(f.reason == "frozen by the caller" for f in groups.frozen)
    with pytest.raises(jprune.errors.ArgumentError, match="neither a group nor a leaf"):
        jprune.trace(net.fn, variables, *inputs, freeze=("conv9",))


def test_slim_of_slim_is_slim_of_the_intersection():
    net = FIRST_CUT[2]
    variables, inputs = draw(net)
    groups = jprune.trace(net.fn, variables, *inputs)
    first = {"stem": np.array([1, 1, 1, 0, 1, 1, 0, 1], bool), "conv1b": np.arange(6) != 2}
    small_fn, small = (
        jprune.slim(net.fn, groups, first),
        jprune.slim_params(groups, first, variables),
    )
    again = jprune.trace(small_fn, small, *inputs)
    assert again.sizes == {"stem": 6, "conv1a": 5, "conv1b": 5}
    second = {"stem": np.array([1, 0, 1, 1, 1, 1], bool), "conv1b": np.arange(5) > 0}
    twice = jprune.slim(small_fn, again, second)
    tiny = jprune.slim_params(again, second, small)
    both = {
        "stem": np.array([1, 0, 1, 0, 1, 1, 0, 1], bool),
        "conv1b": np.array([0, 1, 0, 1, 1, 1], bool),
    }
    direct = jprune.slim_params(groups, both, variables)
    assert jax.tree.map(jnp.shape, tiny) == jax.tree.map(jnp.shape, direct)
    once = jprune.slim(net.fn, groups, both)(direct, *inputs)
    assert relative_error(once, twice(tiny, *inputs)) < 1e-6


def test_cost_of_the_masked_net_is_that_of_the_slim_net():
    for net in FIRST_CUT:
        variables, inputs = draw(net)
        groups = jprune.trace(net.fn, variables, *inputs)
        masks = random_masks(groups)
        model = jprune.cost_model(net.fn, variables, *inputs, groups=groups)
        small_fn = jprune.slim(net.fn, groups, masks)
        small = jprune.slim_params(groups, masks, variables)
        slim_cost = jprune.cost(small_fn, small, *inputs)
        assert model(masks)[:3] == slim_cost[:3]
        weights = model(jprune.expand(groups, masks))
        assert float(weights.macs) == pytest.approx(float(slim_cost.macs), rel=1e-6)

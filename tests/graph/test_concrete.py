"""Cutting, masking and pooling arrays whose numbers are at hand: what jit gives, without XLA."""

import functools
import json
import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import jprune

TYPES = ("float32", "bfloat16", "float16", "int32", "bool")


def fn(variables, x):
    """Two layers; the second's bias is the output's, so it stays."""
    hidden = jax.nn.relu(x @ variables["first"] + variables["bias"])
    return hidden @ variables["second"]


def drawn(dtype="float32"):
    """Variables of one type, as NumPy arrays."""
    rng = np.random.default_rng(0)
    shapes = {"bias": (11,), "first": (3, 11), "second": (11, 5)}
    numbers = {name: 4 * rng.normal(size=shape) for name, shape in shapes.items()}
    return {name: value.astype(jnp.dtype(dtype)) for name, value in numbers.items()}


GROUPS = jprune.trace(fn, drawn(), np.zeros((1, 3), np.float32))
MASKS = {"first": np.arange(11) % 3 != 1}


def equal(one, other):
    """The same structure, types of arrays and numbers."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("dtype", TYPES)
def test_at_hand_and_traced_are_equal(dtype):
    variables = jax.tree.map(jnp.asarray, drawn(dtype))
    cut = lambda tree: jprune.slim_params(GROUPS, MASKS, tree)
    masked = lambda tree: jprune.apply_masks(tree, jprune.expand(GROUPS, MASKS))
    for function in (cut, masked):
        result = function(variables)
        equal(result, jax.jit(function)(variables))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(result))
        numbers = function(drawn(dtype))
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(numbers))
        equal(numbers, result)


@pytest.mark.parametrize("roles", [("kernel",), ("kernel", "shift", "in")])
@pytest.mark.parametrize("how", ["sum", "mean", "max", "min", "l2"])
def test_pools_at_hand_and_traced_are_equal(how, roles):
    scores = drawn()
    scores["first"][1, 2] = -np.inf
    scores["second"][4, 0] = np.inf
    pool = lambda tree: jprune.to_units(GROUPS, tree, roles, how, how)
    traced = jax.jit(pool)(scores)
    for kind, tree in ((jax.Array, jax.tree.map(jnp.asarray, scores)), (np.ndarray, scores)):
        units = pool(tree)["first"]
        assert isinstance(units, kind)
        assert units.dtype == np.float32
        np.testing.assert_allclose(units, traced["first"], rtol=1e-6)


def test_a_pool_of_half_precision_is_the_rounded_sum():
    scores = jax.tree.map(jnp.asarray, drawn("bfloat16"))
    units = jprune.to_units(GROUPS, scores)["first"]
    exact = np.asarray(scores["first"], np.float64).sum(0)
    np.testing.assert_array_equal(units, exact.astype(ml_dtypes.bfloat16))


def test_positions_without_a_unit_and_units_with_many_positions():
    """A concat of two layers and of one of them again: places with gaps and repeats."""

    def twice(variables, x):
        a, b = jax.nn.relu(x @ variables["a"]), jax.nn.relu(x @ variables["b"])
        return jnp.concatenate([a, b, a], axis=-1) @ variables["c"]

    rng = np.random.default_rng(1)
    shapes = {"a": (3, 4), "b": (3, 6), "c": (14, 2)}
    variables = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    groups = jprune.trace(twice, variables, np.zeros((1, 3), np.float32))
    for how in ("sum", "mean", "max", "l2"):
        pool = functools.partial(jprune.to_units, groups, roles=("in",), within=how)
        traced = jax.jit(pool)(variables)
        jax.tree.map(
            lambda u, t: np.testing.assert_allclose(u, t, rtol=1e-6), pool(variables), traced
        )
    rows = [0, 1, 2, 3], [10, 11, 12, 13]
    expected = sum(variables["c"][row].sum(1) for row in rows)
    np.testing.assert_allclose(
        jprune.to_units(groups, variables, ("in",))["a"], expected, rtol=1e-6
    )


@pytest.mark.parametrize("roles", [jprune.base.ROLES, ("in",)])
def test_expand_at_hand_and_traced_are_equal(roles):
    expand = lambda masks: jprune.expand(GROUPS, masks, roles)
    equal(expand(MASKS), jax.jit(expand)(MASKS))
    if roles == ("in",):
        gates = {"first": np.linspace(0, 1, 11, dtype=np.float32)}
        equal(expand(gates), jax.jit(expand)(gates))


def test_under_jit_a_mask_is_made_in_the_program():
    """Else the program would hold masks as big as the parameters."""
    masks = lambda: jprune.expand(GROUPS, MASKS)
    assert all(np.size(constant) <= 11 for constant in jax.make_jaxpr(masks)().consts)


def test_optimizer_states_with_counters_keys_and_none():
    params = jax.tree.map(jnp.asarray, drawn())
    state = (optax.adam(0.1).init(params), jax.random.key(3), None, {"bias": None, "step": 4})
    small = jprune.slim_params(GROUPS, MASKS, state)
    (adam, _), key, *rest = small
    assert adam.mu["first"].shape == (3, 7)
    assert adam.count.shape == ()
    assert key == jax.random.key(3)
    assert rest == [None, {"bias": None, "step": 4}]


def test_random_keys_along_a_unit_axis_are_cut():
    """Of a type that NumPy lacks."""
    keys = jax.random.split(jax.random.key(0), 11)
    tree = {"first": None, "keys": keys, "second": None}
    groups = GROUPS._replace(
        leaves={"first": GROUPS.leaves["first"], "keys": keys, "second": GROUPS.leaves["second"]},
    )
    places = [
        place._replace(leaf=place.leaf.replace("bias", "keys")) for place in GROUPS.places["first"]
    ]
    small = jprune.slim_params(groups._replace(places={"first": tuple(places)}), MASKS, tree)
    assert (small["keys"] == keys[MASKS["first"]]).all()


def test_what_is_kept_whole_is_the_same_array():
    variables = jax.tree.map(jnp.asarray, drawn())
    whole = jprune.slim_params(GROUPS, {}, variables)
    assert all(whole[name] is variables[name] for name in variables)


def test_the_device_stays():
    device = jax.devices()[0]
    for place, committed in ((device, True), (None, False)):
        variables = jax.device_put(drawn(), place)
        masked = jprune.apply_masks(variables, jprune.expand(GROUPS, MASKS))
        for tree in (jprune.slim_params(GROUPS, MASKS, variables), masked):
            assert all(leaf.committed is committed for leaf in jax.tree.leaves(tree))


def test_gradients_pass_through_masks():
    variables, masks = jax.tree.map(jnp.asarray, drawn()), jprune.expand(GROUPS, MASKS)
    total = lambda v, m: sum(leaf.sum() for leaf in jax.tree.leaves(jprune.apply_masks(v, m)))
    floats = jax.tree.map(lambda mask: mask.astype(np.float32), masks)
    to_weights, to_masks = jax.grad(total, argnums=(0, 1))(variables, floats)
    equal(to_weights, floats)
    equal(to_masks, variables)


def test_nothing_is_compiled(caplog):
    """A width that no other test has: nothing is compiled, or kept compiled, for its shapes."""
    shapes = {"bias": (37,), "first": (3, 37), "second": (37, 5)}
    variables = {name: jnp.asarray(np.ones(shape, np.float32)) for name, shape in shapes.items()}
    groups = jprune.trace(fn, variables, np.zeros((1, 3), np.float32))
    masks = {"first": np.arange(37) % 2 == 0}
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        (variables["bias"] * jnp.asarray(2.0)).block_until_ready()
        assert "Compiling" in caplog.text  # the log works
        caplog.clear()
        weights = jprune.expand(groups, masks)
        jprune.apply_masks(variables, weights)
        jprune.slim_params(groups, masks, variables)
        jprune.to_units(groups, variables)
    assert "Compiling" not in caplog.text


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import json, jax, jax.numpy as jnp, numpy as np, jprune
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tests.graph.test_concrete import GROUPS, drawn

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
whole = {"first": np.ones((8, 12), np.float32), "second": np.ones((12, 4), np.float32)}
fn = lambda v, x: jax.nn.relu(x @ v["first"]) @ v["second"]
groups = jprune.trace(fn, whole, jnp.ones((1, 8)))
specs = {"first": place("data", None), "second": place(None, "data")}
variables = {name: jax.device_put(whole[name], specs[name]) for name in whole}
masks = {"first": np.arange(12) % 4 != 1}
expanded = jax.device_put(jprune.expand(groups, masks), specs)
trees = {
    "small": jprune.slim_params(groups, masks, variables),
    "masked": jprune.apply_masks(variables, expanded),
}
values = jprune.to_units(groups, variables)["first"]
print(json.dumps({
    kind: {name: [str(leaf.sharding.spec), leaf.size, leaf.addressable_shards[0].data.size]
           for name, leaf in tree.items()} for kind, tree in trees.items()
} | {"units": np.asarray(values).tolist()}))
"""


def test_sharded_arrays_stay_sharded():
    run = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads(run.stdout)
    assert result.pop("units") == [8.0] * 12
    for tree in result.values():
        for spec, size, shard in tree.values():
            assert "data" in spec
            assert shard * 4 == size

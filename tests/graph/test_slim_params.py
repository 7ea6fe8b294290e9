"""Trees that `slim_params` takes: one of two collections, stacked states, accumulators, shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import errors

X = jax.random.normal(jax.random.key(9), (2, 3))


def weights(seed):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {"w": jax.random.normal(keys[0], (3, 8)), "out": jax.random.normal(keys[1], (8, 4))}


def forward(v, x):
    return jnp.tanh(x @ v["w"]) @ v["out"]


GROUPS = jprune.trace(forward, weights(0), X)
MASKS = {"w": np.arange(8) % 3 > 0}


def cut(tree):
    return jprune.slim_params(GROUPS, MASKS, tree)


def shapes(tree):
    return [np.shape(leaf) for leaf in jax.tree.leaves(tree)]


PLAYERS = {"actor": weights(1), "critic": weights(2)}


def played(actor, critic):
    """Cuts trees for two players that keep the first 5 of 8 units, or some of them all 8."""
    net = lambda v, x: forward(v["actor"], x) * forward(v["critic"], x)
    groups = jprune.trace(net, PLAYERS, X)
    masks = {"actor/w": np.arange(8) < actor, "critic/w": np.arange(8) < critic}
    return lambda tree: jprune.slim_params(groups, masks, tree)


def test_two_collections_with_equal_masks_are_cut_alike():
    state = optax.adam(0.1).init(PLAYERS["actor"])
    assert shapes(played(5, 5)(PLAYERS["actor"])) == [(5, 4), (3, 5)]
    assert shapes(played(5, 5)(state)) == [(), *[(5, 4), (3, 5)] * 2]


def test_of_two_collections_with_different_masks_one_must_be_named():
    slim, state = played(5, 6), optax.sgd(0.1, momentum=0.9).init(PLAYERS["critic"])
    for tree in (PLAYERS["critic"], state):
        with pytest.raises(
            errors.StructureError, match=r'actor/out or critic/out.*{"actor": tree}'
        ):
            slim(tree)
        assert shapes(slim({"critic": tree})["critic"]) == [(6, 4), (3, 6)]
        assert shapes(slim({"actor": tree})["actor"]) == [(5, 4), (3, 5)]


def test_a_collection_that_stands_deeper_is_no_silent_dense_tree():
    net = lambda v, x: forward(v["generator"]["params"], x)
    variables = {"generator": {"params": weights(0)}}
    groups = jprune.trace(net, variables, X)
    masks = {name: MASKS["w"] for name in groups.sizes}
    for tree in (weights(0), weights(0)["w"]):
        with pytest.raises(errors.StructureError, match="generator/params/out"):
            jprune.slim_params(groups, masks, tree)
    assert shapes(jprune.slim_params(groups, masks, {"params": weights(0)})) == [(5, 4), (3, 5)]
    counter = {"count": jnp.zeros(7)}
    assert jprune.slim_params(groups, masks, counter)["count"].shape == (7,)


def test_stacked_states_are_cut_as_each_of_them():
    memory = optax.scale_by_lbfgs(memory_size=7).init(weights(0))
    assert shapes(cut(memory.diff_params_memory)) == [(7, 5, 4), (7, 3, 5)]
    seeds = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(weights(seed) for seed in range(6)))
    small = cut(seeds)
    for seed in range(6):
        own = {name: leaf[seed] for name, leaf in small.items()}
        same = jax.tree.map(jnp.array_equal, cut(weights(seed)), own)
        assert all(jax.tree.leaves(same))
    grid = jax.tree.map(lambda a: a[None], seeds)
    assert shapes(cut(grid)) == [(1, 6, 5, 4), (1, 6, 3, 5)]
    with pytest.raises(errors.StructureError, match=r"w is of shape \(3, 8, 6\)"):
        cut({"w": jnp.ones((3, 8, 6))})


def test_accumulators_of_rows_and_columns_are_cut():
    small = optax.sm3(0.1).init(cut(weights(0)))
    assert shapes(cut(optax.sm3(0.1).init(weights(0)))) == shapes(small)
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=2)
    assert shapes(cut(factored.init(weights(0)))) == shapes(factored.init(cut(weights(0))))
    with pytest.raises(errors.StructureError, match=r"w/1 is of shape \(6,\)"):
        cut({"w": [jnp.ones(3), jnp.ones(6)]})


def test_an_accumulator_that_fits_two_axes_is_refused():
    square = {"w": jnp.ones((3, 8)), "middle": jnp.ones((8, 8)), "out": jnp.ones((8, 4))}
    net = lambda v, x: jnp.tanh(jnp.tanh(x @ v["w"]) @ v["middle"]) @ v["out"]
    groups = jprune.trace(net, square, X)
    masks = {"w": np.arange(8) < 5, "middle": np.arange(8) < 6}
    with pytest.raises(errors.StructureError, match="which axes of middle"):
        jprune.slim_params(groups, masks, {"middle": jnp.ones(8)})


def test_shapes_become_small_shapes():
    small = cut(jax.eval_shape(lambda: weights(0)))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in small.values())
    assert {name: leaf.shape for name, leaf in small.items()} == {"out": (5, 4), "w": (3, 5)}
    assert small["w"].dtype == jnp.float32

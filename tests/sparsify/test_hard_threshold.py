"""Iterative hard thresholding: exact counts, frozen zeros, supports that change."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import allocate, criteria, errors, schedules, sparsify
from jprune.masks import keep_best


def rule_of(counts):
    keep = lambda scores, budget, model: {
        name: keep_best(leaf, counts[name]) for name, leaf in scores.items()
    }
    return sparsify.masks_by(criteria.magnitude(), keep, schedules.one_shot(0.5))


def threshold(x, k):
    """H_k by the rule that the transformation uses."""
    mask = rule_of({"w": k})({"w": x}, 0)["w"]
    return np.where(mask, x, 0)


def test_the_largest_stay_and_ties_are_counted():
    """Checks [16] P1."""
    x = np.array([3.0, -1.0, 0.5, -4.0, 2.0])
    np.testing.assert_array_equal(threshold(x, 3), [3, 0, 0, -4, 2])
    np.testing.assert_array_equal(threshold(threshold(x, 3), 3), threshold(x, 3))
    assert np.count_nonzero(threshold(np.ones(4), 2)) == 2
    traced = jax.jit(lambda x: rule_of({"w": 2})({"w": x}, 0)["w"])(jnp.ones(4))
    assert int(traced.sum()) == 2


def test_it_is_the_nearest_of_all_sparse_points():
    """Checks [16] P1: against all supports of 200 vectors."""
    rng = np.random.default_rng(0)
    for x in rng.normal(size=(200, 6)):
        for k in range(1, 7):
            best = min(
                np.linalg.norm(np.delete(x, list(support)))
                for support in itertools.combinations(range(6), k)
            )
            assert np.linalg.norm(x - threshold(x, k)) == pytest.approx(best, abs=1e-12)


INNER = {
    "sgd": optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9)),
    "adamw": optax.adamw(0.3, weight_decay=0.1),
    "nesterov": optax.sgd(0.1, 0.9, nesterov=True),
}


@pytest.mark.parametrize("inner", INNER)
def test_frozen_weights_are_exactly_0_whatever_momentum_and_decay_do(inner):
    """Checks [16] P2: a sparse phase that begins with momentum of a dense one."""
    rng = np.random.default_rng(1)
    params = {"w": jnp.asarray(rng.normal(size=10), jnp.float32), "b": jnp.ones(3)}
    rule = rule_of({"w": 4, "b": 3})
    tx = sparsify.hard_threshold(INNER[inner], rule, sparse_steps=20, dense_steps=5, steps=45)
    state, step = tx.init(params), jax.jit(tx.update)
    supports = []
    for number in range(45):
        slope = {"w": jnp.asarray(rng.normal(size=10), jnp.float32), "b": jnp.ones(3)}
        before, params_before = np.asarray(state.masks["w"]), params
        updates, state = step(slope, state, params)
        params = optax.apply_updates(params, updates)
        is_dense = 20 <= number < 25
        assert before.all() == is_dense
        if not is_dense:
            assert (np.asarray(params["w"])[~before] == 0.0).all()
            assert (np.asarray(params["w"]) != np.asarray(params_before["w"]))[before].all()
            supports.append(before)
        if number == 19:  # what is 0 begins the dense phase without a moment
            zero = np.asarray(params["w"]) == 0
            assert zero.sum() == 6
            for leaf in jax.tree.leaves(state.inner):
                assert leaf.shape != (10,) or not np.asarray(leaf)[zero].any()
    assert np.count_nonzero(params["w"]) == 4
    assert (supports[0] != supports[-1]).any()
    assert np.asarray(params["b"]).all()


def test_every_layer_keeps_its_own_number():
    """Checks [16] P3: a threshold over both layers would empty the first."""
    rng = np.random.default_rng(2)
    params = {"a": jnp.asarray(rng.normal(size=10)), "b": jnp.asarray(1000 * rng.normal(size=10))}
    rule = sparsify.masks_by(criteria.magnitude(), allocate.uniform, schedules.one_shot(0.4))
    tx = sparsify.hard_threshold(optax.sgd(0.01), rule, sparse_steps=3, dense_steps=1, steps=11)
    state = tx.init(params)
    for _ in range(11):
        slope = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
        updates, state = jax.jit(tx.update)(slope, state, params)
        params = optax.apply_updates(params, updates)
    for name in params:
        np.testing.assert_array_equal(params[name] != 0, state.masks[name])
        assert int(state.masks[name].sum()) == 4


@pytest.mark.parametrize(("dense", "support", "loss"), [(1, 2, 1.6125), (400, 0, 21.505)])
def test_a_short_dense_phase_finds_the_support_and_a_long_one_never_does(dense, support, loss):
    """The largest weight of the dense minimum is not the one that does best alone."""
    hessian = jnp.array([[1, 0, 0], [0, 10, 9.5], [0, 9.5, 10]])
    minimum = jnp.array([1.5, 1.0, 1.1])
    steps = 4 * (60 + dense) + 60
    tx = sparsify.hard_threshold(
        optax.sgd(0.09), rule_of({"w": 1}), sparse_steps=60, dense_steps=dense, steps=steps
    )

    def step(carry, _):
        state, params = carry
        updates, state = tx.update({"w": hessian @ (params["w"] - minimum)}, state, params)
        return (state, optax.apply_updates(params, updates)), None

    params = {"w": minimum}
    assert np.flatnonzero(tx.init(params).masks["w"]).tolist() == [0]
    (_, params), _ = jax.lax.scan(step, (tx.init(params), params), length=steps)
    apart = params["w"] - minimum
    assert np.flatnonzero(params["w"]).tolist() == [support]
    assert float(apart @ hessian @ apart / 2) == pytest.approx(loss, abs=1e-2)


def test_how_a_training_is_divided():
    phases = lambda *given: "".join(
        "sd"[not sparsify.is_sparse(n, *given)] for n in range(given[2])
    )
    assert phases(4, 1, 14) == "ssssdssssdssss"
    assert phases(4, 1, 13) == "ssssdssssssss"
    assert phases(4, 1, 3) == "sss"
    assert phases(1, 1, 4) == "sdss"
    with pytest.raises(errors.ArgumentError, match="each is 1 or more"):
        sparsify.hard_threshold(
            optax.sgd(0.1), rule_of({"w": 1}), sparse_steps=0, dense_steps=1, steps=2
        )

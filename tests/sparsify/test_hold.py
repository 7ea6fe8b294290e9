"""Held masks: exactly zero after every step, and free to change without a recompilation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import allocate, criteria, errors, schedules
from jprune.base import Criterion
from tests.nets import FIRST_CUT, draw

OPTIMIZERS = {
    "momentum": optax.sgd(0.05, momentum=0.9),
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05, weight_decay=0.1),
}


def quadratic(seed=0):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(6, 6))
    matrix = jnp.asarray(matrix @ matrix.T / 6, jnp.float32)
    target = jnp.asarray(rng.normal(size=6), jnp.float32)
    return lambda params: 0.5 * (params["w"] - target) @ matrix @ (params["w"] - target)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_held_weights_are_exactly_zero_and_the_others_follow_a_hand_written_loop(name):
    """[0] P2, 20 steps: an update computed at weights whose masked entries are zero."""
    loss, inner = quadratic(), OPTIMIZERS[name]
    mask = jnp.array([True, False, True, True, False, True])
    tx = optax.chain(inner, jprune.hold({"w": mask}))
    params = {"w": jnp.asarray(np.random.default_rng(1).normal(size=6), jnp.float32)}
    state = tx.init(params)
    by_hand, hand_state = params["w"], inner.init({"w": params["w"]})
    for _ in range(20):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        hand_updates, hand_state = inner.update(
            {"w": jax.grad(loss)({"w": by_hand})["w"]}, hand_state, {"w": by_hand}
        )
        by_hand = jnp.where(mask, by_hand + hand_updates["w"], 0.0)
        assert (params["w"][~mask] == 0.0).all()
        np.testing.assert_array_equal(params["w"], by_hand)


def test_bfloat16_parameters_are_exactly_zero_too():
    params = {"w": jnp.linspace(-1, 1, 7, dtype=jnp.bfloat16), "b": jnp.ones(2)}
    tx = optax.chain(optax.adam(0.1), jprune.hold({"w": jnp.arange(7) % 2 == 0, "b": None}))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    after = optax.apply_updates(params, updates)
    assert (after["w"][1::2] == 0).all()
    assert (after["b"] != params["b"]).all()


def test_a_new_mask_does_not_recompile():
    params = {"w": jnp.ones(4)}
    tx = optax.chain(optax.sgd(0.1), jprune.hold({"w": jnp.ones(4, bool)}))
    step = jax.jit(lambda state, params: tx.update(params, state, params))
    state = tx.init(params)
    step(state, params)
    new = {"w": jnp.array([True, False, True, False])}
    updates, state = step(jprune.with_masks(state, new), params)
    assert step._cache_size() == 1
    assert (updates["w"][1::2] == -1).all()
    assert jprune.masks_of(state)["w"].tolist() == new["w"].tolist()


def test_errors_say_what_to_write():
    params = {"w": jnp.ones(4)}
    with pytest.raises(errors.StructureError, match=r"shape \(3,\)"):
        jprune.hold({"w": jnp.ones(3, bool)}).init(params)
    with pytest.raises(errors.StructureError, match="masks are bool"):
        jprune.hold({"w": jnp.ones(4)}).init(params)
    with pytest.raises(errors.StructureError, match=r'\["params"\]'):
        jprune.hold({"v": jnp.ones(4, bool)}).init(params)
    tx = jprune.hold({"w": jnp.ones(4, bool)})
    with pytest.raises(errors.ArgumentError, match="params"):
        tx.update(params, tx.init(params))
    with pytest.raises(errors.StructureError, match="has 0 sets"):
        jprune.masks_of(optax.sgd(0.1).init(params))
    with pytest.raises(errors.StructureError, match="shape"):
        jprune.with_masks(tx.init(params), {"w": jnp.ones(5, bool)})


def test_scheduled_pruning_of_weights_follows_the_schedule():
    schedule = schedules.cubic(0.25, begin=0, end=12)
    tx = optax.chain(
        optax.sgd(0.01),
        jprune.scheduled_prune(criteria.magnitude(), allocate.global_topk, schedule, every=4),
    )
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32), "b": jnp.ones(8)}
    state = tx.init(params)
    step = jax.jit(lambda state, params: tx.update(jax.tree.map(jnp.sin, params), state, params))
    for number in range(16):
        updates, state = step(state, params)
        params = optax.apply_updates(params, updates)
        density = float(schedule(number - number % 4))
        zeros = round((1 - density) * 32)
        assert sum(int((leaf == 0).sum()) for leaf in params.values()) == zeros
    assert zeros == 24


def test_scheduled_pruning_of_units_with_a_criterion_that_looks_at_batches():
    net = FIRST_CUT[1]
    variables, (x,) = draw(net)
    groups = jprune.trace(net.fn, variables, x)
    loss = lambda out, batch: (out**2).sum(axis=1)
    tx = jprune.scheduled_prune(
        criteria.taylor(net.fn, loss),
        allocate.global_topk,
        schedules.one_shot(0.5),
        every=3,
        groups=groups,
    )
    state = tx.init(variables)
    zeros = jax.tree.map(jnp.zeros_like, variables)
    updates, state = tx.update(zeros, state, variables, batch={"image": x})
    masks = jprune.masks_of(state)
    kept = {name: np.asarray(masks[name].any((0, 1, 2))) for name in ("conv1", "conv2", "conv3")}
    assert sum(int(mask.sum()) for mask in kept.values()) == 9
    small = {name: mask for name, mask in kept.items()}
    slim = jprune.slim(net.fn, groups, small)(jprune.slim_params(groups, small, variables), x)
    held = optax.apply_updates(variables, updates)
    np.testing.assert_allclose(net.fn(held, x), slim, rtol=2e-5, atol=1e-6)
    with pytest.raises(errors.ArgumentError, match="batch=batch"):
        tx.update(zeros, state, variables)


def test_scheduled_pruning_takes_scores_of_units():
    fn = lambda v, x: jax.nn.relu(x @ v["first"]) @ v["second"]
    rng = np.random.default_rng(0)
    params = {"first": rng.normal(size=(4, 6)), "second": rng.normal(size=(6, 3))}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    groups = jprune.trace(fn, params, jnp.ones((1, 4)))
    norms = Criterion(
        init=lambda variables: (),
        update=lambda state, variables, batch: state,
        score=lambda state, variables: {"first": jnp.abs(variables["first"]).sum(0)},
        needs_data=False,
    )
    tx = jprune.scheduled_prune(
        norms, allocate.global_topk, schedules.one_shot(0.5), every=1, groups=groups
    )
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    masks = jprune.masks_of(state)
    largest = np.isin(np.arange(6), np.argsort(np.abs(params["first"]).sum(0))[3:])
    np.testing.assert_array_equal(masks["first"], np.broadcast_to(largest, (4, 6)))
    np.testing.assert_array_equal(masks["second"], np.broadcast_to(largest[:, None], (6, 3)))

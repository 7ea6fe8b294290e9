"""Pruning with feedback: dense weights behind a mask, and the rules that make masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import allocate, criteria, errors, schedules, sparsify
from jprune.base import Budget
from jprune.masks import apply_masks
from jprune.sparsify.hidden import whole

GOAL = jnp.array([0.2, 1.0])
TRACE = [(0.92, 0.2), (0.848, 0.3), (0.7832, 0.4), (0.72488, 0.5), (0.672392, 0.6), (0.625153, 0.7)]


def best_of(density=0.5, schedule=None):
    schedule = schedules.one_shot(density) if schedule is None else schedule
    return sparsify.masks_by(criteria.magnitude(), allocate.global_topk, schedule)


def test_a_pruned_weight_grows_under_feedback_until_it_is_back():
    """Checks [45] P1; a masked gradient never brings it back."""
    start = {"w": jnp.array([1.0, 0.1])}
    tx = sparsify.feedback(optax.sgd(0.1), best_of(), every=1)
    state = tx.init(start)
    params, seen = apply_masks(start, state.masks), []
    for _ in range(6):
        seen.append(state.masks["w"].tolist())
        updates, state = tx.update({"w": params["w"] - GOAL}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(
            whole(state.masks, params, state.hidden)["w"], TRACE[len(seen) - 1], atol=1e-6
        )
        np.testing.assert_array_equal(params["w"], np.where(state.masks["w"], params["w"], 0))
    assert seen == [[True, False]] * 6
    assert state.masks["w"].tolist() == [False, True]
    assert float(state.back) == 1

    frozen = optax.chain(optax.sgd(0.1), sparsify.scheduled_prune(
        criteria.magnitude(), allocate.global_topk, schedules.one_shot(0.5), every=1
    ))  # fmt: skip
    params, state = {"w": jnp.array([1.0, 0.0])}, frozen.init(start)
    for _ in range(6):
        updates, state = frozen.update({"w": params["w"] - GOAL}, state, params)
        params = optax.apply_updates(params, updates)
    assert sparsify.masks_of(state)["w"].tolist() == [True, False]
    assert params["w"][1] == 0


def test_how_much_of_the_weights_is_hidden():
    """Checks [45] P3; leaves without a mask do not count."""
    weights = {"w": jnp.array([3.0, 1.0, -2.0, 0.5]), "b": jnp.full(3, 9.0)}
    masks = {"w": jnp.array([True, False, True, False]), "b": None}
    assert float(sparsify.hidden_fraction(weights, masks)) == pytest.approx(0.0877193, abs=1e-7)


def test_the_ramp():
    """Checks [45] P2 and B10; a density is 1 minus the sparsity of the papers."""
    schedule = schedules.cubic(0.1, 0, 100)
    found = [1 - float(schedule(step)) for step in (0, 25, 50, 75, 100, 130)]
    np.testing.assert_allclose(found, [0, 0.5203125, 0.7875, 0.8859375, 0.9, 0.9], atol=1e-7)


@pytest.mark.parametrize("inner", [optax.sgd(0.05, 0.9), optax.adamw(0.05)], ids=["sgd", "adamw"])
def test_all_weights_move_by_the_gradient_at_the_masked_ones(inner):
    """Against a loop that keeps w and m apart; masks move at every third step up to the 20th."""
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(9, 9)), jnp.float32)
    loss = lambda w: jnp.sum((matrix @ w - 1) ** 2) / 9
    schedule = schedules.cubic(0.4, 0, 9)
    rule = sparsify.masks_by(
        criteria.magnitude(),
        allocate.toward({"w": 4, "b": None}),
        lambda step: schedule(step) + 0.0,
    )
    tx = sparsify.feedback(inner, rule, every=3, stop=20)
    w = jnp.asarray(rng.normal(size=9), jnp.float32)
    params = {"w": w, "b": jnp.ones(2)}
    state, update = tx.init(params), jax.jit(tx.update)
    m, hand, changes = np.ones(9, bool), inner.init(params), 0
    for step in range(1, 30):
        slope = {"w": jax.grad(loss)(jnp.where(m, w, 0)), "b": jnp.ones(2)}
        moves, hand = inner.update(slope, hand, {"w": w, "b": params["b"]})
        updates, state = update(slope, state, params)
        w, params = w + moves["w"], optax.apply_updates(params, updates)
        if step % 3 == 0 and step < 20:
            goes = min((1 - float(schedule(step))) / (1 - 4 / 9), 1)
            kept = 9 - round(goes * 5)
            before, m = m, np.isin(np.arange(9), np.argsort(-np.abs(w), kind="stable")[:kept])
            changes += (m & ~before).sum()
        np.testing.assert_array_equal(state.masks["w"], m)
        np.testing.assert_allclose(params["w"], np.where(m, w, 0), rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(state.hidden["w"], np.where(m, 0, w), rtol=2e-4, atol=1e-5)
    assert m.sum() == 4
    assert state.masks["b"] is None
    assert float(state.back) == changes > 0
    assert np.all(params["b"] < 1)


def test_where_everything_is_kept_it_is_the_optimizer_to_the_last_bit():
    inner = optax.adam(0.1)
    tx = sparsify.feedback(inner, best_of(1.0), every=1)
    params = other = {"w": jnp.linspace(-1, 1, 7)}
    state, hand = tx.init(params), inner.init(params)
    for _ in range(5):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        moves, hand = inner.update(jax.tree.map(jnp.sin, other), hand, other)
        params, other = optax.apply_updates(params, updates), optax.apply_updates(other, moves)
    np.testing.assert_array_equal(params["w"], other["w"])


def test_a_unit_comes_back_with_its_kernel_alone_masked_and_has_no_gradient_otherwise():
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {"a": draw(5, 6), "shift": jnp.full(6, 0.3), "out": draw(6, 2)}
    fn = lambda v, x: jax.nn.relu(x @ v["a"] + v["shift"]) @ v["out"]
    x, groups = draw(20, 5), jprune.trace(fn, params, draw(1, 5))
    slope = jax.jit(jax.grad(lambda v: jnp.sum((fn(v, x) - x[:, :2]) ** 2) / 20))
    for roles, comes_back in ((("kernel",), True), (jprune.base.ROLES, False)):
        rule = sparsify.masks_by(
            criteria.magnitude(2), allocate.uniform, schedules.one_shot(0.5), groups, roles=roles
        )
        tx = sparsify.feedback(optax.sgd(0.3), rule, every=1)
        state = tx.init(params)
        seen, moved = apply_masks(params, state.masks), state
        assert (state.masks["out"] is None) == comes_back
        assert (
            np.asarray(state.masks["a"]).all(0).sum(),
            np.asarray(state.masks["a"]).any(0).sum(),
        ) == (3, 3)
        gone = ~np.asarray(state.masks["a"]).all(0)
        updates, once = tx.update(slope(seen), state, seen)
        moves = np.asarray(once.hidden["a"] - state.hidden["a"])[
            :, gone & (once.masks["a"][0] == 0)
        ]
        assert np.any(moves != 0) == comes_back
        if comes_back:
            update = jax.jit(tx.update)
            for _ in range(25):
                updates, moved = update(slope(seen), moved, seen)
                seen = optax.apply_updates(seen, updates)
            assert float(moved.back) > 0


def test_a_rule_prunes_kernels_alone_whatever_part_of_the_variables_it_gets():
    variables = {"params": {"w": jnp.array([[1.0, 3.0], [2.0, 4.0]]), "b": jnp.ones(2)}}
    groups = jprune.trace(
        lambda v, x: x @ v["params"]["w"] + v["params"]["b"], variables, jnp.ones((1, 2))
    )
    rule = sparsify.masks_by(
        criteria.magnitude(), allocate.uniform, schedules.one_shot(0.5), groups, "weight"
    )
    for part in (variables, variables["params"]):
        masks = rule(part, 0)
        masks = masks.get("params", masks)
        assert masks["b"] is None
        assert masks["w"].tolist() == [[False, True], [False, True]]
    with pytest.raises(errors.StructureError, match="the groups are of another net"):
        rule({"other": jnp.ones(3)}, 0)


def test_what_cannot_be_is_refused():
    for wrong in ({"every": 0}, {"every": 2, "stop": -1}):
        with pytest.raises(errors.ArgumentError, match="every is 1 or more"):
            sparsify.feedback(optax.sgd(0.1), best_of(), **wrong)
    with pytest.raises(errors.ArgumentError, match="per='unit' or 'weight'"):
        sparsify.masks_by(criteria.magnitude(), allocate.uniform, schedules.one_shot(0.5), per="x")
    nan = {"w": jnp.array([jnp.nan, 1.0])}
    with pytest.raises(errors.ArgumentError, match="hold NaN"):
        sparsify.feedback(optax.sgd(0.1), best_of()).init(nan)


@pytest.mark.parametrize("traced", [False, True])
def test_counts_are_reached_together_and_exactly(traced):
    rng = np.random.default_rng(2)
    scores = {"a": rng.normal(size=40), "b": rng.normal(size=10), "c": rng.normal(size=30)}
    counts = {"a": 7, "b": 10, "c": None}
    keep = allocate.toward(counts)
    at = lambda density: keep(scores, Budget(density=density), None)
    at = jax.jit(at) if traced else at
    last = None
    for density in (1.0, 0.9, 0.6, 17 / 50, 0.2):
        masks = at(density)
        assert masks["c"] is None
        assert np.asarray(masks["b"]).all()
        lost = min((1 - density) / (1 - 17 / 50), 1) * 33
        mask = np.asarray(masks["a"])
        assert mask.sum() == 40 - round(lost)
        assert scores["a"][mask].min() > scores["a"][~mask].max(initial=-np.inf)
        assert last is None or not (mask & ~last).any()
        last = mask
    with pytest.raises(errors.ArgumentError, match="the counts are the budget"):
        keep(scores, Budget(macs=0.5), None)

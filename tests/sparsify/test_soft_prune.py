"""Soft pruning: zeros that regrow, rules among which the net chooses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import allocate, criteria, errors, schedules, sparsify
from tests.criteria.test_distance import FILTERS

LOSSES = jnp.array([0.340, 0.306, 0.285, 0.360])


def net_of_filters():
    """The five filters of the worked case as units, and a layer that reads them."""
    params = {
        "w": jnp.asarray(FILTERS.T, jnp.float32),
        "shift": jnp.full(5, 0.2),
        "out": jnp.ones((5, 1)),
    }
    fn = lambda v, x: jax.nn.relu(x @ v["w"] + v["shift"]) @ v["out"]
    return fn, params, jprune.trace(fn, params, jnp.ones((1, 2)))


def rule(groups, criterion, keep, roles=("kernel",)):
    return sparsify.masks_by(
        criterion, allocate.toward({"w": keep}), schedules.one_shot(keep / 5), groups, roles=roles
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_filter_of_zeros_is_none_after_another_step(momentum):
    """Checks B3 and [34] P3."""
    fn, params, groups = net_of_filters()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 2)), jnp.float32)
    loss = lambda v: jnp.mean((fn(v, x) - x[:, :1]) ** 2)
    tx = optax.chain(
        optax.sgd(0.01, momentum),
        sparsify.soft_prune(rule(groups, criteria.magnitude(2), 3), every=4),
    )
    state, step, zeros = tx.init(params), jax.jit(tx.update), []
    for _ in range(9):
        updates, state = step(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        zeros.append(int((~np.asarray(params["w"]).any(0)).sum()))
    assert zeros == [0, 0, 0, 2, 0, 0, 0, 2, 0]
    assert state[-1].masks["shift"] is None is state[-1].masks["out"]
    assert np.asarray(params["shift"]).all()


def test_steps_between_are_the_optimizers_to_the_last_bit_and_momentum_goes_on():
    _, params, groups = net_of_filters()
    inner = optax.sgd(0.1, 0.9)
    tx = optax.chain(inner, sparsify.soft_prune(rule(groups, criteria.magnitude(), 3), every=3))
    state, hand = tx.init(params), inner.init(params)
    for number in range(1, 8):
        slope = jax.tree.map(jnp.cos, params)
        updates, state = tx.update(slope, state, params)
        moves, hand = inner.update(slope, hand, params)
        moved = optax.apply_updates(params, moves)
        params = optax.apply_updates(params, updates)
        if number % 3 == 0:
            norms = np.abs(np.asarray(moved["w"])).sum(0)
            gone = np.argsort(norms)[:2]
            assert not np.asarray(params["w"])[:, gone].any()
            moved["w"] = moved["w"].at[:, gone].set(0)
        for name, leaf in moved.items():
            np.testing.assert_array_equal(params[name], leaf)


def test_the_last_step_can_be_one_of_those_that_prune():
    _, params, groups = net_of_filters()
    for steps, every in ((7, 3), (6, 3), (2, 5)):
        tx = sparsify.soft_prune(
            rule(groups, criteria.magnitude(), 2), every=every, begin=steps % every
        )
        state, now, still = tx.init(params), params, jax.tree.map(jnp.zeros_like, params)
        for _ in range(steps):
            now = jax.tree.map(lambda leaf: leaf + 0.1, now)
            updates, state = tx.update(still, state, now)
            now = optax.apply_updates(now, updates)
        assert int((~np.asarray(now["w"]).any(0)).sum()) == 3


def test_the_nearest_is_chosen_and_not_the_best():
    """Checks [34] P2; the lowest loss is the other reading."""
    assert int(sparsify.nearest(0.300, LOSSES)) == 1
    assert int(sparsify.lowest(0.300, LOSSES)) == 2
    # two attributes: each difference over the largest of the pool
    both = jnp.stack([LOSSES, jnp.array([1.0, 5.0, 1.1, 1.0])], 1)
    by_hand = np.abs(np.asarray(both) - [0.3, 1.0]) / [0.06, 4.0]
    assert int(sparsify.nearest(jnp.array([0.3, 1.0]), both)) == by_hand.sum(1).argmin() == 2
    assert int(sparsify.nearest(0.3, jnp.array([jnp.nan, 0.9, jnp.inf]))) == 1
    assert int(sparsify.lowest(0.3, jnp.array([jnp.nan, 0.9, 0.8]))) == 2
    assert int(sparsify.nearest(0.3, jnp.full(3, 0.3))) == 0


NAMES = {
    "l1": (lambda groups: criteria.magnitude(1), 3),
    "l2": (lambda groups: criteria.magnitude(2), 0),
    "distance": (lambda groups: criteria.distance(groups), 1),
    "cosine": (lambda groups: criteria.distance(groups, "cosine"), 4),
}


@pytest.mark.parametrize("name", NAMES)
def test_criteria_disagree_about_the_filter_that_goes(name):
    """Checks [34] P1, through the rule."""
    _, params, groups = net_of_filters()
    make, gone = NAMES[name]
    mask = rule(groups, make(groups), 4)(params, 0)["w"]
    assert np.flatnonzero(~np.asarray(mask).any(0)).tolist() == [gone]


def test_the_choice_is_that_of_a_loop_over_the_copies():
    """An oracle without masks: every copy has one filter less, in a net of four."""
    fn, params, groups = net_of_filters()
    rng = np.random.default_rng(4)
    whole = [rule(groups, make(groups), 4, jprune.base.ROLES) for make, _ in NAMES.values()]
    some = [rule(groups, make(groups), 4) for make, _ in NAMES.values()]
    taken, loss = set(), jax.jit(lambda v, x, y: jnp.mean((fn(v, x) - y) ** 2))
    tx = sparsify.soft_prune(some, every=1, choose=sparsify.choice(whole, loss))
    update, still = jax.jit(tx.update), jax.tree.map(jnp.zeros_like, params)
    for _ in range(12):
        x, y = (jnp.asarray(rng.normal(size=(8, n)), jnp.float32) for n in (2, 1))
        updates, state = update(still, tx.init(params), params, x=x, y=y)
        less = [
            loss(
                {n: jnp.delete(leaf, gone, 0 if n == "out" else -1) for n, leaf in params.items()},
                x,
                y,
            )
            for _, gone in NAMES.values()
        ]
        best = int(np.argmin(np.abs(np.asarray(less) - float(loss(params, x, y)))))
        assert state.chosen.tolist() == [int(n == best) for n in range(4)]
        gone = [gone for _, gone in NAMES.values()][best]
        assert not np.asarray(optax.apply_updates(params, updates)["w"])[:, gone].any()
        taken.add(best)
    assert len(taken) >= 2


def test_the_ramp_goes_through_its_three_points():
    schedule = schedules.asymptotic(0.6, 80)
    pruned = [1 - float(schedule(step)) for step in (0, 10, 80, 200)]
    np.testing.assert_allclose(pruned, [0, 0.3, 0.4, 0.4], atol=1e-6)
    # a exp(-k t) + b: differences fall by one factor
    falls = np.diff([float(schedule(step)) for step in range(0, 40, 10)])
    np.testing.assert_allclose(falls[1:] / falls[:-1], falls[1] / falls[0], rtol=1e-2)
    with pytest.raises(errors.ArgumentError, match="must have a length"):
        schedules.asymptotic(0.5, 0)


def test_what_cannot_be_is_refused():
    _, _, groups = net_of_filters()
    one = rule(groups, criteria.magnitude(), 3)
    for given in (
        {"rules": one, "every": 0},
        {"rules": [], "every": 1},
        {"rules": [one, one], "every": 1},
        {"rules": one, "every": 1, "choose": lambda params, step: 0},
    ):
        with pytest.raises(errors.ArgumentError, match="several rules need choose"):
            sparsify.soft_prune(**given)

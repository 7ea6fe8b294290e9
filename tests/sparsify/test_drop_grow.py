"""Weights that are dropped and grow: fractions, counts, what is reset, and what it is good for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import errors, masks_of, sparsify
from jprune.sparsify.drop_grow import ANNEAL

KEY = jax.random.key(1)


def test_the_fraction_falls_by_a_cosine():
    """Checks B8."""
    found = [0.3 * float(ANNEAL["cosine"](time)) for time in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(found, [0.3, 0.15, 0.0], atol=1e-7)
    assert [float(ANNEAL["constant"](jnp.float32(time))) for time in (0.0, 0.5)] == [1.0, 1.0]


def by_hand(weight, mask, gradient, fraction):
    """The new mask, in plain Python."""
    active = [n for n in range(len(weight)) if mask[n]]
    gone = int(fraction * len(active) * (1 + 1e-6))
    stays = sorted(active, key=lambda n: (-abs(weight[n]), n))[: len(active) - gone]
    others = [n for n in range(len(weight)) if n not in stays]
    grown = sorted(others, key=lambda n: (-abs(gradient[n]), n))[:gone]
    return np.isin(np.arange(len(weight)), [*stays, *grown])


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.7, 1.0])
def test_masks_are_those_of_plain_python_and_no_weight_is_gained_or_lost(fraction):
    tx = sparsify.drop_and_grow(
        optax.sgd(0.1), {"w": np.ones(20, bool)}, KEY, every=3, stop=9, fraction=fraction, noise=0.0
    )
    start, update = tx.init({"w": jnp.zeros(20)}), jax.jit(tx.update)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mask, gradient = rng.random(20) < rng.random(), rng.normal(size=20).round(1)
        weight = rng.normal(size=20).round(1) * mask
        state = start._replace(hold=start.hold._replace(masks={"w": jnp.asarray(mask)}))
        as_tree = lambda array: {"w": jnp.asarray(array, jnp.float32)}
        _, state = update(as_tree(gradient), state, as_tree(weight))
        found = np.asarray(state.hold.masks["w"])
        np.testing.assert_array_equal(found, by_hand(weight, mask, gradient, fraction))
        assert found.sum() == mask.sum()


@pytest.mark.parametrize("inner", [optax.sgd(0.1, 0.9), optax.adam(0.1)], ids=["momentum", "adam"])
def test_what_is_dropped_and_grows_at_once_goes_on_and_what_was_inactive_begins_anew(inner):
    """Checks B8: weight 1 goes and comes back, weight 2 goes, weight 4 is born."""
    params = {"w": jnp.array([3.0, 0.2, 0.1, 0.0, 0.0]), "b": jnp.array([1.0])}
    masks = {"w": jnp.array([True, True, True, False, False]), "b": None}
    tx = sparsify.drop_and_grow(
        inner, masks, KEY, every=2, stop=99, begin=1, fraction=0.7, anneal="constant"
    )
    state = tx.init(params)
    full = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0])
    updates, state = tx.update({"w": full, "b": jnp.ones(1)}, state, params)
    params = optax.apply_updates(params, updates)
    assert params["w"][3:].tolist() == [0.0, 0.0]
    # A stale accumulator, as of a weight that was dropped earlier, must not wake up.
    stale = lambda leaf: leaf.at[4].set(7.0) if leaf.shape == (5,) else leaf
    state = state._replace(inner=jax.tree.map(stale, state.inner))
    before, accumulators = params, state.inner
    slope = {"w": jnp.array([0.0, 5.0, 0.0, 0.0, 6.0]), "b": jnp.ones(1)}
    updates, state = tx.update(slope, state, params)
    params = optax.apply_updates(params, updates)
    assert masks_of(state)["w"].tolist() == [True, True, False, False, True]
    np.testing.assert_array_equal(params["w"], before["w"] * jnp.array([1, 1, 0, 0, 1]))
    assert params["b"] == before["b"]  # no step when masks move
    for old, new in zip(*(jax.tree.leaves(tree) for tree in (accumulators, state.inner))):
        if old.shape == (5,):
            np.testing.assert_array_equal(new, old.at[4].set(0.0))
        elif old.shape == (1,):
            np.testing.assert_array_equal(new, old)
        else:
            assert new == old + 1  # a count of steps: learning rates go on
    updates, state = tx.update(slope, state, params)
    assert updates["w"][2] == updates["w"][3] == 0
    assert updates["w"][4] != 0


def test_masks_move_at_their_steps_alone_and_inactive_weights_reach_no_accumulator():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=40), jnp.float32)}
    mask = rng.random(40) < 0.5
    params = {"w": params["w"] * mask}
    tx = sparsify.drop_and_grow(
        optax.sgd(0.01, 0.9), {"w": mask}, KEY, every=3, stop=10, begin=3, anneal="constant"
    )
    state, moved = tx.init(params), []
    for number in range(14):
        gradient = {"w": jnp.asarray(rng.normal(size=40), jnp.float32)}
        old = np.asarray(masks_of(state)["w"])
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        new = np.asarray(masks_of(state)["w"])
        if (old != new).any():
            moved.append(number)
        assert new.sum() == mask.sum()
        assert not np.asarray(params["w"])[~new].any()
        ever = mask if number == 0 else ever | new
        trace = jax.tree.leaves(state.inner)[0]
        assert not np.asarray(trace)[~ever].any()
    assert moved == [3, 6, 9]


def test_random_growth_is_drawn_evenly_and_anew_at_every_exchange():
    params = {"w": jnp.zeros(1000)}
    mask = np.arange(1000) < 500
    tx = sparsify.drop_and_grow(
        optax.sgd(0.1), {"w": mask}, KEY, every=1, stop=9, fraction=0.5, grow="random",
        anneal="constant",
    )  # fmt: skip
    none = {"w": jnp.zeros(1000)}
    _, one = tx.update(none, tx.init(params), params)
    grown = np.asarray(one.hold.masks["w"])[500:].sum()
    assert 120 < grown < 220  # 250 grow among 750, 500 of which were masked: 167 of them
    _, two = tx.update(none, one, params)
    born = [np.asarray(b.hold.masks["w"]) & ~np.asarray(a) for a, b in
            ((mask, one), (one.hold.masks["w"], two))]  # fmt: skip
    assert (born[0] != born[1]).any()


def test_masks_that_follow_the_gradient_find_what_matters():
    """Eight of 200 inputs decide: by the gradient they are found, at random some, else hardly."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(256, 200)), jnp.float32)
    target = x[:, ::25] @ jnp.ones(8)
    mask = np.zeros(200, bool)
    mask[rng.permutation(200)[:16]] = True
    loss = lambda v: ((x @ v["w"] - target) ** 2).mean()
    ways = {"static": {"stop": 1, "begin": 1}, "random": {"grow": "random"}, "gradient": {}}
    losses = {}
    for name, options in ways.items():
        tx = sparsify.drop_and_grow(
            optax.sgd(0.05), {"w": mask}, KEY, **{"every": 10, "stop": 150, **options}
        )

        @jax.jit
        def step(params, state, tx=tx):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        params = {"w": jnp.zeros(200)}
        state = tx.init(params)
        for _ in range(200):
            params, state = step(params, state)
        losses[name] = float(loss(params))
    assert losses["gradient"] < 1e-3
    assert losses["gradient"] < 0.1 * losses["random"] < 0.09 * losses["static"]


def test_what_cannot_be_is_refused():
    make = lambda **how: sparsify.drop_and_grow(
        optax.sgd(0.1), {"w": np.ones(3, bool)}, KEY, **{"every": 1, "stop": 2, **how}
    )
    for wrong in (
        {"every": 0}, {"stop": 0}, {"begin": -1}, {"fraction": 0.0}, {"fraction": 1.5},
        {"grow": "best"}, {"anneal": "linear"}, {"noise": -1.0}, {"noise": float("nan")},
    ):  # fmt: skip
        with pytest.raises(errors.ArgumentError, match="drop_and_grow"):
            make(**wrong)
    with pytest.raises(errors.StructureError):
        make().init({"w": jnp.ones(4)})

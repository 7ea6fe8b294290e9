"""Movement: the checks' numbers, scores by hand, and weights that training moves away from 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import allocate, errors, masks_of, sparsify
from jprune.base import Budget


def best(density):
    return lambda scores, step: allocate.uniform(scores, Budget(density=density))


ALL = {"w": jnp.ones(2, bool)}


def test_the_change_of_scores_is_the_papers():
    """Checks B11."""
    tx = sparsify.movement(optax.sgd(0.1), optax.sgd(0.01), best(1.0), ALL)
    params = {"w": jnp.array([2.0, -1.0])}
    _, state = tx.update({"w": jnp.array([0.5, 0.5])}, tx.init(params), params)
    np.testing.assert_allclose(state.scores["w"], [-0.01, 0.005], rtol=1e-6)


def test_scores_are_minus_the_sum_of_gradient_times_weight_also_of_masked_ones():
    """In NumPy: S falls by r g w, w moves where it is not masked, masks are the best half of S."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=10).astype(np.float32)
    tx = sparsify.movement(
        optax.sgd(0.1), optax.sgd(0.01), best(0.5), {"w": jnp.ones(10, bool), "b": None}
    )
    params = {"w": jnp.asarray(start), "b": jnp.ones(1)}
    state = tx.init(params)
    params = {**params, "w": params["w"] * masks_of(state)["w"]}
    step, w, scores = jax.jit(tx.update), start.astype(float), np.zeros(10)
    mask = np.arange(10) < 5  # equal scores: by index
    came_back = False
    for _ in range(8):
        np.testing.assert_allclose(params["w"], w * mask, rtol=1e-5, atol=1e-6)
        gradient = rng.normal(size=10).astype(np.float32)
        updates, state = step({"w": jnp.asarray(gradient), "b": jnp.ones(1)}, state, params)
        params = optax.apply_updates(params, updates)
        scores -= 0.01 * gradient * w
        w = w - 0.1 * gradient * mask
        old, mask = mask, np.argsort(np.argsort(-scores, kind="stable")) < 5
        came_back |= bool((mask & ~old).any())
        np.testing.assert_allclose(state.scores["w"], scores, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(masks_of(state)["w"], mask)
    assert came_back
    assert state.scores["b"] is None
    np.testing.assert_allclose(params["b"], 1 - 8 * 0.1, rtol=1e-5)


def test_the_gradient_of_scores_is_that_of_the_product():
    """By autodiff: of L(w * s) at s = m, the straight-through gradient of the choice."""
    rng = np.random.default_rng(1)
    w, mask = rng.normal(size=6).astype(np.float32), np.arange(6) % 2 == 0
    loss = lambda product: jnp.sum(jnp.sin(product) * jnp.arange(6.0)) ** 2
    wanted = jax.grad(lambda s: loss(w * s))(mask.astype(np.float32))
    keep = lambda scores, step: {"w": jnp.asarray(mask)}
    tx = sparsify.movement(optax.sgd(0.1), optax.sgd(1.0), keep, {"w": np.ones(6, bool)})
    state = tx.init({"w": jnp.asarray(w)})
    params = {"w": jnp.asarray(w * mask)}
    _, state = tx.update(jax.grad(lambda v: loss(v["w"]))(params), state, params)
    np.testing.assert_allclose(state.scores["w"], -wanted, rtol=1e-5)


def test_the_penalty_is_the_gradient_of_a_mean_of_sigmoids():
    params = {"w": jnp.array([2.0, -1.0]), "v": jnp.zeros(3)}
    masks = {"w": jnp.ones(2, bool), "v": jnp.ones(3, bool)}
    tx = sparsify.movement(
        optax.sgd(0.1), optax.sgd(1.0), best(1.0), masks, strength=lambda step: 4.0 + step
    )
    state = tx.init(params)
    state = state._replace(scores={"w": jnp.array([0.3, -0.2]), "v": jnp.zeros(3)})
    _, after = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    means = lambda s: 4.0 * (jax.nn.sigmoid(s["w"]).mean() + jax.nn.sigmoid(s["v"]).mean()) / 2
    slope = jax.grad(means)(state.scores)
    for name in params:
        np.testing.assert_allclose(after.scores[name], state.scores[name] - slope[name], rtol=1e-5)


def test_large_weights_that_are_not_needed_go_and_small_ones_that_are_stay():
    """Pretrained weights fit another task: by size the wrong half stays, by movement the right."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(128, 20)), jnp.float32)
    needed = np.arange(20) % 2 == 0
    start = {"w": jnp.asarray(np.where(needed, 0.2, 1.0), jnp.float32)}
    target = x @ jnp.asarray(np.where(needed, 1.5, 0.0), jnp.float32)
    loss = lambda v: ((x @ v["w"] - target) ** 2).mean()
    ramp = lambda step: 1.0 - 0.5 * jnp.clip((step - 5) / 20, 0, 1)
    choose = lambda scores, step: allocate.uniform(scores, Budget(density=ramp(step)))
    masks = {"w": jnp.ones(20, bool)}
    tx = sparsify.movement(optax.sgd(0.01), optax.adam(0.01), choose, masks)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, tx.init(start)
    for _ in range(40):
        params, state = step(params, state)
    np.testing.assert_array_equal(masks_of(state)["w"], needed)
    by_size = allocate.uniform(jax.tree.map(jnp.abs, start), Budget(density=0.5))
    assert (np.asarray(by_size["w"]) & needed).sum() == 0


def test_a_negative_strength_is_refused():
    with pytest.raises(errors.ArgumentError, match="0 or more"):
        sparsify.movement(optax.sgd(0.1), optax.sgd(0.1), best(1.0), ALL, strength=-1.0)

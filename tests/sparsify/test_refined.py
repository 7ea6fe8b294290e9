"""The refined straight-through estimator: the checks' numbers, a loop by hand, fewer changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import blocks, errors, masks_of, sparsify
from jprune.masks import apply_masks

W = np.array([0.1, -0.4, 0.3, 0.2, -1.0, 0.05, 0.06, 2.0], np.float32)
GROUPS = jprune.trace(lambda v, x: x @ v["w"], {"w": jnp.asarray(W[:, None])}, jnp.ones(8))


def two_of_four(weights):
    return blocks.n_of_m(GROUPS, jax.tree.map(jnp.abs, weights), 2, 4)


def begun(tx, params):
    state = tx.init(params)
    return apply_masks(params, masks_of(state)), state


def test_masks_and_the_pull_on_masked_weights_are_the_papers():
    """Checks B9: with no gradient and SGD of rate 1, a step is minus the extra gradient."""
    tx = sparsify.refined_ste(optax.sgd(1.0), two_of_four)
    params, state = begun(tx, {"w": jnp.asarray(W[:, None])})
    mask = np.array([0, 1, 1, 0, 1, 0, 0, 1], bool)
    np.testing.assert_array_equal(masks_of(state)["w"][:, 0], mask)
    np.testing.assert_array_equal(params["w"][:, 0], W * mask)
    _, after = tx.update({"w": jnp.zeros((8, 1))}, state, params)
    extra = np.array([2e-5, 0, 0, 4e-5, 0, 1e-5, 1.2e-5, 0])
    np.testing.assert_allclose(2e-4 * np.where(mask, 0, W), extra, rtol=1e-6)
    np.testing.assert_allclose(after.hidden["w"][:, 0], np.where(mask, 0, W - extra), rtol=1e-6)


def by_hand(w, slope, strength, steps, rate=0.1, momentum=0.9):
    """w and m after some steps, in NumPy: the gradient at w m moves all of w."""
    trace = np.zeros_like(w)
    choose = lambda w: np.concatenate([np.abs(s) >= np.sort(np.abs(s))[2] for s in w.reshape(2, 4)])
    mask = choose(w)
    for _ in range(steps):
        trace = momentum * trace + slope(w * mask) + strength * np.where(mask, 0, w)
        w = w - rate * trace
        mask = choose(w)
    return w, mask


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_a_loop_of_ones_own_does_what_numpy_does(strength):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(8, 8))
    curve, target = root @ root.T / 8 + 0.2 * np.eye(8), rng.normal(size=8)
    slope = lambda w: curve @ (w - target)
    tx = sparsify.refined_ste(optax.sgd(0.1, 0.9), two_of_four, strength)
    params, state = begun(tx, {"w": jnp.asarray(W[:, None])})
    step = jax.jit(tx.update)
    for _ in range(12):
        gradient = {
            "w": jnp.asarray(slope(np.asarray(params["w"][:, 0], float))[:, None], "float32")
        }
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
    w, mask = by_hand(W.astype(float), slope, strength, 12)
    np.testing.assert_array_equal(masks_of(state)["w"][:, 0], mask)
    np.testing.assert_allclose(params["w"][:, 0], w * mask, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.hidden["w"][:, 0], np.where(mask, 0, w), rtol=1e-4, atol=1e-5)


def test_a_pull_makes_masks_change_less():
    """Noisy gradients turn masks over again and again; drawn to 0, what is masked stays masked."""
    changes = {}
    for strength in (0.0, 2.0):
        tx = sparsify.refined_ste(optax.sgd(0.1), two_of_four, strength)
        params, state = begun(tx, {"w": jnp.asarray(W[:, None])})
        step, rng, changes[strength] = jax.jit(tx.update), np.random.default_rng(0), 0
        for number in range(150):
            noise = rng.normal(size=(8, 1)) + np.asarray(params["w"] - np.sign(W)[:, None])
            old = np.asarray(masks_of(state)["w"])
            updates, state = step({"w": jnp.asarray(noise, jnp.float32)}, state, params)
            params = optax.apply_updates(params, updates)
            changes[strength] += (number >= 50) * int((old != masks_of(state)["w"]).sum())
    assert changes[2.0] < 0.5 * changes[0.0]


def test_a_negative_strength_is_refused():
    for strength in (-1.0, float("nan")):
        with pytest.raises(errors.ArgumentError, match="0 or more"):
            sparsify.refined_ste(optax.sgd(0.1), two_of_four, strength)

"""Optimizer state slims along: the slim net's next update is that of the masked net, sliced."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from tests.graph.test_training_mode import NET
from tests.law import random_masks, weighted_sum
from tests.nets import draw

OPTIMIZERS = {
    "sgd": optax.sgd(0.1, 0.9),
    "nesterov": optax.sgd(0.1, 0.9, nesterov=True),
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "lion": optax.lion(1e-2, weight_decay=0.1),
    "scheduled": optax.sgd(lambda step: 0.1 / (1 + step), 0.9),
    "accumulated": optax.MultiSteps(optax.adam(1e-2), 2),
    "two": optax.multi_transform(
        {"moments": optax.adam(1e-2), "plain": optax.sgd(0.1, 0.9)},
        lambda tree: jax.tree.map(lambda leaf: "moments" if leaf.ndim > 1 else "plain", tree),
    ),
    "injected": optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2),
}


class Trained:
    """A net whose parameters (not its statistics) are trained, from somewhere."""

    def __init__(self, fn, stats, x):
        loss = lambda params, scale: weighted_sum(fn({"params": params, "stats": stats}, scale * x))
        self.gradient = jax.jit(jax.grad(loss))

    def step(self, optimizer, params, state, scale, masks=None):
        """Updates, parameters and state; under masks what is not read stays as it is."""
        updates, state = jax.jit(optimizer.update)(self.gradient(params, scale), state, params)
        kept = updates if masks is None else jprune.apply_masks(updates, masks)
        return updates, optax.apply_updates(params, kept), state


@pytest.fixture(scope="module")
def nets():
    """The masked net, the slim net, masked parameters, their masks, and `cut`."""
    with jax.enable_x64(True):
        variables, (x,) = draw(NET, dtype=jnp.float64)
        groups = jprune.trace(NET.fn, variables, x)
        masks = random_masks(groups)
        cut = lambda tree: jprune.slim_params(groups, masks, tree)
        reads = jprune.expand(groups, masks, ("in",))["params"]
        whole = Trained(NET.fn, variables["stats"], x)
        small = Trained(jprune.slim(NET.fn, groups, masks), cut(variables)["stats"], x)
        return whole, small, jprune.apply_masks(variables["params"], reads), reads, cut


def largest_difference(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_update_is_the_sliced_one(name, nets, float64):
    optimizer = OPTIMIZERS[name]
    whole, small, params, reads, cut = nets
    state = optimizer.init(params)
    for scale in (1.0, 0.7, 1.3):
        _, params, state = whole.step(optimizer, params, state, scale, reads)
    small_params, small_state = cut(params), cut(state)
    sizes = lambda tree: sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
    assert sizes(small_state) < sizes(state)
    moved = 0.0
    for scale in (0.9, 1.1):
        updates, params, state = whole.step(optimizer, params, state, scale, reads)
        found, small_params, small_state = small.step(optimizer, small_params, small_state, scale)
        assert largest_difference(cut(updates), found) <= 1e-6
        moved += sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(found))
    assert moved > 0.1
    assert largest_difference(cut(params), small_params) <= 1e-6


def test_the_state_of_other_units_gives_other_updates(nets, float64):
    """What the test above would see, were the state cut at the wrong places."""
    whole, small, params, reads, cut = nets
    optimizer = optax.sgd(0.1, 0.9)
    _, params, state = whole.step(optimizer, params, optimizer.init(params), 1.0, reads)
    exchanged = jax.tree.map(lambda leaf: leaf[..., ::-1], cut(state))
    right, wrong = (
        small.step(optimizer, cut(params), state, 0.9)[0] for state in (cut(state), exchanged)
    )
    assert largest_difference(right, wrong) > 1e-3

"""Optimizers around `hold`: pruned weights stay 0, and training goes on in the small net.

Three steps of the masked net, then two more of it and of the small net with the small state: the
same weights, whatever the optimizer keeps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import errors

X = jax.random.normal(jax.random.key(9), (6, 3))
WEIGHTS = {
    name: 0.5 * jax.random.normal(jax.random.key(number), shape)
    for number, (name, shape) in enumerate({"first": (3, 8), "shift": (8,), "out": (8, 4)}.items())
}


def net(v, x):
    return jnp.tanh(x @ v["first"] + v["shift"]) @ v["out"]


GROUPS = jprune.trace(net, WEIGHTS, X)
UNITS = {"first": np.arange(8) % 3 > 0}
MASKS = jprune.expand(GROUPS, UNITS)
TRAINED = {"first": True, "shift": False, "out": True}


def cut(tree):
    return jprune.slim_params(GROUPS, UNITS, tree)


def parts(masks):
    labels = {name: "adam" if trained else "sgd" for name, trained in TRAINED.items()}
    chains = {"adam": optax.adam(0.05), "sgd": optax.sgd(0.05, 0.9)}
    chains = {name: optax.chain(tx, jprune.hold(masks)) for name, tx in chains.items()}
    return optax.multi_transform(chains, labels)


def held(*links):
    return lambda masks: optax.chain(*links, jprune.hold(masks))


WRAPPERS = {
    "masked": lambda masks: optax.chain(
        optax.masked(held(optax.adam(0.05))(masks), TRAINED),
        optax.masked(optax.set_to_zero(), {name: not value for name, value in TRAINED.items()}),
    ),
    "multi_transform": parts,
    "clip_by_global_norm": held(optax.clip_by_global_norm(0.1), optax.adam(0.05)),
    "lamb": held(optax.lamb(0.05)),
    "sm3": held(optax.sm3(0.05)),
    "averaged updates": held(optax.sgd(0.05), optax.ema(0.9)),
    "schedule_free": lambda masks: optax.contrib.schedule_free(held(optax.sgd(0.05))(masks), 0.05),
    "lookahead": lambda masks: optax.lookahead(held(optax.adam(0.05))(masks), 2, 0.5),
    "MultiSteps": lambda masks: optax.MultiSteps(held(optax.adam(0.05))(masks), 2),
    "lbfgs": held(optax.lbfgs(memory_size=3)),
}


def trained(optimizer, params, state, masks, steps):
    """Parameters and state after some steps with the gradient of the masked net's loss."""

    def loss(params):
        masked = params if masks is None else jprune.apply_masks(params, masks)
        return ((net(masked, X) - 1) ** 2).mean()

    @jax.jit
    def step(params, state):
        fast = getattr(params, "fast", params)
        value, gradient = jax.value_and_grad(loss)(fast)
        line_search = {"value": value, "grad": gradient, "value_fn": loss}
        update = optax.with_extra_args_support(optimizer).update
        updates, state = update(gradient, state, params, **line_search)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("name", WRAPPERS)
def test_training_goes_on_in_the_small_net(name):
    params = jprune.apply_masks(WEIGHTS, MASKS)
    params = optax.LookaheadParams.init_synced(params) if name == "lookahead" else params
    optimizer = WRAPPERS[name](MASKS)
    params, state = trained(optimizer, params, optimizer.init(params), MASKS, 3)
    after, _ = trained(optimizer, params, state, MASKS, 2)
    small, _ = trained(WRAPPERS[name](cut(MASKS)), cut(params), cut(state), None, 2)
    same = lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    jax.tree.map(same, cut(after), small)
    moved = jax.tree.map(lambda one, other: bool((one != other).any()), after, params)
    assert any(jax.tree.leaves(moved))
    for tree in (after,) if name != "lookahead" else after:
        assert all((leaf[~np.asarray(MASKS[path])] == 0).all() for path, leaf in tree.items())


def test_a_clipped_norm_counts_pruned_weights_unless_the_masked_net_is_differentiated():
    loss = lambda v: ((net(v, X) - 1) ** 2).mean()
    params = jprune.apply_masks(WEIGHTS, MASKS)
    norm = lambda tree: float(optax.tree.norm(tree))
    small = norm(jax.grad(loss)(cut(params)))
    masked_net = lambda v: loss(jprune.apply_masks(v, MASKS))
    assert norm(jax.grad(masked_net)(params)) == pytest.approx(small, rel=1e-5)
    # An empty filter has no gradient where its consumer is empty too, so only `in` is masked here.
    read = jprune.expand(GROUPS, UNITS, roles=("in",))
    assert norm(jax.grad(loss)(jprune.apply_masks(WEIGHTS, read))) > 1.01 * small


def test_masks_of_several_parts_are_read_and_changed_together():
    state = parts(MASKS).init(WEIGHTS)
    same = jax.tree.map(
        lambda one, other: bool((one == other).all()), jprune.masks_of(state), MASKS
    )
    assert all(jax.tree.leaves(same))
    new = jprune.expand(GROUPS, {"first": np.arange(8) < 2})
    changed = jprune.masks_of(jprune.with_masks(state, new))
    assert [int(mask.sum()) for mask in changed.values()] == [6, 8, 2]
    twice = optax.chain(jprune.hold(MASKS), jprune.hold(MASKS)).init(WEIGHTS)
    with pytest.raises(errors.StructureError, match="has 2 sets"):
        jprune.masks_of(twice)
    alone = optax.masked(jprune.hold(MASKS), TRAINED).init(WEIGHTS)
    assert jprune.masks_of(alone)["shift"] is None

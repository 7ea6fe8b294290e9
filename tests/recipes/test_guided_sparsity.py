"""Guided sparsity: which layers pay on a machine, and densities that stay where they do.

Checks [11] P1 and P2, of the direct convolution, are in tests/forms/test_leaf_types.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jprune import errors, masks_of, sparsify, stages
from jprune.base import Budget, Pruned
from jprune.cost import ATOM, XEON, Machine, Work
from jprune.masks import apply_masks
from jprune.recipes import Train
from jprune.recipes.guided_sparsity import guided_sparsity
from jprune.stages.useful_range import PruneWithinRange
from jprune.train.net import Net
from tests.contracts import own

KEY = jax.random.key(3)
TUNE = Train(1, 0.05, 16, max_steps=8, schedule="constant", name="finetune")
MACHINE = (1e9, 6e8, 1.25)
"""On which the 3 x 3 layers of `mixed` pay for a batch, and the 1 x 1 and the last one do not."""
STAGE = PruneWithinRange(TUNE, Budget(density=0.6), MACHINE, images=16)


def mixed():
    """3 x 3, 1 x 1, 3 x 3 and dense: a path each."""
    shapes = {"a": (3, 3, 4, 16), "b": (1, 1, 16, 4), "c": (3, 3, 4, 16), "out": (16, 3)}

    def fn(v, x):
        k = {name: layer["kernel"] for name, layer in v["params"].items()}
        x = jax.nn.relu(own.conv(x, k["a"]))
        x = own.conv(jax.nn.relu(own.conv(x, k["b"])), k["c"])
        return jax.nn.relu(x).mean((1, 2)) @ k["out"]

    return own.task_of(fn, own.kernels(shapes), (8, 8, 4))


def by_layer(tree):
    return {path.split("/")[1]: leaf for path, leaf in own.by_path(tree).items()}


def densities(pruned):
    return {name: float(mask.mean()) for name, mask in by_layer(pruned.masks).items()}


def test_the_roofline_of_conv5_is_the_papers():
    """Checks [11] P3."""
    conv5 = Work(macs=74_760_192, activations=432_640, weights=1_769_472)
    np.testing.assert_allclose(conv5.useful(XEON), (0.01974, 1 / 3), rtol=1e-3)
    np.testing.assert_allclose(conv5.useful(ATOM), (0.01085, 1 / 1.2), rtol=1e-3)
    for machine, x, speedup in (
        (XEON, 0.09, 3.704), (ATOM, 0.09, 9.259), (XEON, 1, 0.333), (ATOM, 1, 0.833),
        (XEON, 0.01, 18.13),
    ):  # fmt: skip
        assert conv5.speedup(machine, x) == pytest.approx(speedup, rel=2e-3)


def test_layers_that_do_not_pay_stay_dense_and_the_others_end_in_their_range():
    task = mixed()
    ranges = STAGE.ranges(task)
    assert {path.split("/")[1] for path in ranges} == {"a", "c"}
    for by in ("l1", "surgery"):
        recipe = guided_sparsity(
            Budget(density=0.5), None, TUNE, machine=MACHINE, images=16, by=by, gamma=0.0
        )
        pruned = own.run(recipe, task)
        kept = by_layer(pruned.masks)
        assert kept["b"].all()
        assert kept["out"].all()
        for path, (least, most) in ranges.items():
            assert least <= kept[path.split("/")[1]].sum() <= most
        total = sum(mask.size for mask in kept.values())
        assert sum(mask.sum() for mask in kept.values()) == pytest.approx(total / 2, abs=1)
        for name, value in by_layer(pruned.variables).items():
            assert not value[~kept[name]].any()


def test_a_budget_above_the_useful_densities_is_met_from_below():
    """x_max is 0.8: nothing is kept beyond it, whatever the budget allows."""
    stage = dataclasses.replace(STAGE, budget=Budget(density=0.95))
    task = mixed()
    pruned, _ = stage(Pruned(task.init(KEY), None), task, KEY)
    kept = densities(pruned)
    assert (kept["b"], kept["out"]) == (1, 1)
    assert max(kept["a"], kept["c"]) <= 0.8


def test_refused_before_training_where_nothing_pays_or_the_ranges_keep_too_much():
    task = mixed()
    with pytest.raises(errors.ArgumentError, match="no layer of made can be faster sparse"):
        dataclasses.replace(STAGE, machine=(1e9, 1e3, 1.2)).check(task)
    # 64 + 48 of 1,264 weights are of layers that do not pay.
    with pytest.raises(errors.BudgetError, match="cannot be met"):
        dataclasses.replace(STAGE, budget=Budget(density=0.05)).check(task)
    for wrong in ({"machine": "pentium"}, {"machine": (1.0, 2.0)}, {"machine": (1.0, 2.0, 0.0)},
                  {"by": "l2"}, {"images": 0}, {"looks": 0}, {"strength": -1.0},
                  {"strength": float("nan")}, {"tolerance": 1.0}):  # fmt: skip
        with pytest.raises(errors.ArgumentError):
            dataclasses.replace(STAGE, **wrong)
    with pytest.raises(errors.ArgumentError, match="share"):
        guided_sparsity(Budget(density=0.5), None, TUNE, share=1.0)


def test_a_named_machine_is_its_numbers():
    task = mixed()
    many = dataclasses.replace(STAGE, images=4096)
    same = [dataclasses.replace(many, machine=m).ranges(task) for m in ("atom", ATOM)]
    assert same[0] == same[1]
    # On a machine with more arithmetic for a byte these small layers are all bound by memory.
    with pytest.raises(errors.ArgumentError, match="2150000000000"):
        dataclasses.replace(many, machine="xeon").ranges(task)


# ---- the transformation -------------------------------------------------------------------------


def stepped(tx, params, steps, gradient=None):
    """(parameters, state) after each of so many steps without a gradient, or with a constant."""
    still = jax.tree.map(jnp.zeros_like, params) if gradient is None else gradient
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(still, state, params)
        params = optax.apply_updates(params, updates)
        yield params, state


def test_a_leaf_at_x_min_keeps_its_zeros_and_the_others_go_on():
    w = jnp.asarray(np.random.default_rng(0).permutation(np.linspace(0.005, 1, 200)), jnp.float32)
    params = {"first": w, "never": w, "on": w}
    useful = {"first": np.array([0.7, 0.9]), "never": None, "on": np.array([0.1, 0.9])}
    tx = sparsify.within_range(optax.sgd(0.1, 0.9), useful, 0.1, strength=0.1, every=1, begin=99)
    history = list(stepped(tx, params, 60))
    x = {n: [float(jnp.mean(p[n] != 0)) for p, _ in history] for n in params}
    # A step takes 0.01, two weights of 200.
    assert x["first"][-1] == pytest.approx(0.7, abs=0.011)
    assert x["on"][-1] == pytest.approx(0.4, abs=0.011)
    np.testing.assert_array_equal(history[-1][0]["never"], w)
    stopped = [step for step, (_, state) in enumerate(history) if state.phase["first"] == 1]
    # From then on nothing moves it, without a gradient.
    np.testing.assert_array_equal(history[stopped[0]][0]["first"], history[-1][0]["first"])
    np.testing.assert_array_equal(masks_of(history[-1][1])["first"], history[-1][0]["first"] != 0)


def test_held_zeros_stand_against_gradients_and_momentum():
    params = {"w": jnp.array([0.05, 0.1, 1.0, 2.0])}
    tx = sparsify.within_range(
        optax.sgd(0.1, 0.9), {"w": np.array([0.5, 0.9])}, 0.1, strength=1.0, every=2
    )
    history = list(stepped(tx, params, 8, {"w": jnp.array([0.01, 0.01, -1.0, 1.0])}))
    assert all((p["w"][:2] == 0).all() for p, _ in history[2:])
    # Weights that are left have no penalty any more: the step is that of momentum SGD.
    velocity = np.float64([sum(0.9**k for k in range(n + 1)) for n in range(8)])
    moved = np.diff([float(p["w"][2]) for p, _ in history])
    np.testing.assert_allclose(moved[3:], 0.1 * velocity[4:], rtol=1e-4)


@pytest.mark.parametrize("by", ["l1", "surgery"])
def test_a_leaf_that_settles_above_x_max_becomes_dense_again(by):
    w = jnp.array([0.01, 1.0, 2.0, 3.0])
    params, useful = {"w": w}, {"w": np.array([0.1, 0.7])}
    inner, strength = optax.sgd(0.1), 0.05
    if by == "surgery":
        ones = {"w": jnp.ones(4, bool)}
        # t = mu - 2 sd < 0.1, and c is such that one weight goes
        inner, strength = sparsify.dynamic_surgery(inner, ones, -1.2, KEY, gamma=0, stop=99), 0.0
    tx = sparsify.within_range(
        inner, useful, 0.1, strength=strength, every=2, begin=6, tolerance=0.01
    )
    phases, values = [], []
    for p, state in stepped(tx, params, 10):
        phases.append(int(state.phase["w"]))
        values.append(np.asarray(p["w"]))
    assert phases == [0] * 5 + [2] * 5
    assert values[4][0] == 0
    np.testing.assert_array_equal(values[5:], [w] * 5)
    assert masks_of(state)["w"].all()


def test_surgery_revises_no_leaf_that_is_over():
    """With masks that are fixed, weights above the threshold would come back, and do not."""
    w = jnp.array([0.1, 0.2, 1.0, 2.0])
    surgery = sparsify.dynamic_surgery(
        optax.sgd(1.0), {"w": jnp.ones(4, bool)}, -0.5, KEY, gamma=0, stop=99
    )
    push = {"w": jnp.array([-0.3, 0.0, 0.0, 0.0])}
    ends = {}
    for least in (0.1, 0.6):
        tx = sparsify.within_range(surgery, {"w": np.array([least, 0.9])}, 1.0, every=1)
        state = tx.init({"w": w})
        params = apply_masks({"w": w}, masks_of(state))
        for _ in range(6):
            updates, state = tx.update(push, state, params)
            params = optax.apply_updates(params, updates)
        ends[least] = (params["w"][0] != 0, float(jnp.mean(params["w"] != 0)))
    assert ends[0.1] == (True, 0.75)
    assert ends[0.6] == (False, 0.5)


def test_numbers_out_of_range_are_refused():
    for wrong in ({"every": 0}, {"begin": -1}, {"strength": -1.0}, {"tolerance": 1.0}):
        with pytest.raises(errors.ArgumentError):
            sparsify.within_range(optax.sgd(1.0), None, 0.1, **{"every": 1, **wrong})
    tx = sparsify.within_range(optax.sgd(1.0), {"w": None}, 0.1, every=1)
    with pytest.raises(errors.ArgumentError, match="parameters"):
        tx.update({"w": jnp.ones(1)}, tx.init({"w": jnp.ones(1)}))


def test_layers_become_dense_again_while_training_unless_the_budget_needs_them():
    """A penalty that takes hardly anything leaves every density at 1: above x_max, and steady."""
    task = mixed()
    for density, whole in ((1.0, True), (0.5, False)):
        stage = dataclasses.replace(STAGE, budget=Budget(density=density), strength=0.0)
        learner = stage.learner(Pruned(task.init(KEY), None), task, KEY)
        state = learner.init()
        for _, batch in zip(range(learner.steps), learner.batches(0)):
            state, _ = learner.step(state, batch)
        assert {int(n) for n in jax.tree.leaves(state.opt_state.phase)} == {2}
        assert (min(densities(learner.finish(state)).values()) == 1) == whole


def test_it_is_a_stage_of_the_room():
    assert stages.PruneWithinRange is PruneWithinRange
    assert Net(mixed()).groups.layers.keys() >= STAGE.ranges(mixed()).keys()
    assert isinstance(STAGE.machine, Machine)

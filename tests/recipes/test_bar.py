"""Hard-concrete gates, the barrier at a shrinking budget, and that it is never overshot."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import errors, recipes
from jprune.base import Budget, Pruned
from jprune.learners import Limits, barrier, hard_concrete, transition
from jprune.learners.hard_concrete import chance_open, sampled, settled_gate
from jprune.recipes import Train
from jprune.recipes.bar import bar
from jprune.stages.hard_concrete import ByBarrier, OwnSteps
from jprune.stages.unit_gates import CutGates, Gated, TrainGates
from jprune.train.net import Net
from tests.contracts import own
from tests.toys import drawn, toy_task

KEY = jax.random.key(24)
UNITS = "params/first"


def small(examples=64):
    """A dense net of twelve units whose labels are those of three directions."""
    rng = np.random.default_rng(2)
    images = rng.uniform(size=(examples, 6)).astype(np.float32)
    labels = images[:, :3].argmax(-1).astype(np.int32)
    fn = lambda v, x: jax.nn.relu(x @ v["params"]["first"]) @ v["params"]["second"]
    params = own.draw({"first": (6, 12), "second": (12, 3)}, seed=1)
    return own.task_of(fn, params, (6,), images=images, labels=labels)


@functools.cache
def trained():
    """Eighty epochs under the barrier, on a dense net that has learned a little."""
    task = small()
    dense, _ = Train(20, 0.1, 16)(Pruned(task.init(KEY), None), task, KEY)
    dense = dense._replace(saved={"dense": dense.variables})
    train = Train(60, 0.05, 16, "constant", distill=0.9)
    stage = TrainGates(train, Budget(density=0.5), Gated(), ByBarrier())
    learner = stage.learner(dense, task, KEY)
    state, seen = learner.init(), []
    for batch in itertools.islice(learner.batches(0), learner.steps):
        state, metrics = learner.step(state, batch)
        seen.append({name: float(value) for name, value in metrics.items()})
    return task, learner.finish(state), seen


def test_the_barrier():
    """Checks [24] P1."""
    for cost, a, b, value in ((50, 0, 100, 0.5), (90, 0, 100, 8.1), (60, 20, 100, 0.5)):
        np.testing.assert_allclose(barrier(cost, a, b), value, rtol=1e-6)
    for cost in (0.0, 19.0, 20.0):
        assert float(barrier(cost, 20.0, 100.0)) == 0
    for cost in (100.0, 120.0):
        assert float(barrier(cost, 20.0, 100.0, cap=7e8)) == pytest.approx(7e8)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 0.9), st.floats(0.05, 0.5), st.floats(0, 1), st.floats(0, 1))
def test_the_barrier_rises_and_has_no_gradient_that_is_nan(a, width, one, two):
    b = a + width
    low, high = sorted((one, two))
    f = [float(barrier(cost, a, b)) for cost in (low, high)]
    assert 0 <= f[0] <= f[1] * (1 + 1e-5)
    assert np.isfinite(float(jax.grad(lambda v: barrier(v, a, b))(high)))


def test_the_budget_shrinks_along_a_sigmoid():
    """Checks [24] P2; at its ends all of the net and the goal."""
    known = {0: 0, 0.1: 0.01144658, 0.25: 0.07010372, 0.5: 0.5, 0.75: 0.92989628, 1: 1}
    with jax.enable_x64(True):
        for progress, value in known.items():
            np.testing.assert_allclose(transition(progress), value, atol=5e-9)
        limits = Limits(0.4)
        np.testing.assert_allclose(limits.allowed(0.0), 1.01)
        np.testing.assert_allclose(limits.allowed(1.0), 0.4)
        np.testing.assert_allclose(limits.comfortable(), 0.4 - 1e-4 * 1.01)


def test_the_distribution_of_gates():
    """Checks [24] P3; and where a settled gate is exactly 0."""
    with jax.enable_x64(True):
        phi = jnp.array([-2.0, 0.0, 2.0])
        np.testing.assert_allclose(
            chance_open(phi), [0.40097526, 0.83182218, 0.97336666], rtol=1e-7
        )
        u = jax.random.uniform(KEY, (1_000_000, 1), jnp.float64)
        frequency = (sampled(phi, u) > 0).mean(0)
        np.testing.assert_allclose(frequency, chance_open(phi), atol=0.002)
        edge = math.log(1 / 11)
        np.testing.assert_allclose(edge, -2.39789527, atol=1e-8)
        assert float(settled_gate(jnp.array(edge - 1e-9))) == 0 < float(settled_gate(edge + 1e-9))
        assert float(settled_gate(jnp.array(0.0))) == pytest.approx(0.5, abs=1e-12)


def test_the_penalty_is_the_expected_cost_times_the_barrier():
    """Its gradient comes through the probabilities alone, by differences in float64."""
    with jax.enable_x64(True):
        weights = {"a": jnp.array([3.0, 1.0]), "b": jnp.array([2.0])}
        cost = lambda gates: sum((weights[n] * gates[n]).sum() for n in weights) / 6
        gating = hard_concrete({"a": 2, "b": 1}, cost, Limits(0.5), 10, 0.3)
        phi = {"a": jnp.array([0.3, -3.0]), "b": jnp.array([1.0])}
        carried = {"step": jnp.array(4)}
        b = float(Limits(0.5).allowed(0.5))
        f = barrier(5 / 6, Limits(0.5).comfortable(), b)  # the second gate is closed
        assert b < 5 / 6
        expected = lambda phi: cost({n: chance_open(p) for n, p in phi.items()})
        found, slope = jax.value_and_grad(gating.penalty)(phi, carried, {})
        np.testing.assert_allclose(found, 0.3 * expected(phi) * f)
        by_hand = jax.tree.map(lambda g: 0.3 * f * g, jax.grad(expected)(phi))
        jax.tree.map(np.testing.assert_allclose, slope, by_hand)


def test_one_gate_of_a_group_never_closes_and_the_step_is_counted():
    gating = hard_concrete({"a": 3}, lambda g: g["a"].mean(), Limits(0.5), 10, 0.1, {"a": 2})
    phi, carried = gating.after({"a": jnp.array([-5.0, -3.0, -4.0])}, gating.start, {})
    np.testing.assert_array_equal(phi["a"], [-5, 0, 0])
    assert int(carried["step"]) == 1
    seen = [gating.values(phi, carried, jax.random.key(n))["a"] for n in range(2)]
    assert seen[0].shape == (3,)
    assert not np.array_equal(*seen)


def test_gates_step_by_themselves():
    """Plain steps with a limit; the optimizer of the weights sees no gradient of theirs."""
    tx = OwnSteps(10.0, 0.2)(None, lambda step: 1.0, KEY)(optax.adam(0.1))
    tree = {"net": jnp.ones(2), "gates": jnp.zeros(3)}
    gradient = {"net": jnp.array([1.0, -1.0]), "gates": jnp.array([0.01, -5.0, 1e10])}
    updates, _ = tx.update(gradient, tx.init(tree), tree)
    np.testing.assert_allclose(updates["gates"], [-0.1, 0.2, -0.2], rtol=1e-6)
    np.testing.assert_allclose(updates["net"], [-0.1, 0.1], rtol=1e-4)


def test_the_cost_follows_the_budget_down_and_ends_below_it():
    """What the method must show; most of the closing is the training's own."""
    task, net, seen = trained()
    spent, allowed = (np.array([entry[name] for entry in seen]) for name in ("spent", "allowed"))
    assert spent[0] == 1
    assert (spent > allowed + 1e-6).mean() < 0.2
    assert spent[-1] <= 0.5 + 1e-6
    pruned, records = CutGates(Budget(density=0.5), Gated(), closed="gone")(net, task, KEY)
    assert 0.3 < records[0]["metrics"]["density"] <= 0.5
    assert records[0]["metrics"]["settled"] <= 1 / 12 + 1e-6
    gates = np.asarray(net.extra["gates"][UNITS])
    np.testing.assert_array_equal(pruned.masks[UNITS], gates > 0)
    assert seen[-1]["accuracy"] > 0.6


def test_a_net_that_is_above_its_budget_is_cut_to_it():
    """However the gates stand, it is not overshot, and what is closed does not come back."""
    task = toy_task()
    net, variables = Net(task), drawn(task)
    rng = np.random.default_rng(0)
    for low in (0.0, -4.0):
        phi = {name: rng.uniform(low, 3, size) for name, size in net.groups.sizes.items()}
        gates = {name: np.asarray(settled_gate(jnp.array(p))) for name, p in phi.items()}
        begun = Pruned(variables, None, {"gates": gates, "scores": phi})
        gated = Gated(residual=True)
        pruned, _ = CutGates(Budget(macs=0.6), gated, closed="gone")(begun, task, KEY)
        assert float(net.cost(pruned.masks).macs) <= 0.6 * float(net.cost({}).macs)
        for name, mask in pruned.masks.items():
            assert not (mask & (gates[name] == 0)).any()


@pytest.mark.parametrize("measure", ["budget", "volume"])
@pytest.mark.parametrize("kind", ["macs", "params", "density"])
def test_what_is_spent_is_what_the_cost_model_counts(measure, kind):
    task = toy_task()
    net = Net(task)
    budget = Budget(**{kind: 0.6})
    gating = ByBarrier(measure=measure).gating(task, dict(net.groups.sizes), budget, 10)
    masks = {name: np.arange(size) % 3 > 0 for name, size in net.groups.sizes.items()}
    phi = {name: jnp.where(mask, 1.0, -4.0) for name, mask in masks.items()}
    spent = float(gating.watched(phi, gating.start, {})["spent"])
    if measure == "volume":  # conv1 and conv3 make the stream's maps, conv2 the others, all 4 x 4
        areas = {"params/conv1/kernel": 2 * 16, "params/conv2/kernel": 16}
        parts = [
            (areas[name] * mask.sum(), areas[name] * mask.size) for name, mask in masks.items()
        ]
        expected = np.divide(*np.sum(parts, axis=0))
    elif kind == "density":
        expected = sum(mask.sum() for mask in masks.values()) / 20
    else:
        expected = float(getattr(net.cost(masks), kind)) / float(getattr(net.cost({}), kind))
    assert spent == pytest.approx(expected, rel=1e-5)


def test_the_recipe_distils_from_the_dense_net():
    short = Train(8, 0.05, 16)
    task = small()
    recipe = bar(Budget(density=0.5), short, short)
    stage = next(stage for stage in recipe if stage.name == "gates")
    assert (stage.train.distill, stage.train.temperature) == (0.9, 4.0)
    pruned, _ = recipes.run(recipe, Pruned(task.init(KEY), None), task, KEY)
    assert 1 <= int(pruned.masks[UNITS].sum()) <= 6
    kernel = np.asarray(pruned.variables["params"]["first"])
    assert not kernel[:, ~pruned.masks[UNITS]].any()


def test_what_cannot_be_is_refused():
    for options, says in (
        ({"measure": "time"}, "write one of budget, volume"),
        ({"share": 1.0}, r"share is in \(0, 1\)"),
        ({"strength": -1.0}, "strength is 0 or more"),
        ({"slope": 0.0}, "slope is above 0"),
        ({"gate_rate": -1.0}, "gate_rate is above 0"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            bar(Budget(macs=0.5), None, Train(1, 0.1), **options)
    with pytest.raises(errors.ArgumentError, match=r"the goal is in \(0, 1\]"):
        hard_concrete({"a": 3}, lambda gates: 1.0, Limits(0.0), 10, 0.1)
    with pytest.raises(errors.ArgumentError, match="the strength is 0 or more"):
        hard_concrete({"a": 3}, lambda gates: 1.0, Limits(0.5), 10, -0.1)

"""Gates on a net that was never trained, the shape that they find, and its training anew."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import errors, gated, recipes
from jprune.base import Budget, Pruned
from jprune.learners import gated_start, gated_task, mean_gates, mean_penalty
from jprune.learners.soft_masks import scaled
from jprune.recipes import Train
from jprune.recipes.from_scratch import from_scratch
from jprune.sparsify import box
from jprune.stages.mean_gates import ToMean
from jprune.stages.reinitialise import epochs_of
from jprune.stages.unit_gates import CutGates, Gated, TrainGates
from jprune.train.evaluate import mean_quality
from jprune.train.net import Net
from tests.contracts import own
from tests.toys import drawn, equal, toy_task

KEY = jax.random.key(51)
STREAM, INNER = "params/conv1/kernel", "params/conv2/kernel"


def telling(examples=64):
    """Three units that see the label, five that see noise, in a net that nobody has trained."""
    rng = np.random.default_rng(1)
    labels = np.arange(examples, dtype=np.int32) % 3
    images = rng.uniform(size=(examples, 8)).astype(np.float32)
    images[:, :3] = np.eye(3)[labels]
    second = rng.normal(size=(8, 3)).astype(np.float32)
    second[:3] = 2 * np.eye(3)
    fn = lambda v, x: jax.nn.relu(x @ v["params"]["first"]) @ v["params"]["second"]
    params = {"first": np.eye(8, dtype=np.float32), "second": second}
    return own.task_of(fn, params, (8,), images=images, labels=labels)


@functools.cache
def tiny():
    task = toy_task()
    return task, drawn(task)


def adam(epochs, rate=0.05, batch=16):
    return Train(epochs, rate, batch, "constant", weight_decay=0.0, optimizer="adam")


def test_the_penalty_and_its_slope():
    """Checks [51] P1; and by differences, of the absolute value's two sides."""
    with jax.enable_x64(True):
        gates = {"a": jnp.array([1.0, 0.5, 0.0]), "b": jnp.array([0.3])}
        value, slope = jax.value_and_grad(mean_penalty)(gates, 0.5, 0.5)
        np.testing.assert_allclose(value, 0.00125, rtol=1e-9)
        np.testing.assert_allclose(slope["a"][:2], -0.0125, rtol=1e-9)
        np.testing.assert_allclose(slope["b"], -0.0125, rtol=1e-9)
        for sign in (1, -1):
            at = lambda h, sign=sign: mean_penalty({"a": sign * jnp.array([h, 0.2])}, 0.5, 0.5)
            difference = (at(0.3 + 1e-6) - at(0.3 - 1e-6)) / 2e-6
            np.testing.assert_allclose(difference, 0.5 * 2 * (0.25 - 0.5) / 2, rtol=1e-6)


def test_the_budget_training_is_as_long_as_the_dense_one_in_macs():
    """Checks [51] P2."""
    assert epochs_of(160, 1 / (1 - 0.5)) == 320
    assert epochs_of(160, 1 / (1 - 0.7)) == 533
    recipe = from_scratch(Budget(macs=0.5), Train(160, 0.1), Train(1, 0.1), same="macs")
    task, variables = tiny()
    net = Net(task)
    masks = {STREAM: np.arange(8) < 8, INNER: np.arange(12) < 6}
    ratio = float(net.cost({}).macs) / float(net.cost(masks).macs)
    assert recipe[-1].settled(Pruned(variables, masks), task).epochs == int(160 * ratio)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), min_size=5, max_size=5), st.integers(0, 3))
def test_a_box_ends_steps_on_its_border_and_leaves_the_largest_open(change, floor):
    old = np.array([0.0, 0.1, 0.5, 0.9, 1.0], np.float32)
    tx = box(floors={"a": floor})
    updates, _ = tx.update({"a": jnp.array(change)}, tx.init({"a": old}), {"a": jnp.array(old)})
    after = old + np.asarray(updates["a"])
    assert after.min() >= 0
    assert after.max() <= 1 + 1e-6
    moved = old + np.array(change, np.float32)
    clipped = np.clip(moved, 0, 1)
    # Those that differ from the clipped ones would have closed, and stay where they were.
    other = ~np.isclose(after, clipped, atol=1e-6)
    assert other.sum() <= floor
    np.testing.assert_array_equal(after[other], old[other])
    assert (clipped[other] == 0).all()
    assert (after[~other][moved[~other] <= 0] == 0).all()
    assert (after > 0).sum() >= min(floor, (old > 0).sum())
    with pytest.raises(errors.ArgumentError, match="box needs the parameters"):
        tx.update({"a": jnp.array(change)}, tx.init({"a": old}))
    with pytest.raises(errors.ArgumentError, match="low is below high"):
        box(1.0, 0.0)


def test_gates_in_the_weights_are_gates_on_what_is_read():
    """Values, statistics and slopes of a training step, against the engine's own gates."""
    task, variables = tiny()
    groups, x = Net(task).groups, jax.random.normal(KEY, (5, *task.example.shape[1:]))
    gates = {STREAM: jnp.linspace(0.2, 1, 8), INNER: jnp.linspace(0, 1, 12)}
    gating = mean_gates({STREAM: 8, INNER: 12}, 0.5)
    ours = gated_task(task, groups, gating)
    begun = {**gated_start(gating, variables, KEY), "gates": gates}
    (out, _, _), (new, _) = jax.jit(ours.train_fn)(begun, x, KEY)
    run = gated(task.train_fn, groups)
    theirs = jax.jit(run)(variables, gates, x, KEY)
    np.testing.assert_allclose(out, theirs[0], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new, theirs[1])
    total = lambda gates: ours.train_fn({**begun, "gates": gates}, x, KEY)[0][0].sum()
    through = lambda gates: run(variables, gates, x, KEY)[0].sum()
    slopes = (jax.jit(jax.grad(total))(gates), jax.jit(jax.grad(through))(gates))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *slopes)
    params, rest = ours.split(begun)
    assert {*params} == {"gates"}  # nothing else is trained
    assert equal(ours.merge(params, rest), begun)


def test_the_units_that_tell_are_found_and_no_weight_moves():
    task = telling()
    begun = Pruned(task.init(KEY), None)
    stage = TrainGates(adam(20), Budget(density=3 / 8), Gated(), ToMean(0.3, 0.5))
    trained, _ = stage(begun, task, KEY)
    assert equal(trained.variables, begun.variables)
    gates = np.asarray(trained.extra["gates"]["params/first"])
    assert gates[:3].min() > gates[3:].max() + 0.3
    assert (gates[3:] == 0).any()
    pruned, records = CutGates(Budget(density=3 / 8), Gated())(trained, task, KEY)
    np.testing.assert_array_equal(pruned.masks["params/first"], np.arange(8) < 3)
    assert records[0]["metrics"]["density"] == 3 / 8
    rows = np.asarray(pruned.variables["params"]["second"])  # gates are folded into the readers
    np.testing.assert_allclose(rows[:3], gates[:3, None] * begun.variables["params"]["second"][:3])
    assert not rows[3:].any()


def test_the_best_state_with_few_enough_open_gates_is_taken():
    """All ends of epochs, looked at one by one."""
    task, variables = tiny()
    stage = TrainGates(adam(8, 0.1), Budget(macs=0.6), Gated(), ToMean(0.3, 2.0), keep=0.6)
    learner = stage.learner(Pruned(variables, None), task, KEY)
    state, ends = learner.init(), []
    for number, batch in enumerate(itertools.islice(learner.batches(0), learner.steps), 1):
        state, _ = learner.step(state, batch)
        if number % learner.epoch == 0:
            gates = np.asarray(state.params["gates"][INNER]).copy()
            ends.append((mean_quality(task, learner.variables(state), "validation"), gates))
    few = [(quality, gates) for quality, gates in ends if (gates > 0).mean() <= 0.6]
    assert 0 < len(few) < len(ends) == 8
    best = max(few, key=lambda pair: pair[0])[1]
    np.testing.assert_array_equal(learner.finish(state).extra["gates"][INNER], best)
    assert not np.array_equal(best, ends[-1][1])  # it was worth looking


def test_residual_sums_have_gates_where_nothing_else_meets_the_budget():
    task, _ = tiny()
    for residual, budget, names in (
        (None, Budget(macs=0.6), {INNER}),
        (None, Budget(density=0.3), {INNER, STREAM}),
        (True, Budget(macs=0.6), {INNER, STREAM}),
    ):
        assert {*Gated(residual=residual).sizes(task, budget)} == names
    with pytest.raises(errors.BudgetError):
        Gated(residual=False).check(task, Budget(density=0.3))
    floors = {INNER: 12}
    with pytest.raises(errors.ArgumentError, match="Write residual=true"):
        Gated(residual=False).sizes(task, Budget(macs=0.6, floors=floors))
    with pytest.raises(errors.FrozenError, match="frozen: the budget's floor leaves it whole"):
        Gated(gates="*conv2*").sizes(task, Budget(macs=0.6, floors=floors))
    with pytest.raises(errors.ArgumentError, match="names nothing"):
        Gated(gates="conv7").sizes(task, Budget(macs=0.6))


def test_a_widened_net_is_pruned_to_a_fraction_of_the_narrow_one():
    task, variables = tiny()
    net, gates = Net(task), {STREAM: 8, INNER: 12}
    gated_ = Gated(residual=True, widened=2.0)
    narrow = net.cost({STREAM: 4, INNER: 6})
    walled = gated_.walled(task, Budget(macs=0.9), gates)
    np.testing.assert_allclose(walled.value, 0.9 * narrow.macs / net.cost({}).macs)
    assert gated_.walled(task, Budget(density=0.8), gates).value == 0.4
    scores = {name: np.random.default_rng(0).uniform(size=n) for name, n in gates.items()}
    begun = Pruned(variables, None, {"gates": scores, "scores": scores})
    pruned, _ = CutGates(Budget(macs=0.9), gated_)(begun, task, KEY)
    macs = float(net.cost(pruned.masks).macs)
    assert 0.7 * narrow.macs < macs <= 0.9 * narrow.macs


def test_the_recipe_trains_what_it_found_from_new_values():
    short = Train(1, 0.05, 16, max_steps=3)
    recipe = from_scratch(Budget(density=0.5), short, short)
    pruned, records = recipes.run(recipe, Pruned(telling().init(KEY), None), telling(), KEY)
    seen = {entry["stage"]: entry["metrics"] for entry in records}
    assert seen["prune"]["density"] == 0.5
    assert seen["gates"]["mean_gate"] < 1
    kernel = np.asarray(pruned.variables["params"]["first"])
    assert not kernel[:, ~pruned.masks["params/first"]].any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": 1.0}, r"ratio is a number in \[0, 1\)"),
        ({"strength": -1.0}, "strength is 0 or more"),
        ({"gate_rate": 0.0}, "gate_rate is a number above 0"),
        ({"widened": 0.5}, "1 or more"),
        ({"same": "time"}, "same is epochs or macs"),
    ],
)
def test_what_cannot_be_is_refused(options, says):
    with pytest.raises(errors.ArgumentError, match=says):
        from_scratch(Budget(macs=0.5), Train(1, 0.1), Train(1, 0.1), **options)
    with pytest.raises(errors.ArgumentError, match="pulled to the ratio"):
        mean_gates({"a": 3}, ratio=2.0)
    with pytest.raises(errors.ArgumentError, match="nobody knows how long"):
        from_scratch(Budget(macs=0.5), None, Train(1, 0.1))


def test_gates_that_are_not_finite_stop_the_training():
    task, variables = tiny()
    broken = task._replace(loss=lambda out, batch: task.loss(out, batch) / 0.0)
    stage = TrainGates(adam(1), Budget(macs=0.6), Gated(), ToMean())
    with pytest.raises(errors.DivergenceError, match="training of gates diverged"):
        stage(Pruned(variables, None), broken, KEY)
    with pytest.raises(errors.ArgumentError, match="Put TrainGates before CutGates"):
        CutGates(Budget(macs=0.6), Gated())(Pruned(variables, None), task, KEY)


def test_gates_fold_to_the_net_that_is_evaluated():
    task, variables = tiny()
    gates = {INNER: jnp.linspace(0, 1, 12)}
    begun = Pruned(variables, None, {"gates": gates, "scores": gates})
    pruned, _ = CutGates(Budget(macs=0.98), Gated())(begun, task, KEY)
    x = jax.random.normal(KEY, (5, *task.example.shape[1:]))
    folded = scaled(Net(task).groups, gates, {}, variables)
    np.testing.assert_allclose(task.fn(pruned.variables, x), task.fn(folded, x), atol=1e-5)

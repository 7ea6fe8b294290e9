"""Global sparse momentum [31]: the active weights of a step, passive decay, a cut without loss."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import blocks, errors, recipes
from jprune.base import Budget, Pruned
from jprune.sparsify import active_gradients, contraction
from jprune.stages import CutPassive, Train, TrainActive
from jprune.train.net import Net
from tests.contracts import own

KEY = own.KEY
SHORT = Train(40, 0.05, 16, schedule="constant", max_steps=80, name="finetune")


def dense_layers():
    """Three dense layers that learn which of three inputs is largest."""
    params = own.kernels({"a": (6, 12), "b": (12, 14), "c": (14, 3)}, bias=True)

    def fn(v, x):
        for name in "abc":
            x = x @ v["params"][name]["kernel"] + v["params"][name]["bias"]
            x = x if name == "c" else jnp.maximum(x, 0)
        return x

    images = np.random.default_rng(1).normal(size=(64, 6)).astype(np.float32)
    labels = images[:, :3].argmax(1).astype(np.int32)
    return own.task_of(fn, params, (6,), images=images, labels=labels)


@pytest.fixture(scope="module")
def net():
    task = dense_layers()
    start = Pruned(task.init(KEY), None)
    usual = Train(40, 0.1, 16, max_steps=100)
    return task, usual(start, task, KEY)[0]


def step_of(count, size, beta=0.9, alpha=0.1, eta=0.01):
    """The whole step for one kernel [size, 1], and its blocks."""
    params = {"w": jnp.ones((size, 1))}
    of = blocks.weights(jprune.trace(lambda v, x: x @ v["w"], params, jnp.ones(size)))
    return optax.chain(
        active_gradients(of, count),
        optax.add_decayed_weights(eta),
        optax.trace(beta),
        optax.scale(-alpha),
    )


def test_two_steps_by_hand(float64):
    tx = step_of(2, 4)
    params = {"w": jnp.array([1.0, -2.0, 0.1, 0.5])[:, None]}
    state = tx.init(params)
    expected = [
        ([0.1, 0.01, 5, -0.4], [0.01, -0.02, 5.001, -0.395], [0.999, -1.998, -0.4001, 0.5395]),
        ([0.1, 0.01, 0, -0.4], [0.11899, -0.03798, 4.496899, -0.750105],
         [0.987101, -1.994202, -0.8497899, 0.6145105]),
    ]  # fmt: skip
    for gradient, momentum, weights in expected:
        updates, state = tx.update({"w": jnp.array(gradient)[:, None]}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(state[2].trace["w"][:, 0], momentum, rtol=1e-6)
        np.testing.assert_allclose(params["w"][:, 0], weights, rtol=1e-6)
        assert int(state[0].active["w"]) == 2


def test_a_passive_weight_decays_through_the_momentum(float64):
    """Weight 0 is never active. Its gradient is large, so that a mask that leaks would show."""
    tx = step_of(1, 2, eta=5e-4)
    params = {"w": jnp.array([[1.0], [1e6]])}

    def step(carry, _):
        params, state = carry
        updates, state = tx.update({"w": jnp.array([[3.0], [4.0]])}, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["w"][0, 0]

    _, path = jax.lax.scan(step, (params, tx.init(params)), None, 1000)
    np.testing.assert_allclose(path[:3], [0.99995, 0.9998550025, 0.999719512], rtol=1e-8)
    np.testing.assert_allclose(path[-1], 0.607841025, rtol=1e-6)
    np.testing.assert_allclose(path[-1] / path[-2], 0.99949773, rtol=1e-6)
    assert abs(float(path[-1]) - (1 - 0.1 * 5e-4) ** 1000) > 0.3
    rates = np.full(1000, 0.1)
    # `contraction` takes the largest of the last tenth, step 900 being the first of it.
    np.testing.assert_allclose(contraction(rates, 0.9, 5e-4, nesterov=False), path[900], rtol=1e-6)


def test_the_count_is_of_all_layers_together(net):
    """And biases have their whole gradient."""
    task, start = net
    params = start.variables["params"]
    of = blocks.weights(Net(task).groups)
    total = 6 * 12 + 12 * 14 + 14 * 3
    gradients = own.draw(jax.tree.map(jnp.shape, params), seed=5)
    for ratio in (3, 7.5, 50):
        count = int(total / ratio)
        tx = active_gradients(of, count)
        updates, state = jax.jit(tx.update)(gradients, tx.init(params), params)
        passed = {n: int((np.asarray(layer["kernel"]) != 0).sum()) for n, layer in updates.items()}
        assert sum(passed.values()) == count
        assert [*passed.values()] == [int(each) for each in state.active.values()]
        parts = {passed[name] / params[name]["kernel"].size for name in passed}
        assert len(parts) > 1
        for name, layer in updates.items():
            np.testing.assert_array_equal(layer["bias"], gradients[name]["bias"])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_chosen_are_the_largest_whatever_the_ties(seed, count):
    """Against a sort by NumPy, with zeros and equal scores; never more than the count."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(-2, 3, (12, 1)).astype(np.float32)
    gradient = rng.integers(-2, 3, (12, 1)).astype(np.float32)
    tx = step_of(count, 12, beta=0.0, alpha=1.0, eta=0.0)
    updates, state = tx.update(
        {"w": jnp.asarray(gradient)}, tx.init({"w": weights}), {"w": weights}
    )
    order = np.argsort(-np.abs(gradient * weights)[:, 0], kind="stable")[:count]
    right = np.zeros(12)
    right[order] = -gradient[order, 0]
    np.testing.assert_array_equal(np.asarray(updates["w"])[:, 0], right)
    assert int(state[0].active["w"]) == count


def test_the_final_cut_changes_nothing(net):
    """Passive weights have decayed, without a mask: what is cut is next to 0, and outputs stay."""
    task, start = net
    # Whole batches: in small ones other weights are active from step to step, to the end.
    long = dataclasses.replace(SHORT, epochs=400, learning_rate=0.1, batch_size=64, max_steps=None)
    recipe = recipes.find("gsm")(Budget(density=0.2), None, long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done, records = recipes.run(recipe, start, task, KEY)
    by_name = {record["stage"]: record["metrics"] for record in records}
    assert by_name["prune"]["density"] == pytest.approx(0.2, abs=0.002)
    assert by_name["prune"]["passive"] < 0.02
    assert by_name["prune"]["drift"] < 0.01
    before, after = by_name["before_cut"], by_name["before_finetune"]
    assert after["loss"] == pytest.approx(before["loss"], rel=0.01)
    # The same cut of the net as it was before is felt.
    _, (line,) = CutPassive(Budget(density=0.2))(start, task, KEY)
    assert line["metrics"]["drift"] > 0.2
    assert after["accuracy"] == before["accuracy"] > 0.9
    assert done.masks is not None


def test_passive_weights_have_no_mask_and_come_back(net):
    """Under another count, of all weights, what has decayed takes steps again."""
    task, start = net
    learner = TrainActive(SHORT, Budget(density=0.1)).learner(start, task, KEY)
    state = learner.init()
    with pytest.raises(errors.StructureError, match="0 sets of masks"):
        jprune.masks_of(state.opt_state)
    seen = []
    for _, batch in zip(range(12), learner.batches(0)):
        state, _ = learner.step(state, batch)
        seen.append(np.asarray(state.opt_state[0].active["params/b/kernel"]))
        assert sum(int(n) for n in state.opt_state[0].active.values()) == 28
    assert len({int(n) for n in seen}) > 1  # chosen anew, over all layers


def test_the_count_comes_down_on_a_schedule(net):
    task, start = net
    stage = TrainActive(dataclasses.replace(SHORT, max_steps=8), Budget(density=0.25),
                        schedule="cubic", goal=0.5)  # fmt: skip
    learner = stage.learner(start, task, KEY)
    state, seen = learner.init(), []
    for _, batch in zip(range(8), learner.batches(0)):
        state, _ = learner.step(state, batch)
        seen.append(sum(int(n) for n in state.opt_state[0].active.values()))
    total = 6 * 12 + 12 * 14 + 14 * 3
    right = [total * (0.25 + 0.75 * (1 - min(t / 4, 1)) ** 3) for t in range(8)]
    np.testing.assert_allclose(seen, right, atol=1.5)
    assert seen[-1] == int(total * 0.25)


def test_decay_follows_from_the_steps():
    """Few steps take a small momentum; many take the paper's, and a gentler decay."""
    task, found = dense_layers(), {}
    for steps in (60, 400, 3000):
        train = dataclasses.replace(SHORT, epochs=steps, max_steps=steps)
        stage = TrainActive(train, Budget(density=0.5))
        found[steps] = stage.decay(train.sgd(task))
        assert found[steps][2] <= stage.goal
    assert found[60][0] < found[400][0] <= found[3000][0] == 0.98
    assert found[3000][1] < found[400][1] < found[60][1]


def test_settings_without_time_to_act_say_so(net):
    task, start = net
    with pytest.warns(UserWarning, match="passive weights come down to"):
        TrainActive(SHORT, Budget(density=0.5), 0.9, 5e-4).learner(start, task, KEY)
    with pytest.warns(UserWarning, match="the cut has changed an output"):
        CutPassive(Budget(density=0.2))(start, task, KEY)


def test_what_a_floor_keeps_whole_has_its_whole_gradient(net):
    task, start = net
    budget = Budget(density=0.2, floors={"params/b/kernel": 14})
    learner = TrainActive(SHORT, budget).learner(start, task, KEY)
    assert {*learner.init().opt_state[0].active} == {"params/a/kernel", "params/c/kernel"}
    pruned, _ = CutPassive(budget)(start, task, KEY)
    assert pruned.masks["params"]["b"]["kernel"] is None


@pytest.mark.parametrize(("options", "says"), [
    ({"momentum": 1.0}, r"momentum is in \[0, 1\)"),
    ({"weight_decay": -1.0}, "weight_decay 0 or more"),
    ({"goal": 0.0}, r"goal in \(0, 1\)"),
    ({"schedule": "iterative"}, "schedule='iterative'"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(options, says):
    with pytest.raises(errors.ArgumentError, match=says):
        recipes.find("gsm")(Budget(density=0.5), None, SHORT, **options)


def test_counts_that_mean_nothing_are_refused():
    for count in (0, 5):
        with pytest.raises(errors.ArgumentError, match="a number from 1 to 4"):
            step_of(count, 4).init({"w": jnp.ones((4, 1))})

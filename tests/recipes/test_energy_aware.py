"""Energy-aware pruning [22]: the model of energy, restoring by joint effect, refits of filters."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jprune import errors, recipes
from jprune.base import Budget, Pruned
from jprune.cost import EnergyCosts, energies, layer_energy, reads, sums
from jprune.recipes import Train
from jprune.reconstruct import refit, restored
from jprune.stages.by_energy import PruneByEnergy, measured
from jprune.stages.frame import check
from jprune.train.net import Net
from tests.contracts import own

KEY = jax.random.key(5)
SHORT = {"batches": 2, "batch_size": 16, "points": 25}


def test_energy_of_reuse_level_by_level():
    """DRAM 200, buffer 6, array 2, register 1."""
    assert reads((1, 2, 3, 4)) == 248
    assert sums((2, 3, 2, 4)) == 732
    # A value that is read once, and goes through, costs every level once.
    assert reads((1, 1, 1, 1)) == 200 + 6 + 2 + 1
    assert sums((1, 1, 1, 1)) == 200
    half = EnergyCosts(dram=100.0)
    assert reads((1, 2, 3, 4), half) == 148


def test_energy_never_rises_with_a_zero_and_is_0_where_all_are():
    densities = jnp.linspace(0, 1, 1001)
    energy = jax.jit(jax.vmap(lambda d: layer_energy(1e4, 200.0, 50.0, 20.0, d, 0.6)))
    found = energy(densities)
    for part in (*found, found.total):
        assert (np.diff(part) >= 0).all()
    assert float(found.compute[0]) == float(found.weights[0]) == 0
    assert float(found.outputs[0]) > 0
    # Dense: 4 for a multiplication of operands that are not 0, 206 for a value.
    assert float(found.compute[-1]) == pytest.approx(4 * 0.6 * 1e4)
    assert float(found.weights[-1]) == pytest.approx(206 * 200)
    eight = layer_energy(1e4, 200.0, 50.0, 20.0, costs=EnergyCosts(bits=8))
    assert float(eight.weights) == pytest.approx(103 * 200)


def brute(gram, cross, weights, keep, count):
    """Greedy restoring of one output by recomputing all errors."""
    error = lambda s: -2 * (weights * s) @ cross + (weights * s) @ gram @ (weights * s)
    while keep.sum() < count:
        tries = [j for j in range(len(keep)) if not keep[j]]
        keep[min(tries, key=lambda j: error(keep | (np.arange(len(keep)) == j)))] = True
    return keep


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0, 1))
def test_restoring_is_greedy_in_the_error_of_every_output(seed, count, back):
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(20, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(6, 3))
    gram, cross = x.T @ x, x.T @ (x @ weights + 0.1 * rng.normal(size=(20, 3)))
    keep = restored(gram, cross, weights, count, back)
    assert (keep.sum(0) == count).all()
    first = count - round(back * count)
    for output in range(3):
        begun = np.zeros(6, bool)
        begun[np.argsort(-np.abs(weights[:, output]))[:first]] = True
        expected = brute(gram, cross[:, output], weights[:, output], begun, count)
        np.testing.assert_array_equal(keep[:, output], expected)


def test_weights_that_cancel_go_together():
    """Magnitude keeps one of two that say the opposite of the same input."""
    x = np.array([[1.0, 1.0, 0.3], [2.0, 2.0, -0.1], [1.0, 1.0, 0.2]])
    weights = np.array([[1.0], [-1.0], [0.5]])
    gram, cross = x.T @ x, x.T @ (x @ weights)
    assert restored(gram, cross, weights, 1, 0.0)[:, 0].tolist() == [True, False, False]
    assert restored(gram, cross, weights, 1, 1.0)[:, 0].tolist() == [False, False, True]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_a_refit_leaves_residuals_that_its_own_inputs_do_not_explain(seed):
    """X_S^T (y - X_S a_S) = 0; as per-filter least squares, whatever the supports are."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(30, 7)), rng.normal(size=(30, 5))
    keep = rng.random((7, 5)) < 0.5
    keep[:, 0] = False
    a = refit(x.T @ x, x.T @ y, keep, rng.normal(size=(7, 5)), ridge=0.0)
    assert not a[~keep].any()
    residual = x.T @ (y - x @ a)
    np.testing.assert_allclose(residual[keep], 0, atol=1e-8)
    for output in range(1, 5):
        own_ = np.linalg.lstsq(x[:, keep[:, output]], y[:, output], rcond=None)[0]
        np.testing.assert_allclose(a[keep[:, output], output], own_, atol=1e-8)


def test_inputs_that_say_the_same_are_solved_and_dead_ones_stay():
    x = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [3.0, 3.0, 0.0]])
    weights, keep = np.array([[2.0], [0.0], [5.0]]), np.ones((3, 1), bool)
    a = refit(x.T @ x, x.T @ x @ weights, keep, weights, ridge=1e-6)
    np.testing.assert_allclose(a, weights, atol=1e-6)  # the ridge pulls to the old weights
    a = refit(x.T @ x, x.T @ x @ weights, keep, weights, ridge=0.0)
    np.testing.assert_allclose(x @ a, x @ weights, atol=1e-8)


@pytest.mark.parametrize("wrong", [
    {"count": 0}, {"count": 4}, {"back": 1.5}, {"cross": np.ones((2, 2))},
])  # fmt: skip
def test_wrong_problems_are_refused(wrong):
    given = {"gram": np.eye(3), "cross": np.ones((3, 2)), "weights": np.ones((3, 2)), "count": 2}
    with pytest.raises(errors.ArgumentError):
        restored(**{**given, **wrong})


TASK = own.channels_first(False)
START = Pruned(TASK.init(KEY), None)


def pruned(**options):
    stage = PruneByEnergy(Budget(macs=0.4), **{**SHORT, **options})
    after, (record,) = stage(START, TASK, KEY)
    return after, record["metrics"]


def test_restoring_lowers_the_error_and_the_refit_lowers_it_again():
    _, seen = pruned()
    assert seen["macs"] <= 0.4
    assert 0 < seen["energy"] < 1
    assert seen["reconstruction_error"] < 0.6 * seen["restored_error"]
    assert seen["restored_error"] < seen["magnitude_error"]


def test_traffic_is_that_of_the_net_with_its_zeros():
    traffic = measured(TASK, START.variables, ["params/b/kernel", "params/c/kernel"], IMAGES)
    assert (traffic["params/b/kernel"].inputs, traffic["params/b/kernel"].outputs) == (150, 200)
    assert 0.2 < traffic["params/b/kernel"].activity < 0.8  # behind a ReLU
    assert traffic["params/c/kernel"][:2] == (8, 3)


IMAGES = next(TASK.data.batches("train", 16))["image"]


def test_the_order_of_energy_is_not_that_of_parameters_and_hungry_layers_lose_more():
    """Maps make the first layer hungry, which has fewest weights."""
    images = np.random.default_rng(0).uniform(size=(32, 16, 16, 3)).astype(np.float32)
    params = own.kernels({"a": (3, 3, 3, 8), "b": (8 * 64, 32), "c": (32, 3)})

    def fn(v, x):
        a, b, c = (v["params"][name]["kernel"] for name in "abc")
        x = jax.nn.relu(own.conv(x, a, 2))
        return jax.nn.relu(x.reshape(len(x), -1) @ b) @ c

    task = own.task_of(fn, params, (16, 16, 3), images=images)
    alive = PruneByEnergy(Budget(density=0.3)).prunable(task, None)
    cheap = EnergyCosts(dram=6.0)
    traffic = measured(task, task.init(KEY), [*alive], images)
    energy = energies(Net(task).groups, traffic, costs=cheap)
    energy = {path: float(each.total) for path, each in energy.items()}
    stage = PruneByEnergy(Budget(density=0.3), costs=cheap)
    a, b, c = alive
    assert stage._ordered(task, energy) == [b, a, c]
    assert energy[b] / energy[a] < 0.2 * (alive[b].size / alive[a].size)
    kept = stage.densities(task, alive, energy)
    assert kept[b] < kept[a] < kept[c]
    total = sum(mask.size for mask in alive.values())
    counts = {p: stage.count(mask.size // mask.shape[-1], kept[p]) for p, mask in alive.items()}
    assert sum(counts[p] * alive[p].shape[-1] for p in alive) / total == pytest.approx(
        0.3, abs=0.01
    )
    even = PruneByEnergy(Budget(density=0.3), hardness=0.0).densities(task, alive, energy)
    assert len({round(each, 6) for each in even.values()}) == 1


def test_every_filter_of_a_kernel_keeps_the_same_number_on_supports_of_its_own():
    after, _ = pruned()
    mask = Net(TASK).leaves(after.masks)["params/b/kernel"]
    assert len({*mask.sum((0, 1, 2)).tolist()}) == 1
    assert not (mask == mask[..., :1]).all()
    assert not np.asarray(after.variables["params"]["b"]["kernel"])[~mask].any()


def test_layouts_are_no_matter():
    after, _ = pruned()
    task = own.channels_first(True)
    stage = PruneByEnergy(Budget(macs=0.4), **SHORT)
    other, _ = stage(Pruned(task.init(KEY), None), task, KEY)
    for path, order in (("a", (3, 2, 0, 1)), ("b", (3, 2, 0, 1)), ("c", (1, 0))):
        one, two = (each.variables["params"][path]["kernel"] for each in (after, other))
        np.testing.assert_allclose(one.transpose(order), two, atol=1e-4)


def test_what_cannot_be_is_refused_before_training():
    method, finetune = recipes.find("energy_aware"), Train(1, 0.1, name="finetune")
    for options in (
        {"order": "size"}, {"hardness": -1.0}, {"back": 2.0}, {"ridge": -1.0}, {"dram": -1.0},
        {"bits": 0}, {"rounds": 0}, {"points": 0},
    ):  # fmt: skip
        with pytest.raises(errors.ArgumentError):
            method(Budget(density=0.5), None, finetune, **options)
    for budget in (Budget(density=1e-4), Budget(macs=1e-4)):
        with pytest.raises(errors.BudgetError):
            check(method(budget, None, finetune), TASK)


def test_rounds_end_at_the_budget_and_what_is_gone_stays_gone():
    recipe = own.recipe_of(
        "energy_aware", Budget(density=0.4), dense=False, rounds=2, order="forward", **SHORT
    )
    done, records = recipes.run(recipe, START, TASK, KEY)
    first, second = (r["metrics"]["density"] for r in records if r["stage"] == "prune")
    assert second < first
    assert second == pytest.approx(0.4, abs=0.02)
    for leaf, mask in itertools.zip_longest(
        Net(TASK).leaves(done.variables).values(), Net(TASK).leaves(done.masks).values()
    ):
        assert not np.asarray(leaf)[~mask].any()

"""OBS: numbers of checks.md [2], the algebra against a fresh inverse, stop rule and recipe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import curvature, data, errors, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.curvature import Rows, blocks_of
from jprune.masks import apply_masks
from jprune.recipes import Train
from jprune.recipes.obs import obs as obs_recipe
from jprune.reconstruct.obs import obs
from jprune.stages.obs import BrainSurgery
from jprune.train.net import Net
from tests.toys import drawn, toy_task

KEY = jax.random.key(0)


def deleted(weights, hessian, count, candidates=None):
    """Weights and deletions after so many."""
    weights = np.array(weights, float)
    order = curvature.deletions(weights, np.linalg.inv(hessian), candidates)
    found = [next(order) for _ in range(count)]
    next(order, None)
    return weights, found


def test_two_weights_that_make_up_for_each_other():
    """Checks [2] P1."""
    hessian = np.array([[2.0, 1.0], [1.0, 2.0]])
    weights, ((loss, place),) = deleted([1, 1], hessian, 1)
    assert (loss, place) == (pytest.approx(0.75), 0)
    np.testing.assert_allclose(weights, [0, 1.5])
    error = lambda w: 0.5 * (w - 1) @ hessian @ (w - 1)
    assert error(weights) == pytest.approx(0.75)
    assert error(np.array([0, 1])) == 1.0  # OBD moves nothing


def test_magnitude_obd_and_obs_disagree():
    """Checks [2] P2."""
    hessian = np.zeros((4, 4))
    hessian[0, 0], hessian[3, 3] = 1, 8
    hessian[1:3, 1:3] = [[10, 9.5], [9.5, 10]]
    start = np.array([1.5, 1, 1.1, 0.8])
    losses = start**2 / (2 * np.diagonal(np.linalg.inv(hessian)))
    np.testing.assert_allclose(losses, [1.125, 0.4875, 0.589875, 2.56])
    saliencies = 0.5 * np.diagonal(hessian) * start**2
    np.testing.assert_allclose(saliencies, [1.125, 5, 6.05, 2.56])
    assert (np.abs(start).argmin(), saliencies.argmin(), losses.argmin()) == (3, 0, 1)
    weights, ((loss, place),) = deleted(start, hessian, 1)
    assert (loss, place) == (pytest.approx(0.4875), 1)
    np.testing.assert_allclose(weights, [1.5, 0, 2.05, 0.8])


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(3, 90), st.floats(0.3, 1))
def test_every_deletion_is_the_best_with_a_fresh_inverse(seed, size, open_fraction):
    """On a quadratic: the weight that costs least, the others at their new minimum, to the last."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(2 * size, size))
    hessian = rows.T @ rows / size + 0.1 * np.eye(size)
    start, candidates = rng.normal(size=size), rng.uniform(size=size) < open_fraction
    candidates[0] = True
    weights, gone = start.copy(), np.zeros(size, bool)
    total = 0.0
    for loss, place in curvature.deletions(weights, np.linalg.inv(hessian), candidates):
        left = np.flatnonzero(~gone)
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        fresh = weights[left] ** 2 / (2 * np.diagonal(inverse))
        fresh[~candidates[left]] = np.inf
        assert loss == pytest.approx(fresh.min(), rel=1e-6)
        assert left[fresh.argmin()] == place
        assert 0.5 * (weights - start) @ hessian @ (weights - start) == pytest.approx(total)
        assert not weights[gone].any()
        total, gone[place] = total + loss, True
    assert (gone == candidates).all()
    assert 0.5 * (weights - start) @ hessian @ (weights - start) == pytest.approx(total)


def linear(v, x):
    return x @ v["fc"]["kernel"] + v["fc"]["bias"]


def squared(out, batch):
    return 0.5 * ((out - batch["label"]) ** 2).sum(axis=1)


@functools.cache
def trained():
    """A linear net at its minimum, in float64."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6))
    label = x @ rng.normal(size=(6, 3)) + rng.normal(size=(50, 3))
    inputs = np.concatenate([x, np.ones((50, 1))], axis=1)
    best = np.linalg.lstsq(inputs, label)[0]
    variables = {"fc": {"kernel": jnp.asarray(best[:6]), "bias": jnp.asarray(best[6])}}
    return variables, {"image": jnp.asarray(x), "label": jnp.asarray(label)}


def mean(variables, batch):
    return float(curvature.mean_loss(linear, squared, variables, batch))


def test_on_a_linear_net_the_prediction_is_the_truth(float64):
    variables, batch = trained()
    before = jax.tree.map(np.array, variables)
    done = obs(linear, squared, variables, [batch], 7, alpha=1e-8)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    mask = done.masks["fc"]["kernel"]
    assert (mask.sum(), done.masks["fc"]["bias"], done.losses.shape) == (11, None, (7,))
    np.testing.assert_array_equal(done.variables["fc"]["kernel"] == 0, ~mask)
    assert done.loss == pytest.approx(mean(variables, batch))
    increase = mean(done.variables, batch) - done.loss
    np.testing.assert_allclose(increase, done.losses.sum(), rtol=1e-6)
    # The bias moved too, or the rest would not be at its minimum.
    gradient = jax.grad(lambda v: curvature.mean_loss(linear, squared, v, batch))(done.variables)
    np.testing.assert_allclose(gradient["fc"]["bias"], 0, atol=1e-6)
    np.testing.assert_allclose(np.asarray(gradient["fc"]["kernel"])[mask], 0, atol=1e-6)
    plain = apply_masks(variables, done.masks)
    assert mean(plain, batch) - done.loss > 1.05 * increase


def test_blocks_along_the_outputs_of_a_linear_layer_lose_nothing(float64):
    """With the squared error the Hessian has a block an output, apart from the biases."""
    variables, batch = trained()
    kernel_only = lambda v, x: linear({"fc": {**variables["fc"], "kernel": v["kernel"]}}, x)
    start = {"kernel": variables["fc"]["kernel"]}
    whole, cut = (obs(kernel_only, squared, start, [batch], 8, block=block) for block in (None, 6))
    layers = jprune.trace(kernel_only, start, batch["image"]).layers
    assert [part.tolist() for part in blocks_of(start, 6, layers)] == [
        [i, i + 3, i + 6, i + 9, i + 12, i + 15] for i in range(3)
    ]
    np.testing.assert_array_equal(whole.masks["kernel"], cut.masks["kernel"])
    np.testing.assert_allclose(whole.variables["kernel"], cut.variables["kernel"], atol=1e-9)
    np.testing.assert_allclose(whole.losses, cut.losses, rtol=1e-8)


def test_in_two_goes_with_what_is_gone_staying_gone(float64):
    """The Hessian of a linear net does not move, so a fresh inverse goes on as the old one did."""
    variables, batch = trained()
    whole = obs(linear, squared, variables, [batch], 9, alpha=1e-9)
    first = obs(linear, squared, variables, [batch], 5, alpha=1e-9)
    second = obs(
        linear, squared, first.variables, [batch], 4, alpha=1e-9, masks=first.masks,
        candidates=first.masks,
    )  # fmt: skip
    np.testing.assert_array_equal(second.masks["fc"]["kernel"], whole.masks["fc"]["kernel"])
    np.testing.assert_allclose(
        second.variables["fc"]["kernel"], whole.variables["fc"]["kernel"], atol=1e-6
    )
    np.testing.assert_allclose([*first.losses, *second.losses], whole.losses, rtol=1e-4)


def test_batches_count_by_their_examples(float64):
    variables, batch = trained()
    parts = [{name: array[part] for name, array in batch.items()}
             for part in (slice(0, 20), slice(20, 50))]  # fmt: skip
    whole, cut = (obs(linear, squared, variables, b, 6) for b in ([batch], parts))
    np.testing.assert_allclose(
        whole.variables["fc"]["kernel"], cut.variables["fc"]["kernel"], atol=1e-8
    )
    assert whole.loss == pytest.approx(cut.loss)


def test_the_stop_rule_ends_it(float64):
    variables, batch = trained()
    free = obs(linear, squared, variables, [batch], 18)
    stop = 0.5 * (free.losses[4] + free.losses[5]) / free.loss
    assert free.losses[:5].max() < stop * free.loss < free.losses[5]
    ended = obs(linear, squared, variables, [batch], 18, stop=stop)
    np.testing.assert_allclose(ended.losses, free.losses[:5])
    assert ended.masks["fc"]["kernel"].sum() == 13


def test_what_cannot_be_is_refused(float64):
    variables, batch = trained()
    for arguments, says in (
        ({"batches": []}, "there is no batch"),
        ({"remove": 19}, "deleted all 18 weights"),
        ({"alpha": 0.0}, "must be above 0"),
        ({"block": 0}, "block is 1 or more"),
        ({"stop": 0.0}, "stop above 0"),
        ({"rows": Rows("fisher", 1, KEY)}, "samples=None"),
        ({"batches": [{**batch, "image": batch["image"] * np.nan}]}, "not finite"),
    ):
        given = {"batches": [batch], "remove": 3, **arguments}
        with pytest.raises(errors.ArgumentError, match=says):
            obs(linear, squared, variables, **given)
    with pytest.raises(errors.StructureError, match="Pass a tree like the variables"):
        obs(linear, squared, variables, [batch], 1, masks={"fc": None})


@pytest.fixture(scope="module")
def digits():
    """A small dense net on digits, trained a little."""
    task = train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
    pruned = Pruned(drawn(task), None)
    pruned, _ = Train(2, 0.05, 64)(pruned, task, KEY)
    return task, pruned


def test_surgery_on_a_net_keeps_a_lower_loss_than_masks_alone(digits):
    task, start = digits
    pruned, (seen,) = BrainSurgery(Budget(density=0.3), block=64, batches=8)(start, task, KEY)
    assert seen["metrics"]["density"] == pytest.approx(0.3, abs=1e-4)
    masked = apply_masks(start.variables, pruned.masks)
    after, plain = (
        recipes.evaluate(task, variables, "train")["loss"]
        for variables in (pruned.variables, masked)
    )
    assert after < plain
    for name, mask in pruned.masks["params"].items():
        kernel = np.asarray(pruned.variables["params"][name]["kernel"])
        assert not kernel[~np.asarray(mask["kernel"])].any()
    moved = pruned.variables["params"]["fc3"]["bias"] != start.variables["params"]["fc3"]["bias"]
    assert moved.any()


def test_rounds_stop_train_and_reach_the_budget(digits):
    task, start = digits
    finetune = Train(1, 0.01, 64, max_steps=2, name="finetune")
    recipe = obs_recipe(
        Budget(density=0.5), None, finetune, rounds=2, stop=1e-9, block=64, batches=2,
        curvature="fisher", samples=None,
    )  # fmt: skip
    pruned, records = recipes.run(recipe, start, task, KEY)
    first, last = [r["metrics"]["density"] for r in records if r["stage"] == "prune"]
    assert 0.5**0.5 < first <= 1  # stopped before its budget
    assert last == pytest.approx(0.5, abs=1e-4)
    for name, mask in pruned.masks["params"].items():
        kernel = np.asarray(pruned.variables["params"][name]["kernel"])
        assert not kernel[~np.asarray(mask["kernel"])].any()


def test_a_budget_in_macs_is_met_on_a_residual_net():
    task = toy_task()
    start = Pruned(drawn(task), None)
    surgery = BrainSurgery(Budget(macs=0.4), block=32, batches=1, batch_size=16)
    pruned, (seen,) = surgery(start, task, KEY)
    assert 0.39 < seen["metrics"]["macs"] <= 0.4
    fn, small = Net(task).slim(pruned)
    x = jax.random.normal(KEY, (3, 8, 8, 1))
    expected = task.fn(pruned.variables, x)
    np.testing.assert_allclose(fn(small, x), expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(errors.ArgumentError, match="1 or more"):
        obs_recipe(Budget(density=0.5), None, Train(1, 0.1), rounds=0)

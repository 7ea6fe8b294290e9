"""WoodFisher and M-FAC: numbers of checks.md B12, dense inverses and minima, and their recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import curvature, data, errors, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.masks import apply_masks
from jprune.recipes import Train
from jprune.recipes.woodfisher import METHODS, woodfisher
from jprune.reconstruct.jointly import Surgery
from jprune.stages import PruneJointly
from jprune.train.net import Net
from tests.toys import drawn, toy_task

KEY = jax.random.key(0)
FINETUNE = Train(1, 0.01, 64, max_steps=2, name="finetune")
ROWS = np.array([[1.0, 0.0], [1.0, 1.0]]) / 2**0.5


def test_two_gradients():
    """Checks B12, damping 1."""
    fisher = ROWS.T @ ROWS + np.eye(2)
    np.testing.assert_allclose(fisher, [[2, 0.5], [0.5, 1.5]])
    unit = lambda n: curvature.inverse_product(ROWS, 1.0, np.eye(2)[n])
    inverse = [[0.545455, -0.181818], [-0.181818, 0.727273]]
    np.testing.assert_allclose([unit(0), unit(1)], inverse, atol=1e-6)
    diagonal = curvature.inverse_diagonal(ROWS, 1.0)
    np.testing.assert_allclose(1 / (2 * diagonal), [0.916667, 0.6875], atol=1e-6)
    for how in ("joint", "summed"):
        gone = np.array([False, True])
        change, rise = curvature.removal(np.ones(2), ROWS, 1.0, gone, how)
        np.testing.assert_allclose(change, [0.25, -1])
        assert rise == pytest.approx(0.6875)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(2, 12), st.floats(1e-4, 1))
def test_inverses_are_those_of_the_dense_matrix(seed, m, n, damping):
    """For fewer and for more gradients than weights."""
    rng = np.random.default_rng(seed)
    rows, weights, gone = rng.normal(size=(m, n)), rng.normal(size=n), rng.uniform(size=n) < 0.5
    fisher = rows.T @ rows + damping * np.eye(n)
    inverse = np.linalg.inv(fisher)
    close = dict(rtol=1e-6, atol=1e-9 / damping)
    np.testing.assert_allclose(curvature.inverse_diagonal(rows, damping), np.diag(inverse), **close)
    np.testing.assert_allclose(
        curvature.inverse_product(rows, damping, weights), inverse @ weights, **close
    )
    change, rise = curvature.removal(weights, rows, damping, gone)
    np.testing.assert_array_equal(change[gone], -weights[gone])
    # At the minimum the slope is 0 wherever a weight may move.
    np.testing.assert_allclose((fisher @ change)[~gone], 0, atol=1e-7)
    assert rise == pytest.approx(0.5 * change @ fisher @ change, rel=1e-6, abs=1e-12)
    single, rises = curvature.removal(weights, rows, damping, gone, "summed")
    right = -inverse @ np.where(gone, weights / np.diag(inverse), 0)
    np.testing.assert_allclose(single[~gone], right[~gone], **close)
    assert rises >= rise - 1e-9


def test_in_a_row_it_is_what_single_deletions_come_to():
    """Removed together or one after the other: the same minimum, on a fixed quadratic."""
    rng = np.random.default_rng(1)
    rows, weights = rng.normal(size=(9, 6)), rng.normal(size=6)
    gone = np.array([True, False, True, False, False, True])
    change, rise = curvature.removal(weights, rows, 0.1, gone)
    moved = weights.copy()
    order = curvature.deletions(moved, np.linalg.inv(rows.T @ rows + 0.1 * np.eye(6)), gone)
    total = sum(deletion.loss for deletion in order)
    np.testing.assert_allclose(weights + change, moved, atol=1e-9)
    assert rise == pytest.approx(total)


def linear(v, x):
    return x @ v["w"] + v["b"]


def squared(out, batch):
    return 0.5 * ((out - batch["label"]) ** 2).sum(axis=1)


def toy():
    rng = np.random.default_rng(0)
    batch = {"image": rng.normal(size=(12, 3)), "label": rng.normal(size=(12, 2))}
    return {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}, batch


def test_rows_are_gradients_and_means_of_them(float64):
    variables, batch = toy()
    example = lambda n: jax.tree.map(lambda leaf: leaf[n : n + 1], batch)
    slope = jax.grad(lambda v, part: squared(linear(v, part["image"]), part).mean())
    slopes = [slope(variables, example(n)) for n in range(12)]
    g = np.array([jnp.concatenate([s["b"], s["w"].ravel()]) for s in slopes])
    parts = [jax.tree.map(lambda leaf, s=s: leaf[s], batch) for s in (slice(0, 8), slice(8, 12))]
    for average in (1, 4):
        rows = curvature.fisher_rows(linear, squared, variables, parts, average)
        means = g.reshape(-1, average, 8).mean(1)
        np.testing.assert_allclose(rows.T @ rows, means.T @ means / len(means), atol=1e-5)
    broken = {**batch, "image": batch["image"] * np.nan}
    for batches, average, says in (([], 1, "0 batches"), ([batch], 0, "average=0")):
        with pytest.raises(errors.ArgumentError, match=says):
            curvature.fisher_rows(linear, squared, variables, batches, average)
    with pytest.raises(errors.ArgumentError, match="of batch 0 are not finite"):
        curvature.fisher_rows(linear, squared, variables, [broken])


def test_biases_stay_and_what_is_gone_stays_gone(float64):
    variables, batch = toy()
    rows = curvature.fisher_rows(linear, squared, variables, [batch])
    alive = {"w": np.array([[True, True], [False, True], [True, True]]), "b": None}
    start = apply_masks(variables, alive)
    surgery = Surgery(start, alive, rows, 1e-3)
    scores = surgery.saliencies()
    assert scores["b"] is None
    assert np.isneginf(scores["w"]).sum() == 1
    keep = jprune.allocate.global_topk(scores, Budget(density=0.5))
    pruned, _ = surgery.without(keep)
    np.testing.assert_array_equal(np.asarray(pruned["w"]) != 0, keep["w"])
    np.testing.assert_array_equal(pruned["b"], variables["b"])
    # The dense algebra over the five weights that were there.
    f = rows[:, 2:].T.astype(float) @ rows[:, 2:] + 1e-3 * np.eye(6)
    there, kept = alive["w"].ravel(), keep["w"].ravel()
    stay, go = np.flatnonzero(kept), np.flatnonzero(there & ~kept)
    w = np.asarray(start["w"]).ravel()
    right = w[stay] + np.linalg.solve(f[np.ix_(stay, stay)], f[np.ix_(stay, go)] @ w[go])
    np.testing.assert_allclose(np.asarray(pruned["w"]).ravel()[stay], right, rtol=1e-5)


@pytest.fixture(scope="module")
def digits():
    """A small dense net on digits, trained a little."""
    task = train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
    return task, Train(2, 0.05, 64)(Pruned(drawn(task), None), task, KEY)[0]


@pytest.mark.parametrize("block", [128, None])
def test_the_others_make_up_for_what_goes(digits, block):
    task, start = digits
    stage = PruneJointly(Budget(density=0.2), block, gradients=64, recomputations=2)
    pruned, (seen,) = stage(start, task, KEY)
    assert seen["metrics"]["density"] == pytest.approx(0.2, abs=1e-4)
    assert seen["metrics"]["predicted_increase"] > 0
    masked = apply_masks(start.variables, pruned.masks)
    after, plain = (
        recipes.evaluate(task, variables, "validation")["loss"]
        for variables in (pruned.variables, masked)
    )
    assert after < 0.9 * plain
    for name, mask in pruned.masks["params"].items():
        kernel = np.asarray(pruned.variables["params"][name]["kernel"])
        assert not kernel[~np.asarray(mask["kernel"])].any()
        np.testing.assert_array_equal(
            pruned.variables["params"][name]["bias"], start.variables["params"][name]["bias"]
        )


def test_recomputations_are_better_than_one_large_step(digits):
    """Summed single changes, whose error grows with the step."""
    task, start = digits
    losses = []
    for number in (1, 6):
        stage = PruneJointly(
            Budget(density=0.1), gradients=64, recomputations=number, update="summed", damping=1e-4
        )
        pruned, _ = stage(start, task, KEY)
        losses.append(recipes.evaluate(task, pruned.variables, "validation")["loss"])
    assert losses[1] < losses[0]


def test_a_budget_in_macs_is_met_on_a_residual_net():
    task = toy_task()
    recipe = METHODS["m_fac"](
        Budget(macs=0.4), None, FINETUNE, gradients=16, recomputations=2, batch_size=16,
        schedule="cubic", rounds=2,
    )  # fmt: skip
    prunings = [stage for stage in recipe if isinstance(stage, PruneJointly)]
    pruned, records = Pruned(drawn(task), None), []
    for stage in prunings:
        pruned, lines = stage(pruned, task, KEY)
        records += lines
    assert 0.39 < records[-1]["metrics"]["macs"] <= 0.4


def test_gradients_are_no_more_than_there_are_examples():
    task = toy_task()
    (batch,) = PruneJointly(Budget(density=0.5), gradients=10, average=4).examples(task, KEY)
    assert len(batch["label"]) == 40
    few = PruneJointly(Budget(density=0.5), gradients=900, batch_size=16).examples(task, KEY)
    assert [len(batch["label"]) for batch in few] == [16, 16, 16]
    assert [mask is not None for mask in jax.tree.leaves(Net(task).is_kernel)]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"update": "both"}, "'joint' or 'summed'"),
        ({"allocator": "topk"}, "uniform, global_topk"),
        ({"damping": 0.0}, "damping is above 0"),
        ({"gradients": 0}, "numbers are 1 or more"),
        ({"block": 0}, "numbers are 1 or more"),
        ({"recomputations": 0}, "numbers are 1 or more"),
        ({"schedule": "linear"}, "there is no schedule"),
    ],
)
def test_options_that_cannot_be_are_refused(settings, says):
    with pytest.raises(errors.ArgumentError, match=says):
        woodfisher(Budget(density=0.5), None, FINETUNE, **settings)

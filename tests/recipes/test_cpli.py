"""LASSO and least squares with errors that count by the loss: checks.md [29], and what it does."""

import functools

import jax
import numpy as np
import pytest

import jprune
from jprune import errors, recipes
from jprune.base import Budget, Problem, Pruned
from jprune.recipes import Train, run
from jprune.recipes.cpli import cpli
from jprune.reconstruct import lasso, least_squares
from jprune.reconstruct.lasso import Path, summed
from jprune.reconstruct.windows import look, look_at_slopes
from jprune.stages import ErrorWeights
from jprune.stages.error_weights import staying
from jprune.stages.layer_wise import LayerWise
from jprune.train.net import Net
from tests.contracts.own import conv, cross_entropy, draw, task_of
from tests.toys import drawn, toy_task

KEY = jax.random.key(0)
FINE = Train(1, 0.01, batch_size=16, name="finetune")
SHORT = {"batches": 2, "batch_size": 16, "points": 25}


def problem_of(seed=0, rows=120, units=6, window=2, outputs=4):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, units, window))
    weight = rng.normal(size=(units, window, outputs))
    targets = np.tensordot(inputs, weight, 2) + 0.3 * rng.normal(size=(rows, outputs))
    return Problem(inputs, targets, weight, np.ones(units, bool), bias=True)


def test_equal_factors_are_no_factors():
    """Checks [29] P1: a constant kappa scales the penalty by its square, and changes nothing."""
    problem, kappa = problem_of(), 0.2
    equal = problem._replace(errors=np.full(problem.targets.shape, kappa), of_outputs=np.ones(4))
    (gram, cross, rows), (g, c, r) = summed([problem]), summed([equal])
    np.testing.assert_allclose(g, kappa**2 * gram, rtol=1e-10)
    np.testing.assert_allclose(c, kappa**2 * cross, rtol=1e-10)
    assert r == rows
    for penalty in (0.01, 0.5):
        one, two = Path(gram, cross, rows).at(penalty), Path(g, c, r).at(kappa**2 * penalty)
        np.testing.assert_allclose(one, two, atol=1e-6)
    for width in (1, 3, 5):
        assert lasso([problem], width).tolist() == lasso([equal], width).tolist()
        assert lasso([problem] * 2, width).tolist() == lasso([equal] * 2, width).tolist()
    keep = np.array([True, False, True, True, False, True])
    one, two = (least_squares(each._replace(keep=keep)) for each in (problem, equal))
    np.testing.assert_allclose(one[0], two[0], atol=1e-8)
    np.testing.assert_allclose(one[1], two[1], atol=1e-8)


def orthogonal():
    """Three units with energies (4, 0), (0, 25), (4, 5) in two outputs, four rows."""
    z = np.zeros((4, 3, 2))
    z[0, 0, 0] = 2.0
    z[1, 1, 1] = 5.0
    z[2, 2] = (2.0, 0.0)
    z[3, 2] = (0.0, 5**0.5)
    # A window of two: one tap for each output.
    weight = np.broadcast_to(np.eye(2), (3, 2, 2))
    return Problem(z, z.sum(1), weight, np.ones(3, bool))


def test_units_of_outputs_that_go_have_no_coefficient():
    """Checks [29] P2: (.7, .952, .866667), and (.7, 0, .7) where the second output goes."""
    problem = orthogonal()
    for of_outputs, beta in ((None, (0.7, 0.952, 0.866667)), ((1.0, 0.0), (0.7, 0, 0.7))):
        weighed = problem._replace(of_outputs=of_outputs)
        np.testing.assert_allclose(Path(*summed([weighed])).at(0.3), beta, atol=1e-6)
    without = problem._replace(of_outputs=np.array([1.0, 0.0]), errors=np.ones((4, 2)))
    assert lasso([without], 2).tolist() == [True, False, True]
    assert lasso([problem], 1).tolist() == [False, True, False]
    weight, bias = least_squares(without._replace(keep=np.array([True, False, True])))
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()
    assert weight[:, :, 1].any(), "the refit is of each output by itself"


def test_moments_are_those_of_the_rows():
    problem = problem_of(1)
    rng = np.random.default_rng(2)
    factors, of_outputs = rng.uniform(size=problem.targets.shape), rng.uniform(size=4)
    weighed = problem._replace(errors=factors, of_outputs=of_outputs)
    z = np.einsum("nuw,uwo->uno", problem.inputs, problem.weight) * factors * of_outputs
    gram, cross, rows = summed([weighed])
    np.testing.assert_allclose(gram, z.reshape(6, -1) @ z.reshape(6, -1).T, rtol=1e-10)
    y = (problem.targets * factors * of_outputs).ravel()
    np.testing.assert_allclose(cross, z.reshape(6, -1) @ y, rtol=1e-9, atol=1e-9)
    assert rows == 120


def test_the_refit_is_the_weighted_least_squares_of_each_output():
    problem = problem_of(3)._replace(ridge=0.0, keep=np.array([1, 1, 0, 1, 0, 1], bool))
    factors = np.random.default_rng(4).uniform(0.1, 2, size=problem.targets.shape)
    weight, bias = least_squares(problem._replace(errors=factors))
    x = problem.inputs[:, problem.keep].reshape(120, -1)
    x = np.concatenate([x, np.ones((120, 1))], axis=1)
    for number in range(4):
        e = factors[:, number]
        right = np.linalg.lstsq(x * e[:, None], problem.targets[:, number] * e)[0]
        found = [*weight[problem.keep][:, :, number].ravel(), bias[number]]
        np.testing.assert_allclose(found, right, atol=1e-7)
    assert not weight[~problem.keep].any()
    factors[:, 2] = 0
    unmoved, _ = least_squares(problem._replace(errors=factors))
    np.testing.assert_array_equal(
        unmoved[problem.keep][..., 2], problem.weight[problem.keep][..., 2]
    )
    with pytest.raises(errors.ArgumentError, match=r"errors \[n, outputs\]"):
        least_squares(problem._replace(errors=factors[:3]))


def chain():
    params = draw({"a": (3, 3, 2, 5), "b": (3, 3, 5, 6), "c": (6, 3)})

    def fn(v, x):
        a, b, c = (v["params"][name] for name in "abc")
        return jax.nn.relu(conv(jax.nn.relu(conv(x, a)), b)).mean((1, 2)) @ c

    return task_of(fn, params, (5, 5, 2))


def test_slopes_stand_at_the_points_of_the_windows(float64):
    """First-order change of each example's loss: the sum over points of slope times change."""
    task = chain()
    double = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
    variables = double(task.init(KEY))
    batch = next(task.data.batches("train", 8))
    batch = {**batch, "image": double(batch["image"])}
    groups = jprune.trace(task.fn, variables, batch["image"])
    sites, points = ["params/b", "params/c"], 25
    slopes = look_at_slopes(task.fn, task.loss, groups, sites, points)(variables, batch, KEY)
    windows = look(task.fn, groups, sites, points)(variables, batch["image"], KEY)
    moved = jax.tree.map(np.array, variables)
    step = 1e-8 * np.random.default_rng(0).normal(size=(3, 3, 5, 6))
    moved["params"]["b"] = variables["params"]["b"] + step
    losses = lambda v: cross_entropy(task.fn(v, batch["image"]), batch)
    change = np.asarray(losses(moved) - losses(variables))
    after = look(task.fn, groups, sites, points)(moved, batch["image"], KEY)
    product = slopes["params/b"] * (after["params/b"].outputs - windows["params/b"].outputs)
    np.testing.assert_allclose(np.asarray(product).reshape(8, -1).sum(1), change, rtol=1e-4)
    few = look_at_slopes(task.fn, task.loss, groups, sites, 3)(variables, batch, KEY)["params/b"]
    some = look(task.fn, groups, sites, 3)(variables, batch["image"], KEY)["params/b"]
    outputs, all_slopes = np.asarray(windows["params/b"].outputs), np.asarray(slopes["params/b"])
    whole = {tuple(row): slope for row, slope in zip(outputs.tolist(), all_slopes)}
    for row, slope in zip(np.asarray(some.outputs).tolist(), np.asarray(few)):
        np.testing.assert_allclose(whole[tuple(row)], slope, atol=1e-7)


def test_the_outputs_that_stay_are_the_most_important_of_those_alive():
    groups = Net(chain()).groups
    alive = {"params/a": np.ones(5, bool), "params/b": np.array([1, 1, 1, 0, 1, 1], bool)}
    importance = np.array([0.1, 5.0, 3.0, 9.0, 0.2, 4.0])
    stays = staying(groups, "params/b", importance, alive, {"params/a": 5, "params/b": 3})
    assert stays.tolist() == [False, True, True, False, False, True]
    assert staying(groups, "params/c", np.ones(3), alive, {"params/b": 1}).all()


@functools.cache
def toy():
    return toy_task(train_size=96)


def pruned_by(task, start, **options):
    recipe = recipes.find("cpli")(Budget(macs=0.5), None, FINE, **SHORT, **options)
    prune = next(stage for stage in recipe if isinstance(stage, LayerWise))
    return prune(Pruned(start, None), task, KEY)[0]


def test_both_terms_are_switched_off_to_what_they_come_from():
    """The ablation: without them the net is that of `channel_lasso`, with each it is another."""
    task = chain()
    start = task.init(KEY)
    off = {"loss_term": False, "removal_term": False}
    plain = recipes.find("channel_lasso")(Budget(macs=0.5), None, FINE, **SHORT)
    plain = next(stage for stage in plain if isinstance(stage, LayerWise))
    right = plain(Pruned(start, None), task, KEY)[0]
    found = pruned_by(task, start, **off)
    same = lambda one, two: all(
        jax.tree.leaves(jax.tree.map(np.array_equal, one.variables, two.variables))
    )
    assert same(found, right)


def test_each_term_lets_go_of_what_only_an_idle_output_reads():
    """Unit 0 makes one loud output alone, which nothing reads: the layer's error needs it most."""
    task = chain()
    start = jax.tree.map(np.array, task.init(KEY))
    second, out = start["params"]["b"], start["params"]["c"]
    start["params"]["a"][..., 0] = 1.0
    second[:, :, 0] = second[..., 5] = 0
    second[1, 1, 0, 5] = 30.0
    out[5] = 0
    off, kept = {"loss_term": False, "removal_term": False}, {}
    for name, options in (
        ("neither", {}),
        ("loss", {"loss_term": True, "floor": 1e-4}),
        ("removal", {"removal_term": True}),
        ("both", {"loss_term": True, "removal_term": True}),
    ):
        recipe = recipes.find("cpli")(
            Budget(density=0.5), None, FINE, **SHORT, **{**off, **options}
        )
        prune = next(stage for stage in recipe if isinstance(stage, LayerWise))
        done = prune(Pruned(start, None), task, KEY)[0]
        kept[name] = bool(done.masks["params/a"][0])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(done.variables))
    assert kept == {"neither": True, "loss": False, "removal": False, "both": False}


def test_the_loss_rises_less_than_without_the_terms():
    """Before fine-tuning, on the images of the calibration, of a trained net."""
    task = toy()
    start = Train(8, 0.05, batch_size=16)(Pruned(drawn(task), None), task, KEY)[0].variables
    loss = {}
    for name, options in (("terms", {}), ("none", {"loss_term": False, "removal_term": False})):
        done = pruned_by(task, start, stream="whole", **options)
        loss[name] = recipes.evaluate(task, done.variables, "train")["loss"]
    assert loss["terms"] < loss["none"] + 0.02


def test_the_recipe_runs_and_bad_words_are_refused():
    done, rows = run(
        cpli(Budget(macs=0.6), None, FINE, importance="gradient", **SHORT),
        Pruned(drawn(toy()), None), toy(), KEY,
    )  # fmt: skip
    assert [row["stage"] for row in rows] == ["dense", "prune", "before_finetune", "finetune"]
    assert np.isfinite(rows[1]["metrics"]["reconstruction_error"])
    assert done.masks is not None
    for options, says in (
        ({"importance": "size"}, "product, gradient"),
        ({"floor": 0.0}, "above 0"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            cpli(Budget(macs=0.6), None, FINE, **options)
    assert ErrorWeights() == ErrorWeights(True, True, "product", 0.1)

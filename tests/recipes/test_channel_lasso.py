"""LASSO channel pruning: numbers of checks.md [19], the search for a penalty, the walk, recipe."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from experiments.claims import e19
from experiments.claims.claim import run as run_claim
from jprune import errors, recipes
from jprune.base import Budget, Problem, Pruned
from jprune.masks import apply_masks
from jprune.recipes import Train, run
from jprune.recipes.channel_lasso import channel_lasso
from jprune.reconstruct import lasso, least_squares
from jprune.reconstruct.lasso import Path, search
from jprune.stages.layer_wise import ByLasso, LayerWise, by_least_squares
from jprune.stages.walk import steps_of
from jprune.train.net import Net, are_units
from tests.toys import drawn, toy_task

KEY = jax.random.key(0)
STREAMS = ("sampler", "whole", "joint")
FINE = Train(1, 0.01, batch_size=16, name="finetune")


def test_a_dependent_channel_goes_without_error():
    """Checks [19] P1: channel 3 = 0.5 channel 0 - 2 channel 1, patch by patch."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 4, 9))
    inputs[:, 3] = 0.5 * inputs[:, 0] - 2 * inputs[:, 1]
    weight = rng.normal(size=(4, 9, 5))
    targets = np.tensordot(inputs, weight, 2)
    keep = np.array([True, True, True, False])
    for ridge in (0.0, None):
        problem = Problem(inputs, targets, weight, keep, ridge=ridge)
        found, _ = least_squares(problem)
        bound = 1e-8 if ridge == 0 else 1e-4
        np.testing.assert_allclose(found[0], weight[0] + 0.5 * weight[3], atol=bound)
        np.testing.assert_allclose(found[1], weight[1] - 2 * weight[3], atol=bound)
        np.testing.assert_allclose(found[2], weight[2], atol=bound)
        np.testing.assert_allclose(np.tensordot(inputs, found, 2), targets, atol=10 * bound)


def test_orthogonal_regressors():
    """Checks [19] P2: beta_i = max(0, 1 - 4 lambda / ||z_i||^2), and the order of elimination."""
    squares = np.array([4.0, 1.0, 9.0])
    path = Path(np.diag(squares), squares, rows=4)
    assert path.largest == 2.25
    expected = {
        0.1: (0.9, 0.6, 0.95556),
        0.3: (0.7, 0, 0.86667),
        0.9: (0.1, 0, 0.6),
        1.5: (0, 0, 0.33333),
        2.25: (0, 0, 0),
        3.0: (0, 0, 0),
    }
    for penalty, beta in expected.items():
        np.testing.assert_allclose(path.at(penalty), beta, atol=1e-5)
    problem = Problem(
        inputs=np.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [0, 0, 0]])[..., None],
        targets=np.array([[2.0], [1.0], [3.0], [0.0]]),
        weight=np.ones((3, 1, 1)),
        keep=np.ones(3, bool),
    )
    kept = [np.flatnonzero(lasso([problem], width)).tolist() for width in (3, 2, 1)]
    assert kept == [[0, 1, 2], [0, 2], [2]]


def test_no_penalty_is_the_layer_as_it_was():
    """Checks [19] P3: beta = 1 for independent channels; a dead one gets 0 and no NaN."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(300, 5))
    z[:, 2] = 0
    y = z.sum(axis=1)
    beta = Path(z.T @ z, z.T @ y, 300).at(1e-12)
    np.testing.assert_allclose(beta, [1, 1, 0, 1, 1], atol=1e-6)


def test_the_path_is_that_of_scikit_learn_on_all_rows():
    """Second moments are enough: the same coefficients as on the rows themselves."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(2)
    z = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 6))
    y = z.sum(axis=1) + rng.normal(size=80)
    path = Path(z.T @ z, z.T @ y, 80)
    for share in (0.001, 0.05, 0.3):
        plain = linear_model.Lasso(share * path.largest, fit_intercept=False, tol=1e-10)
        np.testing.assert_allclose(path.at(share * path.largest), plain.fit(z, y).coef_, atol=1e-5)


@pytest.mark.parametrize("start", [1e-3, 0.9, 50.0])
def test_the_search_ends_at_the_width(start):
    rng = np.random.default_rng(3)
    z = rng.normal(size=(400, 40)) * rng.uniform(0.2, 2, 40)
    path = Path(z.T @ z, z.T @ z.sum(axis=1), 400)
    for width in (1, 7, 20, 33):
        left = np.count_nonzero(search(path, width, start))
        assert width <= left <= 1.1 * width


def test_equal_channels_and_too_few_live_ones():
    """A width that no penalty leaves: twins leave together, dead channels come last."""
    x = np.zeros((30, 4, 1))
    x[:, 0, 0] = x[:, 1, 0] = np.random.default_rng(0).normal(size=30)
    problem = Problem(x, x.sum(axis=1), np.ones((4, 1, 1)), np.ones(4, bool))
    assert lasso([problem], 3).sum() == 3
    assert lasso([problem], 3)[:2].all()
    gone = problem._replace(keep=np.array([True, False, True, True]))
    assert lasso([gone], 2).tolist() == [True, False, True, False]
    with pytest.raises(errors.ArgumentError, match="add nothing to any output"):
        lasso([problem._replace(inputs=0 * x)], 2)
    with pytest.raises(errors.ArgumentError, match="a layer keeps 1 unit or more"):
        search(Path(np.eye(2), np.ones(2), 2), 0)


def test_several_consumers_count_alike():
    """Alone the loud consumer would decide."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(100, 3, 1))
    quiet = Problem(x, np.zeros((100, 1)), np.array([2.0, 1, 0]).reshape(3, 1, 1), np.ones(3, bool))
    loud = quiet._replace(weight=100 * np.array([0.0, 1, 1.2]).reshape(3, 1, 1))
    problems = [p._replace(targets=np.tensordot(x, p.weight, 2)) for p in (quiet, loud)]
    assert lasso(problems[1:], 1).tolist() == [False, False, True]
    assert lasso(problems, 1).tolist() == [True, False, False]


def test_kernels_and_matrices():
    kernel = jnp.arange(3 * 2 * 4 * 5.0).reshape(3, 2, 4, 5)
    layout = ("NHWC", "HWIO", "NHWC")
    fn = lambda v, x: jax.lax.conv_general_dilated(x, v, (1, 1), "SAME", dimension_numbers=layout)
    (layer,) = jprune.trace(fn, kernel, jnp.ones((1, 6, 6, 4))).layers.values()
    matrix = layer.matrix(kernel)
    assert matrix.shape == (4, 6, 5)
    np.testing.assert_array_equal(matrix[1, 3], kernel[1, 1, 1])
    np.testing.assert_array_equal(layer.array(matrix), kernel)


@functools.cache
def task_of():
    return toy_task(train_size=96)


def pruned_by(task, stream, budget, **options):
    stage = LayerWise(budget, ByLasso(), by_least_squares, stream=stream, batch_size=32, **options)
    return stage(Pruned(drawn(task), None), task, KEY)


def test_steps():
    """A sampler stands before the first layer of a branch; the last one is a plain step."""
    task = task_of()
    names = {stream: [step.name for step in steps_of(task, stream)] for stream in STREAMS}
    inner, stream = "params/conv2/kernel", "params/conv1/kernel"
    assert names == {
        "sampler": [f"sampler/{inner}", inner],
        "whole": [inner],
        "joint": [stream, inner],
    }
    (_, step) = steps_of(task, "joint")
    assert list(step.kernels) == ["params/conv3/kernel"]
    (step, _) = steps_of(task, "joint")
    assert list(step.kernels) == ["params/conv2/kernel", "params/fc/kernel"]


@pytest.mark.parametrize("stream", STREAMS)
def test_the_small_net_is_the_masked_one(stream):
    """Budget, masks, zeros at masked places, and slim, for all treatments of a stream."""
    task = task_of()
    budget = Budget(macs=0.6)
    done, (seen,) = pruned_by(task, stream, budget)
    assert 0.45 < seen["metrics"]["macs"] <= 0.6
    assert are_units(Net(task).groups, done.masks) == (stream != "sampler")
    masks = Net(task).weight_masks(done.masks)
    jax.tree.map(np.testing.assert_array_equal, apply_masks(done.variables, masks), done.variables)
    x = jax.random.uniform(KEY, (5, *task.example.shape[1:]))
    fn, small = Net(task).slim(done)
    a, b = jax.jit(task.fn)(done.variables, x), jax.jit(fn)(small, x)
    assert float(jnp.abs(a - b).max() / jnp.abs(a).max()) < 1e-5
    units = Net(task).unit_masks(done)
    assert units["params/conv1/kernel"].all() == (stream != "joint")
    if stream == "sampler":
        read = np.asarray(masks["params"]["conv2"]["kernel"])[..., 0].any(axis=(0, 1))
        assert 0 < read.sum() < 8
        assert float(Net(task).cost(done.masks).macs) < float(Net(task).cost(units).macs)


def test_the_refit_beats_no_refit_and_sums_come_out_right():
    """Before any training; the sum behind the branch is nearer to the dense net's."""
    task = task_of()
    start = Pruned(drawn(task), None)
    x = jax.random.uniform(KEY, (64, *task.example.shape[1:]))
    fn = jax.jit(task.fn)
    dense = fn(start.variables, x)
    errors_of = {}
    for name, refit in (("refit", by_least_squares), ("none", None)):
        stage = LayerWise(Budget(density=0.6), ByLasso(), refit, batch_size=32)
        done, (seen,) = stage(start, task, KEY)
        far = jnp.linalg.norm(fn(done.variables, x) - dense) / jnp.linalg.norm(dense)
        errors_of[name] = float(far), seen["metrics"]["reconstruction_error"]
    assert errors_of["refit"][0] < 0.6 * errors_of["none"][0]
    assert errors_of["refit"][1] < 0.5 * errors_of["none"][1]


def test_a_second_round_goes_on():
    task = task_of()
    stage = LayerWise(Budget(density=0.8), ByLasso(), by_least_squares, batch_size=32)
    first, _ = stage(Pruned(drawn(task), None), task, KEY)
    last = LayerWise(Budget(density=0.4), ByLasso(), by_least_squares, batch_size=32)
    done, (seen,) = last(first, task, KEY)
    before, after = Net(task).weight_masks(first.masks), Net(task).weight_masks(done.masks)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a & b, b), before, after)
    assert seen["metrics"]["layers"] == 2
    again, (seen,) = last(done, task, KEY)
    assert seen["metrics"]["layers"] == 0
    jax.tree.map(np.testing.assert_array_equal, again.variables, done.variables)


def test_ratios():
    task = task_of()
    done, _ = pruned_by(task, "joint", Budget(density=0.5), ratios=(np.inf, 1))
    kept = {name: int(mask.sum()) for name, mask in done.masks.items()}
    assert kept == {"params/conv1/kernel": 8, "params/conv2/kernel": 2}
    done, _ = pruned_by(task, "joint", Budget(density=0.5), ratios=(1, 1.5))
    kept = [int(mask.sum()) for mask in done.masks.values()]
    assert kept == [3, 7]  # 3/8 and 7/12 of ten
    with pytest.raises(errors.ArgumentError, match=r"ratios has 3 numbers.*write one, or 2 "):
        pruned_by(task, "joint", Budget(density=0.5), ratios=(1, 2, 3))
    with pytest.raises(errors.ArgumentError, match="each is above 0"):
        pruned_by(task, "joint", Budget(density=0.5), ratios=(0, 1))


def test_bad_input():
    """Few images, a group down to one unit, an impossible budget, nothing prunable, bad words."""
    task = task_of()
    done, _ = pruned_by(task, "joint", Budget(density=0.01), batches=1, points=1)
    assert [int(mask.sum()) for mask in done.masks.values()] == [1, 1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(done.variables))
    with pytest.raises(errors.BudgetError, match="cannot be met"):
        pruned_by(task, "whole", Budget(macs=0.01))
    alone = task._replace(fn=lambda v, x: (x * v["w"]).sum((1, 2, 3))[:, None], init=lone)
    stage = LayerWise(Budget(density=0.5), ByLasso(), None)
    with pytest.raises(errors.ArgumentError, match="is prunable by this method"):
        stage(Pruned(lone(KEY), None), alone, KEY)
    words: list[tuple[dict[str, Any], str]] = [
        ({"stream": "cut"}, "stream='cut'"),
        ({"targets": "old"}, "targets='old'"),
        ({"batches": 0}, "batches=0"),
        ({"start": 0.0}, "start=0.0"),
    ]
    for options, message in words:
        with pytest.raises(errors.ArgumentError, match=message):
            channel_lasso(Budget(density=0.5), None, FINE, **options)


def lone(key):
    del key
    return {"w": jnp.ones((8, 8, 1))}


def test_the_recipe_runs_by_name():
    task = task_of()
    recipe = recipes.find("channel_lasso")(Budget(macs=0.7), None, FINE, batches=1)
    done, seen = run(recipe, Pruned(drawn(task), None), task, KEY)
    by_stage = {row["stage"]: row["metrics"] for row in seen}
    assert by_stage["prune"]["macs"] <= 0.7
    assert list(by_stage) == ["dense", "prune", "before_finetune", "finetune"]
    masks = Net(task).weight_masks(done.masks)
    jax.tree.map(np.testing.assert_array_equal, apply_masks(done.variables, masks), done.variables)


@pytest.mark.slow
def test_the_claim_runs_through():
    found = run_claim(e19.CLAIM, smoke=True)
    assert [row["part"] for row in found] == ["dense", *["layer"] * 16, "net"]
    by = {(row["layer"], row["arm"], row["refit"]): row["error"] for row in found[1:-1]}
    for (layer, arm, refit), error in by.items():
        assert refit or by[layer, arm, True] < error
    assert 0.4 < found[-1]["kept"] <= 0.5

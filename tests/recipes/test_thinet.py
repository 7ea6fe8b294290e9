"""ThiNet: numbers of checks.md [20], greedy choices against rows, scales, recipe."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.claims import e20, layers
from experiments.claims.claim import cases
from experiments.claims.claim import run as run_claim
from jprune import errors, recipes
from jprune.base import Budget, Problem, Pruned
from jprune.recipes import Train, run
from jprune.recipes.thinet import thinet
from jprune.reconstruct import greedy, relative_error
from jprune.reconstruct import thinet as chosen
from jprune.stages.layer_wise import ByThiNet, LayerWise
from tests.toys import drawn, toy_task

KEY = jax.random.key(0)
FINE = Train(1, 0.01, batch_size=16, name="finetune")


def test_three_columns():
    """Checks [20] P1: the greedy answer, not the best one (which is {0, 1} with 0)."""
    x = np.array([[1, 0], [-1, 0], [0, 0.5]])
    removed = greedy.remove(x @ x.T, 2)
    assert removed[0] == 2
    assert np.linalg.norm(x[removed].sum(axis=0)) == pytest.approx(1.118034)


def test_cancelling_columns():
    """Checks [20] P2: greedy is the best here, and norms of columns are not."""
    x = np.array([[2, 0], [-1, 0], [0, 1.5]])
    removed = greedy.remove(x @ x.T, 2)
    assert removed.tolist() == [1, 0]
    assert np.linalg.norm(x[removed].sum(axis=0)) == pytest.approx(1.0)
    assert np.argsort(np.linalg.norm(x, axis=1))[:2].tolist() == [1, 2]


def test_scales_of_a_dependent_channel():
    """Checks [20] P3: x_2 = x_0 / 2 goes, w_0 = 1.5 and nothing is lost."""
    x = np.random.default_rng(0).normal(size=(50, 4))
    x[:, 2] = 0.5 * x[:, 0]
    scales = greedy.scales(x.T @ x, np.array([True, True, False, True]))
    np.testing.assert_allclose(scales, [1.5, 1, 0, 1], atol=1e-10)
    np.testing.assert_allclose(x @ scales, x.sum(axis=1), atol=1e-10)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_greedy_choices_are_those_on_the_rows(seed, count):
    x = np.random.default_rng(seed).normal(size=(20, 7))
    y, gram = x.sum(axis=1), x.T @ x

    def walk(cost):
        taken = []
        for _ in range(count):
            left = [unit for unit in range(7) if unit not in taken]
            taken.append(min(left, key=lambda unit: cost([*taken, unit])))
        return taken

    assert greedy.remove(gram, count).tolist() == walk(lambda s: np.linalg.norm(x[:, s].sum(1)))
    assert greedy.grow(gram, count).tolist() == walk(
        lambda s: np.linalg.norm(y - x[:, s].sum(axis=1))
    )

    def gain(taken):
        before, unit = taken[:-1], taken[-1]
        rest = y - x[:, before] @ np.linalg.lstsq(x[:, before], y)[0] if before else y
        return -((x[:, unit] @ rest) ** 2) / (x[:, unit] @ x[:, unit])

    assert greedy.pursue(gram, count).tolist() == walk(gain)
    kept = greedy.pursue(gram, count)
    np.testing.assert_allclose(
        greedy.scales(gram, kept)[kept], np.linalg.lstsq(x[:, kept], y)[0], atol=1e-8
    )


def test_dead_channels_go_first_and_scales_stay_finite():
    x = np.random.default_rng(1).normal(size=(30, 5))
    x[:, [1, 3]] = 0
    gram = x.T @ x
    assert set(greedy.remove(gram, 2).tolist()) == {1, 3}
    for name in ("remove", "grow", "omp"):
        kept = greedy.GREEDY[name](gram, 4)
        assert {0, 2, 4} < set(kept.tolist())
        np.testing.assert_allclose(greedy.scales(gram, kept)[[0, 2, 4]], 1, atol=1e-10)
    assert greedy.scales(gram, np.array([0, 1]))[1] == 1  # what the rows leave open stays 1


def problem_of(rows=500, units=6, window=3, outputs=4):
    rng = np.random.default_rng(2)
    inputs, weight = (
        rng.normal(size=(rows, units, window)),
        rng.normal(size=(units, window, outputs)),
    )
    return Problem(inputs, np.tensordot(inputs, weight, 2), weight, np.ones(units, bool))


def test_one_filter_a_row_or_all():
    problem = problem_of()
    z = np.einsum("nuw,uwo->uno", problem.inputs, problem.weight)
    drawn_outputs = np.asarray(jax.random.randint(KEY, (500,), 0, 4))
    one = z[:, np.arange(500), drawn_outputs]
    np.testing.assert_allclose(greedy.sampled_gram(problem, KEY), one @ one.T)
    every = z.reshape(6, -1)
    np.testing.assert_allclose(greedy.sampled_gram(problem, KEY, "all"), every @ every.T)
    for filters in greedy.FILTERS:
        mask = chosen([problem], 4, KEY, filters=filters)
        assert mask.sum() == 4
        weight, bias = greedy.channel_scales(problem.keep, KEY, filters)(
            problem._replace(keep=mask)
        )
        factors = greedy.scales(greedy.sampled_gram(problem, KEY, filters), mask)
        np.testing.assert_allclose(weight, problem.weight * factors[:, None, None])
        assert not bias.any()


def test_units_that_are_gone_are_not_chosen():
    problem = problem_of()._replace(keep=np.array([1, 0, 1, 1, 0, 1], bool))
    for name in greedy.GREEDY:
        mask = chosen([problem, problem], 3, KEY, name)
        assert mask.sum() == 3
        assert not mask[[1, 4]].any()
        assert chosen([problem], 9, KEY, name).tolist() == problem.keep.tolist()


@functools.cache
def task_of():
    return toy_task(train_size=96)


def test_layers_go_in_rounds_with_training_in_between():
    task = task_of()
    recipe = recipes.find("thinet")(
        Budget(density=0.5), None, FINE, stream="joint", rounds=3, batches=2, batch_size=16
    )
    done, seen = run(recipe, Pruned(drawn(task), None), task, KEY)
    stages = [row["stage"] for row in seen]
    assert stages == [
        "dense", "prune", "between", "prune", "between", "prune", "before_finetune", "finetune",
    ]  # fmt: skip
    layers = [row["metrics"]["layers"] for row in seen if row["stage"] == "prune"]
    assert layers == [1, 1, 0]
    assert {name: int(mask.sum()) for name, mask in done.masks.items()} == {
        "params/conv1/kernel": 4,
        "params/conv2/kernel": 6,
    }


def test_scales_help():
    """The error of what the next layer says, measured on the same images."""
    task, left = task_of(), {}
    for name, refit in (("scale", ByThiNet().scales), ("none", None)):
        stage = LayerWise(Budget(density=0.5), ByThiNet(), refit, "now", "whole", batch_size=32)
        _, (seen,) = stage(Pruned(drawn(task), None), task, KEY)
        left[name] = seen["metrics"]["reconstruction_error"]
    assert left["scale"] < left["none"]


def test_bad_words():
    words: list[tuple[dict[str, Any], str]] = [
        ({"greedy": "best"}, "greedy='best'"),
        ({"filters": "two"}, "filters='two'"),
        ({"stream": "sampler"}, "stream='sampler'"),
        ({"rounds": 0}, "rounds=0"),
    ]
    for options, message in words:
        with pytest.raises(errors.ArgumentError, match=message):
            thinet(Budget(density=0.5), None, FINE, **options)
    with pytest.raises(errors.ArgumentError, match="greedy='best'"):
        chosen([problem_of()], 2, KEY, "best")


@pytest.mark.slow
def test_the_claim_runs_through():
    found = run_claim(e20.CLAIM, smoke=True)
    assert [row["part"] for row in found] == ["dense", *["layer"] * 12, "net"]
    assert [row["arm"] for row in found[1:7]] == list(e20.CHOICES)
    assert all(np.isfinite(row["error"]) for row in found[1:])


@pytest.mark.slow
def test_layers_of_the_claims_are_seen_in_the_dense_net():
    (case,) = cases(e20.CLAIM, smoke=True)
    walk = layers.Layers(case, layers.dense_net(case), KEY)
    for number, (step, problem) in enumerate(walk):
        assert relative_error(problem, problem.weight) < 1e-6, number
        walk.with_weights(step, problem, np.arange(step.units) < 1, None)

"""Distances between units, against hand numbers and loops, and the recipe that prunes by them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jprune
from jprune import criteria, errors, recipes
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.train.net import Net
from tests.toys import drawn, toy_task

POINTS = [(0, 0), (1, 0), (0, 1), (0.4, 0.4), (5, 5)]


@functools.cache
def groups_of(size, fan):
    fn = lambda v, x: jnp.maximum(x @ v["first"], 0) @ v["second"]
    variables = {"first": np.ones((fan, size)), "second": np.ones((size, 1))}
    return jprune.trace(fn, variables, jnp.ones((1, fan)))


def scores_of(units, **options):
    """Scores of these weights, a row a unit, as the columns of a dense kernel."""
    units = np.asarray(units, np.float64)
    criterion = criteria.distance(groups_of(*units.shape), **options)
    variables = {"first": units.T, "second": np.ones((len(units), 1))}
    return np.asarray(jprune.run_criterion(criterion, variables, ())["first"])


def by_loops(units):
    units = np.asarray(units, float)
    return [sum(np.linalg.norm(u - v) for v in units) for u in units]


def test_five_points():
    """Checks B4: the point nearest to all others goes; its norm is not the smallest.

    A unit of zeros counts as gone here, so the points are shifted; distances stay.
    """
    right = [9.636753, 9.538448, 9.538448, 8.513288, 26.382699]
    np.testing.assert_allclose(by_loops(POINTS), right, atol=1e-6)
    for shift in (1.0, -30.0):
        found = scores_of(np.array(POINTS) + shift)
        np.testing.assert_allclose(found, right, atol=1e-5)
        assert found.argmin() == 3
    assert np.linalg.norm(POINTS, axis=1).argmin() == 0


FILTERS = np.array([[0.7, 1.5], [-1, -1.8], [-1.2, -1.9], [-0.1, 1.9], [-1.8, -1.2]])
EXPECTED = {
    "l2": [12.18111175, 8.74363559, 8.99643775, 12.19385574, 9.13716225],
    "manhattan": [16.7, 11.3, 11.8, 15.5, 12.7],
    "cosine": [5.96132125, 3.95754738, 3.89651782, 5.2911761, 3.56244741],
}


@pytest.mark.parametrize("metric", EXPECTED)
def test_metrics_disagree_about_which_filter_goes(metric):
    """Checks [34] P1; the norms of the same filters say two others."""
    np.testing.assert_allclose(scores_of(FILTERS, metric=metric), EXPECTED[metric], rtol=1e-6)
    criterion = criteria.distance(groups_of(5, 2), metric)
    variables = {"first": FILTERS.T.astype(np.float32), "second": np.ones((5, 1), np.float32)}
    compiled = jax.jit(lambda variables: jprune.run_criterion(criterion, variables, ()))
    np.testing.assert_allclose(compiled(variables)["first"], EXPECTED[metric], rtol=1e-5)
    assert np.argmin(EXPECTED[metric]) == {"l2": 1, "manhattan": 1, "cosine": 4}[metric]
    norms = [np.linalg.norm(FILTERS, order, axis=1).argmin() for order in (1, 2)]
    assert norms == [3, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7))
def test_sums_are_those_of_loops_and_shifts_change_nothing(seed, size):
    rng = np.random.default_rng(seed)
    units = rng.normal(size=(size, 4))
    np.testing.assert_allclose(scores_of(units), by_loops(units), rtol=1e-4, atol=1e-4)
    angles = units / np.linalg.norm(units, axis=1)[:, None]
    cosine = (1 - angles @ angles.T).sum(1)
    np.testing.assert_allclose(scores_of(units, metric="cosine"), cosine, rtol=1e-4, atol=1e-4)
    scaled = units * rng.uniform(0.5, 2, size=(size, 1))
    np.testing.assert_allclose(scores_of(scaled, metric="cosine"), cosine, rtol=1e-4, atol=1e-4)


def test_twins_have_low_scores_and_what_is_gone_is_no_neighbour():
    units = np.array([[4.0, 0], [4.0, 0], [0, 0], [0, 3.0], [-3.0, 0]])
    found = scores_of(units)
    alive = units[[0, 1, 3, 4]]
    np.testing.assert_allclose(found[[0, 1, 3, 4]], by_loops(alive), rtol=1e-6)
    assert found[2] < 0


def test_small_norms_go_first_and_distances_are_among_the_others():
    units = np.array([[0.1, 0], [3.0, 1], [0, 0.2], [3.0, 1.5], [-4.0, 0], [3.0, 2.0]])
    found = scores_of(units, by_norm=1 / 3)
    assert found.argsort()[:2].tolist() == [0, 2]
    assert (found[[0, 2]] < 0).all()
    others = [1, 3, 4, 5]
    np.testing.assert_allclose(found[others], by_loops(units[others]), rtol=1e-6)


def test_the_recipe_keeps_a_short_filter_that_is_alone():
    """Eleven long filters stand together, one is short and far from them: L1 takes that one."""
    task, key = toy_task(), jax.random.key(0)
    start = drawn(task)
    kernel = np.array(start["params"]["conv2"]["kernel"])
    kernel[..., 1:] += 1.0
    start["params"]["conv2"]["kernel"] = jnp.asarray(kernel)
    median = int(np.argmin(by_loops(kernel.reshape(-1, 12).T)))
    gone = {}
    for method, options in (("fpgm", {}), ("fpgm mixed", {"by_norm": 0.05}), ("l1", {})):
        recipe = recipes.find(method.split()[0])(
            Budget(density=11 / 12), None, Train(1, 0.01, 16), **options
        )
        prune = next(stage for stage in recipe if stage.name == "prune")
        masks = prune(Pruned(start, None), task, key)[0].masks
        gone[method] = np.flatnonzero(~masks["params/conv2/kernel"]).tolist()
    assert median != 0
    assert gone == {"fpgm": [median], "fpgm mixed": [0], "l1": [0]}


def test_in_the_soft_form_filters_go_by_distance_and_come_back_until_the_end():
    task, key = toy_task(), jax.random.key(0)
    start = drawn(task)
    kernel = np.array(start["params"]["conv2"]["kernel"])
    kernel[..., 1:] += 1.0  # all but the first are long, and stand together
    start["params"]["conv2"]["kernel"] = jnp.asarray(kernel)
    fine = Train(1, 1e-4, 16, schedule="constant", name="finetune")
    recipe = recipes.find("sfp")(Budget(density=0.75), None, fine, score="distance")
    done, rows = recipes.run(recipe, Pruned(start, None), task, key)
    assert [row["stage"] for row in rows][:2] == ["dense", "soft"]
    mask = np.asarray(done.masks["params/conv2/kernel"])
    assert mask.sum() == 9
    assert mask[0], "the shortest filter is far from the others"


def test_bad_words():
    groups = Net(toy_task()).groups
    for options, says in (
        ({"metric": "l1"}, "l2, manhattan, cosine"),
        ({"by_norm": 1.0}, r"\[0, 1\)"),
    ):
        with pytest.raises(errors.ArgumentError, match=says):
            criteria.distance(groups, **options)
        fine = Train(1, 0.01, 16)
        with pytest.raises(errors.ArgumentError, match=says):
            recipes.run(
                recipes.find("fpgm")(Budget(density=0.5), None, fine, **options),
                Pruned(drawn(toy_task()), None), toy_task(), jax.random.key(0),
            )  # fmt: skip

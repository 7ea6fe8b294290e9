"""C-OBD to Kron-OBS count a filter's bias: what it says without an input."""

import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import criteria, curvature, recipes
from jprune.base import Budget
from jprune.criteria.kronecker import unit_scores
from jprune.curvature.blocks import damage
from jprune.reconstruct.kronecker import compensate
from tests.contracts import own


def half_square(out, batch):
    return 0.5 * out[:, 0] ** 2


def a_layer(bias=(0.7, 0.2, 0.4), shape=(3,)):
    """`(fn, variables, x)`: one example, a layer whose first unit has a kernel of zeros."""
    variables = {
        "first": np.array([[0.0, 1.0, -0.5], [0.0, 0.3, 0.8]], np.float32),
        "bias": np.array(bias, np.float32).reshape(shape),
        "second": np.array([[1.0], [-2.0], [0.6]], np.float32),
    }
    fn = lambda v, x: (x @ v["first"] + v["bias"].reshape(-1)) @ v["second"]
    return fn, variables, np.array([[1.5, -0.5]], np.float32)


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_scores_of_one_example_are_what_removing_a_unit_costs(shape):
    """The Fisher matrix of one example is g g^T (x) [a 1]^T [a 1]."""
    fn, variables, x = a_layer(shape=shape)
    groups = jprune.trace(fn, variables, x)
    layers = curvature.layers_of(fn, groups, variables, x)
    bias = variables["bias"].reshape(-1)
    gradient = fn(variables, x)[0, 0] * variables["second"][:, 0]
    apart = ((x.T * variables["first"]) ** 2).sum(0) + bias**2
    right = {
        "kron_obd": (gradient * (x[0] @ variables["first"] + bias)) ** 2 / 2,
        "c_obd": gradient**2 * apart / 2,
    }
    for form, scores in right.items():
        criterion = criteria.kronecker(fn, half_square, groups, layers, form, labels="data")
        (score,) = jprune.run_criterion(criterion, variables, [{"image": x}]).values()
        np.testing.assert_allclose(score, scores, rtol=1e-5)


def test_a_layer_without_a_bias_scores_as_if_no_other_had_one():
    fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"] + v["shift"]
    variables = own.draw({"a": (4, 5), "b": (5, 3), "shift": (3,)})
    batch = {"image": np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)}
    groups = jprune.trace(fn, variables, batch["image"])
    layers = curvature.layers_of(fn, groups, variables, batch["image"])
    criterion = criteria.kronecker(fn, half_square, groups, layers, "c_obs", labels="data")
    alone = criteria.kronecker(fn, half_square, groups, {"a": layers["a"]}, "c_obs", labels="data")
    found, right = (jprune.run_criterion(c, variables, [batch]) for c in (criterion, alone))
    np.testing.assert_allclose(found["a"], right["a"], rtol=1e-5)


def test_kron_obs_costs_what_its_compensation_reaches_and_moves_biases():
    fn, variables, _ = a_layer(bias=(0.7, -0.2, 0.4))
    groups = jprune.trace(fn, variables, jnp.ones((9, 2)))
    rng = np.random.default_rng(2)
    spd = lambda size: (lambda r: r @ r.T)(rng.normal(size=(size, size + 2)))
    factors = {"first": curvature.Factors(spd(3), spd(3))}
    scores = unit_scores(groups, variables, factors, "kron_obs", damping=0.0)
    (name,) = scores
    for unit in range(3):
        masks = {name: np.arange(3) != unit}
        moved = compensate(groups, variables, masks, factors, "kron_obs", damping=0.0)
        row = lambda v: np.column_stack([v["first"].T, v["bias"]]).astype(float)
        change = row(moved) - row(variables)
        assert np.abs(row(moved)[unit]).max() == 0
        assert np.abs(change[np.arange(3) != unit, -1]).min() > 0
        assert damage(change, factors["first"]) == pytest.approx(scores[name][unit], rel=1e-4)


@pytest.mark.parametrize("method", ["c_obd", "kron_obd", "c_obs", "kron_obs"])
def test_a_unit_that_says_the_same_to_every_image_is_not_removed_as_if_it_said_nothing(method):
    """Unit 0 has a kernel of zeros and the bias 2; unit 1 a kernel of 0.01 and the bias 0."""

    def fn(v, x):
        x = jnp.maximum(x @ v["params"]["a"]["kernel"] + v["params"]["a"]["bias"], 0)
        return x @ v["params"]["b"]["kernel"] + v["params"]["b"]["bias"]

    params = own.kernels({"a": (6, 4), "b": (4, 3)}, bias=True)
    params["a"]["kernel"][:, :2], params["a"]["bias"][:2] = [0.0, 0.01], [2.0, 0.0]
    params["b"]["kernel"][:2] = [1.0, -1.0, 1.0]
    recipe = recipes.find(method)(Budget(density=0.75), None, own.SHORT, recalibrate=0)
    _, pruned = own.up_to(recipe, own.task_of(fn, params, (6,)), "prune")
    assert pruned.masks["params/a/kernel"][0]

"""OBD: numbers of checks.md [1], its rules for curvature that is off, and its recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import allocate, criteria, curvature, data, errors, recipes, train, zoo
from jprune.base import Budget, Criterion, Pruned
from jprune.recipes import Prune, Train
from jprune.recipes.obd import CURVATURES, obd
from jprune.train.net import Net
from tests.toys import drawn, toy_task

KEY = jax.random.key(0)
# No arrays: one that JAX has compiled as a constant in single precision stays in it.
BENDS = (1.0, 4.0, 0.25, 10.0)
BEST = (2.0, -0.5, 3.0, 0.1)
BATCH = {"image": jnp.ones((1, 4))}


def quadratic(v, x):
    """One output a weight, (w - w*) sqrt(h): the loss of checks.md as a squared error."""
    return (v["w"] - np.array(BEST)) * np.sqrt(BENDS) * x


def half_square(out, batch):
    return 0.5 * (out**2).sum(axis=1)


@pytest.mark.parametrize(
    "estimator",
    [curvature.exact(), curvature.gauss_newton(), curvature.hutchinson(1)],
    ids=["exact", "gauss_newton", "hutchinson"],  # of a diagonal Hessian one probe is enough
)
def test_saliencies_of_a_quadratic_are_the_losses(float64, estimator):
    """Checks [1] P1."""
    variables = {"w": jnp.asarray(BEST)}
    criterion = criteria.obd(quadratic, half_square, estimator, KEY)
    scores = jprune.run_criterion(criterion, variables, [BATCH])
    np.testing.assert_allclose(scores["w"], [2.0, 0.5, 1.125, 0.05], rtol=1e-12)
    for k in range(4):
        without = {"w": variables["w"].at[k].set(0)}
        measured = half_square(quadratic(without, BATCH["image"]), BATCH)
        np.testing.assert_allclose(scores["w"][k], measured[0], rtol=1e-12)
    kept = lambda scores, n: np.flatnonzero(
        allocate.global_topk(scores, Budget(density=n / 4))["w"]
    ).tolist()
    assert (kept(scores, 2), kept(scores, 1)) == ([0, 2], [0])
    magnitude = jprune.run_criterion(criteria.magnitude(), variables, ())
    assert kept(magnitude, 1) == [2]


def bent(value):
    """A criterion of a loss w^2 / 2 times a curvature."""
    fn = lambda v, x: 0.5 * value * v["w"][None] ** 2 * x
    return fn, lambda out, batch: out.sum(axis=1)


def scored(value, **settings):
    fn, loss = bent(jnp.asarray(value))
    criterion = criteria.obd(fn, loss, curvature.exact(), **settings)
    batch = {"image": jnp.ones((1, 2))}
    return jprune.run_criterion(criterion, {"w": jnp.array([3.0, 1.0])}, [batch])["w"]


def test_negative_curvature_is_clipped_kept_or_refused():
    np.testing.assert_allclose(scored([-2.0, 4.0]), [0, 2])
    np.testing.assert_allclose(scored([-2.0, 4.0], negative="keep"), [-9, 2])
    np.testing.assert_allclose(scored([-2.0, 4.0], weight_decay=0.5), [2.25, 2.25])
    with pytest.raises(errors.ArgumentError, match="at w is negative for 1 of 2 weights"):
        scored([-2.0, 4.0], negative="refuse")
    with pytest.raises(errors.ArgumentError, match="curvature at w is NaN"):
        scored([np.nan, 4.0])


def test_it_scores_inside_a_transformation():
    """`scheduled_prune` scores under jit, where no value can be looked at."""
    fn, loss = bent(jnp.array([-2.0, 4.0]))
    criterion = criteria.obd(fn, loss, curvature.exact(), negative="refuse")
    variables = {"w": jnp.array([3.0, 1.0])}
    state = criterion.update(criterion.init(variables), variables, {"image": jnp.ones((1, 2))})
    np.testing.assert_allclose(jax.jit(criterion.score)(state, variables)["w"], [-9, 2])


def test_saliencies_of_a_filter_are_summed():
    fn = lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"]
    variables = {"a": jnp.arange(1.0, 7).reshape(2, 3), "b": jnp.ones((3, 2))}
    batch = {"image": jnp.array([[1.0, 0.5]])}
    groups = jprune.trace(fn, variables, batch["image"])
    scores = jprune.run_criterion(criteria.obd(fn, half_square), variables, [batch])
    # Every output has h = 1 and reads every unit with weight 1: h of a unit is 2, x^2 = 1, 1/4.
    a = np.asarray(variables["a"])
    np.testing.assert_allclose(
        jprune.to_units(groups, scores)["a"], a[0] ** 2 + a[1] ** 2 / 4, rtol=1e-6
    )


@pytest.fixture(scope="module")
def digits():
    task = train.task(zoo.build("lenet300", shape=(8, 8, 1)), data.load("digits"))
    return task, Pruned(drawn(task), None)


FINETUNE = Train(1, 0.01, 64, max_steps=2, name="finetune")


def test_the_recipe_deletes_weights_in_rounds(digits):
    task, start = digits
    recipe = obd(Budget(density=0.2), None, FINETUNE, batches=1, probes=2)
    pruned, records = recipes.run(recipe, start, task, KEY)
    found = [r["metrics"]["density"] for r in records if r["stage"] == "prune"]
    # ln 0.2 / ln 0.7 = 4.5: five rounds that keep 0.2^(1/5) = 0.72 each.
    assert found == pytest.approx([0.2 ** (n / 5) for n in range(1, 6)], abs=1e-4)
    for name, mask in pruned.masks["params"].items():
        kernel = np.asarray(pruned.variables["params"][name]["kernel"])
        assert not kernel[~np.asarray(mask["kernel"])].any()
        assert mask["bias"] is None


@pytest.mark.parametrize("name", list(CURVATURES))
def test_every_curvature_has_a_name(name):
    """Estimates by name are those of the criterion, with a key of the stage."""
    (stage,) = (s for s in obd(Budget(density=0.5), None, FINETUNE, curvature=name, rounds=1)
                if isinstance(s, Prune))  # fmt: skip
    task = toy_task()._replace(fn=quadratic, loss=half_square)
    criterion = stage.criterion(task, None, KEY)  # type: ignore[arg-type]
    assert isinstance(criterion, Criterion)
    if name == "true_fisher":
        return  # draws labels from logits, and there are none
    scores = jprune.run_criterion(criterion, {"w": jnp.asarray(BEST, jnp.float32)}, [BATCH])
    # At the minimum the empirical Fisher information vanishes with the gradient.
    expected = [0.0] * 4 if name == "fisher" else [2.0, 0.5, 1.125, 0.05]
    np.testing.assert_allclose(scores["w"], expected, rtol=1e-5)


def test_the_recipe_prunes_filters_of_a_residual_net():
    task = toy_task()
    recipe = obd(Budget(macs=0.5), None, FINETUNE, per="unit", rounds=2, batches=1, probes=1)
    stages = tuple(stage for stage in recipe if isinstance(stage, Prune))
    pruned, _ = recipes.run(stages, Pruned(drawn(task), None), task, KEY)
    assert {name: mask.shape for name, mask in pruned.masks.items()} == {
        "params/conv1/kernel": (8,),
        "params/conv2/kernel": (12,),
    }
    assert float(Net(task).cost(pruned.masks).macs) <= 0.5 * float(Net(task).cost({}).macs)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"curvature": "hessian"}, "write one of gauss_newton, fisher"),
        ({"curvature": "exact", "probes": 3}, "exact draws nothing"),
        ({"rounds": 0}, "it is 1 or more"),
        ({"per": "filter"}, "'unit' or 'weight'"),
    ],
)
def test_options_that_cannot_be_are_refused(settings, says):
    with pytest.raises(errors.ArgumentError, match=says):
        obd(Budget(density=0.5), None, FINETUNE, **settings)
    with pytest.raises(errors.ArgumentError, match="write clip, keep, refuse"):
        criteria.obd(quadratic, half_square, negative="abs")
    with pytest.raises(errors.ArgumentError, match="0 or more"):
        criteria.obd(quadratic, half_square, weight_decay=-1)

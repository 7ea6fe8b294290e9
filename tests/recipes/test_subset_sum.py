"""A trained net inside a random one: subset sums and Malach's pair of units."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import errors, recipes, train, zoo
from jprune.base import Budget, Pruned
from jprune.recipes import Train
from jprune.recipes.subset_sum import subset_sum
from jprune.search.subset_sums import best_subsets, edge, edge_units
from jprune.stages.subset_sums import Approximate, products_of
from tests.toys import CLASSES, SHAPE, drawn, toy_data, toy_task

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def lenet():
    task = train.task(zoo.build("lenet300", CLASSES, SHAPE), toy_data())
    return task, Pruned(drawn(task), None)


def test_two_of_many_random_units_are_an_edge():
    """Checks [10] P3."""
    k = edge_units(0.1, 5e-5)
    assert k == 8478
    for seed in range(5):
        inner, outer = np.random.default_rng(seed).uniform(-1, 1, (2, k))
        kept = np.zeros(k)
        kept[list(edge(0.37, 0.1, inner, outer))] = 1
        assert kept.sum() == 2
        x = np.linspace(-1, 1, 201)
        net = (np.maximum(np.outer(x, inner), 0) * outer * kept).sum(axis=1)
        assert np.all(np.abs(net - 0.37 * x) <= 0.1 * np.abs(x))
    assert edge(0.37, 0.1, inner[:3], outer[:3]) is None


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_the_nearest_subset_is_that_of_brute_force(n):
    rng = np.random.default_rng(n)
    products, targets = rng.uniform(-1, 1, n), rng.uniform(-2, 2, 40)
    sums = np.array(
        [sum(s) for r in range(n + 1) for s in itertools.combinations(products, r)] or [0.0]
    )
    found = best_subsets(products, targets)
    assert found.shape == (40, n)
    least = np.abs(sums[None] - targets[:, None]).min(axis=1)
    np.testing.assert_allclose(np.abs(found @ products - targets), least, atol=1e-12)


def test_how_many_products_meet_a_tolerance():
    """Within 0.01, |w| <= 0.5: 7 products for two thirds to four fifths, 10 for 95 %, 14 for 99."""
    assert (products_of(0.01, 3), products_of(0.01, 1), products_of(0.1, 3)) == (21, 7, 9)
    rng = np.random.default_rng(0)
    within = {
        n: np.mean(
            [
                np.abs(best_subsets(p, t) @ p - t) <= 0.01
                for p, t in (
                    (rng.uniform(-0.5, 0.5, n), rng.uniform(-0.5, 0.5, 60)) for _ in "x" * 20
                )
            ]
        )
        for n in (7, 10, 14)
    }
    assert 0.6 < within[7] < 0.87
    assert within[10] == pytest.approx(0.95, abs=0.05)
    assert within[14] > 0.98


def test_the_approximating_net_is_a_random_net_that_was_pruned():
    """Its function is that of a deeper net whose hidden units read one input each."""
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(4, 3)) / 2
    inner = rng.uniform(0.2, 1, (3, 8))
    outer = rng.uniform(-1, 1, (3, 8)) / inner
    x = rng.uniform(0, 1, (6, 4))
    deep, flat = np.zeros((6, 3)), np.zeros((4, 3))
    for output in range(3):
        kept = best_subsets(inner[output] * outer[output], weights[:, output])
        hidden = np.maximum(x[:, :, None] * inner[output], 0)
        deep[:, output] = (hidden * kept * outer[output]).sum(axis=(1, 2))
        flat[:, output] = kept @ (inner[output] * outer[output])
    np.testing.assert_allclose(deep, x @ flat, atol=1e-12)
    assert np.abs(flat - weights).max() < 0.2


def test_all_weights_are_replaced_by_sums_near_them(lenet):
    task, start = lenet
    done, (seen,) = Approximate(0.1, 4.0)(start, task, KEY)
    metrics = seen["metrics"]
    assert (metrics["products"], metrics["random"]) == (12, 12 * 49500)
    assert 0.3 < metrics["kept"] / metrics["random"] < 0.7
    assert metrics["within"] > 0.99
    differences = []
    for name in ("fc1", "fc2", "fc3"):
        before, after = (v["params"][name]["kernel"] for v in (start.variables, done.variables))
        differences.append(np.abs(before - after).max())
        assert np.mean(before != after) > 0.95
        np.testing.assert_array_equal(
            start.variables["params"][name]["bias"], done.variables["params"][name]["bias"]
        )
    assert max(differences) == pytest.approx(metrics["error"], rel=1e-3)


def test_the_approximating_net_is_what_is_measured(lenet):
    task, start = lenet
    trained, _ = Train(20, 0.05, 16)(start, task, KEY)
    recipe = subset_sum(Budget(density=1.0), None, tolerance=0.5, c=1.0)
    rough, records = recipes.run(recipe, trained, task, KEY)
    assert records[1]["metrics"]["products"] == 1
    x = jnp.asarray(next(task.data.batches("validation", 10))["image"])
    assert not np.allclose(task.fn(rough.variables, x), task.fn(trained.variables, x), atol=0.1)
    found = recipes.evaluate(task, rough.variables, "validation")
    assert records[2]["metrics"]["loss"] == pytest.approx(found["loss"])
    assert rough.masks is None


def test_what_does_not_fit_is_refused(lenet):
    task, start = lenet
    with pytest.raises(errors.ArgumentError, match="Write --density 1"):
        subset_sum(Budget(density=0.5), None)
    with pytest.raises(errors.ArgumentError, match="products are from 1 to 30"):
        subset_sum(Budget(density=1.0), None, tolerance=1e-6)
    with pytest.raises(errors.ArgumentError, match="tolerance is in"):
        subset_sum(Budget(density=1.0), None, tolerance=0.0)
    other = toy_task()
    with pytest.raises(
        errors.ArgumentError, match="dense layers alone, such as lenet300; tiny has"
    ):
        Approximate(0.01, 1.0)(Pruned(drawn(other), None), other, KEY)
    broken = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), start.variables)
    with pytest.raises(errors.ArgumentError, match="hold NaN"):
        Approximate(0.01, 1.0)(Pruned(broken, None), task, KEY)
    shifted = lambda *given, **more: (
        {**batch, "image": batch["image"] - 0.5} for batch in task.data.batches(*given, **more)
    )
    centred = task._replace(data=task.data._replace(batches=shifted))
    with pytest.raises(errors.ArgumentError, match="fc1/kernel reads -0"):
        Approximate(0.01, 1.0)(start, centred, KEY)
